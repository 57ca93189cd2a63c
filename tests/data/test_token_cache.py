from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import AddedToken

from lora_dist.config import DataSettings
from lora_dist.data import token_cache
from lora_dist.data.e2e import Example, fingerprint, load_split
from lora_dist.data.token_cache import load_corpus, tokenize_cached
from lora_dist.data.tokens import TokenizedExamples, tokenize
from lora_dist.errors import UserError

EXAMPLES = [
    Example("name[The Eagle], food[French]", "The Eagle is French."),
    Example("name[Blue Spice]", "Blue Spice is at £20 in Café Rouge."),
    Example("name[The Eagle], food[French]", "X."),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "lora_dist"


def same(some: TokenizedExamples, other: TokenizedExamples) -> bool:
    names = ("ids", "starts", "prompt_lengths", "mrs")
    pairs = [(getattr(some, name), getattr(other, name)) for name in names]
    return all(a.dtype == b.dtype and a.tolist() == b.tolist() for a, b in pairs)


def test_the_cache_gives_what_tokenising_gives_without_tokenising_again(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "PROBES", 1)
    expected = tokenize(tokenizer, EXAMPLES, 128)
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), expected)

    def only_the_first(tokenizer: Any, examples: Sequence[Example], *others: Any) -> TokenizedExamples:
        assert len(examples) <= 1, "tokenised again"
        return tokenize(tokenizer, examples, *others)

    monkeypatch.setattr(token_cache, "tokenize", only_the_first)
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), expected)
    for other in (EXAMPLES[:2], EXAMPLES[::-1]):
        with pytest.raises(AssertionError, match="again"):
            tokenize_cached(tokenizer, other, 128)


def test_another_tokenizer_is_another_entry(tokenizer: Any, cache: Path) -> None:
    tokenize_cached(tokenizer, EXAMPLES, 128)
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    tokenizer.add_tokens([AddedToken("Eagle")])
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), tokenize(tokenizer, EXAMPLES, 128))
    assert len(list(cache.iterdir())) == 2


def test_the_authors_form_of_the_mrs_is_another_entry(tokenizer: Any, cache: Path) -> None:
    for linearization in ("csv", "authors", "csv"):
        found = tokenize_cached(tokenizer, EXAMPLES, 128, linearization)
        assert same(found, tokenize(tokenizer, EXAMPLES, 128, linearization))
    assert len(list(cache.iterdir())) == 2


def test_a_tokenizer_that_splits_the_first_examples_differently_is_another_entry(
    tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize_cached(tokenizer, EXAMPLES, 128)

    def differently(tokenizer: Any, examples: Sequence[Example], *others: Any) -> TokenizedExamples:
        found = tokenize(tokenizer, examples, *others)
        return TokenizedExamples(found.ids + 1, found.starts, found.prompt_lengths, found.mrs)

    monkeypatch.setattr(token_cache, "tokenize", differently)
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), differently(tokenizer, EXAMPLES, 128))
    assert len(list(cache.iterdir())) == 2


def test_the_corpus_is_the_tokens_of_train_and_dev_with_their_fingerprints(tokenizer: Any, corpus: Path) -> None:
    settings = DataSettings(dir=corpus, limit_train=5)
    found = load_corpus(settings, tokenizer, 512)
    train, dev = load_split(settings, "train"), load_split(settings, "dev")
    assert len(train) == 5
    assert same(found.train, tokenize(tokenizer, train, 512))
    assert same(found.dev, tokenize(tokenizer, dev, 512))
    assert found.fingerprints == {"train": fingerprint(train), "dev": fingerprint(dev)}
    few = replace(settings, limit_dev=4)  # of the tokens for the loss, not of what is decoded or fingerprinted
    assert same(load_corpus(few, tokenizer, 512).dev, tokenize(tokenizer, dev[:4], 512))
    assert load_corpus(few, tokenizer, 512).fingerprints == found.fingerprints
    assert load_split(few, "dev") == dev


def test_an_example_that_is_too_long_is_refused_and_nothing_is_stored(tokenizer: Any, cache: Path) -> None:
    with pytest.raises(UserError, match="shorten"):
        tokenize_cached(tokenizer, EXAMPLES, 8)
    assert not cache.exists()


def test_a_damaged_entry_or_a_cache_that_cannot_be_written_changes_nothing(tokenizer: Any, cache: Path) -> None:
    expected = tokenize_cached(tokenizer, EXAMPLES, 128)
    (entry,) = cache.iterdir()
    for file in entry.iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), expected)
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), expected)
    cache.rename(cache.with_name("old"))
    cache.write_text("a file where the folder should be")
    assert same(tokenize_cached(tokenizer, EXAMPLES, 128), expected)
