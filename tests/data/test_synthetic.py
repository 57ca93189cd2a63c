import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lora_dist.config import DataSettings
from lora_dist.data.e2e import FILES, SPLITS, Group, Split, group_by_mr, is_official, load_split, parse_mr
from lora_dist.data.synthetic import (
    ADJECTIVES,
    PLANS,
    PREPOSITIONS,
    VALUES,
    VERB_PHRASES,
    _realise,
    plain_texts,
    write_corpus,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    write_corpus(folder, seed=7)
    return folder


def groups(folder: Path, split: Split) -> list[Group]:
    return group_by_mr(load_split(DataSettings(dir=folder), split))


def test_sizes_are_those_of_a_small_e2e(folder: Path) -> None:
    assert [len(groups(folder, split)) for split in SPLITS] == [600, 40, 60]
    assert 3000 < len(load_split(DataSettings(dir=folder), "train")) < 4000
    assert not any(is_official(split, load_split(DataSettings(dir=folder), split)) for split in SPLITS)


def test_no_mr_is_in_two_splits(folder: Path) -> None:
    mrs = [group.mr for split in SPLITS for group in groups(folder, split)]
    assert len(set(mrs)) == len(mrs) == 700


def test_equal_mrs_are_contiguous_in_dev_and_test_and_shuffled_in_train(folder: Path) -> None:
    for split in SPLITS:
        mrs = [example.mr for example in load_split(DataSettings(dir=folder), split)]
        runs = 1 + sum(before != after for before, after in pairwise(mrs))
        assert (runs == len(set(mrs))) == (split != "train")


def test_mrs_have_three_to_eight_attributes_in_the_order_of_e2e(folder: Path) -> None:
    order = list(VALUES)
    counts = set()
    for split in SPLITS:
        for group in groups(folder, split):
            slots = parse_mr(group.mr)
            attributes = [attribute for attribute, _ in slots]
            assert attributes[0] == "name"
            assert attributes == sorted(set(attributes), key=order.index)
            assert all(value in VALUES[attribute] for attribute, value in slots)
            counts.add(len(slots))
    assert counts == set(range(3, 9))


def test_an_mr_has_several_different_references(folder: Path) -> None:
    sizes = []
    for split in SPLITS:
        for group in groups(folder, split):
            assert len(set(group.references)) == len(group.references)
            sizes.append(len(group.references))
    assert max(sizes) == 8
    assert sum(sizes) / len(sizes) > 5


def test_references_mention_what_the_mr_has_and_rarely_omit_an_attribute(folder: Path) -> None:
    mentioned = total = 0
    for group in groups(folder, "train"):
        slots = dict(parse_mr(group.mr))
        for reference in group.references:
            assert slots["name"] in reference
            assert reference[0].isupper()
            assert reference.endswith(".")
            assert not any(mark in reference for mark in ("{", "  ", " .", " ,", ".."))
            for attribute in ("eatType", "food", "area", "near"):
                total += attribute in slots
                mentioned += attribute in slots and slots[attribute].lower() in reference.lower()
                others = set(VALUES[attribute]) - {slots.get(attribute)}
                assert not any(f" {other} " in reference for other in others), "a value the MR does not have"
    assert 0.98 < mentioned / total < 1  # 3 % of the references omit one of up to seven attributes


def test_every_entry_of_the_grammar_is_used() -> None:
    rng = random.Random(0)
    full = [{attribute: rng.choice(values) for attribute, values in VALUES.items()} for _ in range(2000)]
    text = " ".join(_realise(slots, rng) for slots in full)
    phrases = [phrase for values in VERB_PHRASES.values() for phrases in values.values() for phrase in phrases]
    prepositions = [f"{some} {place}" for place, several in PREPOSITIONS.items() for some in several if place != "near"]
    for phrase in (*phrases, *ADJECTIVES.values(), *prepositions, *PREPOSITIONS["near"]):
        assert phrase in text
    assert all(set(VERB_PHRASES[attribute]) == set(VALUES[attribute]) for attribute in VERB_PHRASES)


def test_an_mr_is_realised_in_all_sentence_plans() -> None:
    slots = {"name": "Larkspur", "eatType": "bistro", "area": "old town", "familyFriendly": "no"}
    rng = random.Random(0)
    texts = {_realise(slots, rng) for _ in range(10_000)}
    expected = {
        "Larkspur is a bistro that is for adults only and is in the old town.",
        "There is a bistro called Larkspur that is located in the old town. It is not family friendly.",
        "Larkspur, a bistro, can be found in the old town. The place is for adults only.",
        "Larkspur is a bistro in the old town. It is for adults only.",
        "There is a bistro called Larkspur in the old town that is for adults only.",
        "In the old town you will find Larkspur, a bistro that is not family friendly.",
        "In the old town, Larkspur is a bistro. The place is not family friendly.",
        "Larkspur, a bistro in the old town, is for adults only.",
    }
    assert len(expected) == len(PLANS)
    assert not expected - texts


def test_articles_agree_with_the_next_word(folder: Path) -> None:
    text = " ".join(plain_texts(folder))
    assert " an expensive " in text
    assert not any(f" a {vowel}" in text.lower() for vowel in "aeiou")


@pytest.mark.launched
def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from lora_dist.data.synthetic import write_corpus\n"
        "write_corpus(pathlib.Path(sys.argv[1]), 7, 50)"
    )
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": "C", "PYTHONUTF8": "0"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / hash_seed)], env=environment, check=True)
    write_corpus(tmp_path / "other", seed=8, num_train_mrs=50)
    for name in FILES.values():
        first = (tmp_path / "0" / name).read_bytes()
        assert first.startswith(b"mr,ref\r\n")
        assert first == (tmp_path / "1" / name).read_bytes()
        assert first != (tmp_path / "other" / name).read_bytes()


def test_plain_texts_are_the_training_references_only(folder: Path) -> None:
    texts = plain_texts(folder)
    assert texts == [example.reference for example in load_split(DataSettings(dir=folder), "train")]
    assert not any("[" in text for text in texts)
