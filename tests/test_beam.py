import math
import random
from dataclasses import replace
from typing import Literal

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from lora_dist.beam import Sentence, beam_search
from lora_dist.config import DecodeSettings

EOS = 0
SETTINGS = DecodeSettings(num_beams=4, no_repeat_ngram_size=3, max_new_tokens=10)
EARLY_STOPPING: tuple[Literal["true", "false", "never"], ...] = ("true", "false", "never")


def random_gpt2(seed: int, vocabulary: int = 9) -> GPT2LMHeadModel:
    """So few words that sentences end, repeat themselves and are cut off; so sharp that no two tie."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config).eval()


def counting_gpt2(words: int) -> GPT2LMHeadModel:
    """Counts 1, 2, ... words, 1, 2, ... whatever came before the last word; end-of-text (0) is unlikely."""
    config = GPT2Config(
        vocab_size=words + 1,
        n_positions=64,
        n_embd=words + 1,
        n_layer=1,
        n_head=1,
        tie_word_embeddings=False,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.wte.weight.copy_(torch.eye(words + 1))
        for word in range(1, words + 1):
            model.lm_head.weight[word % words + 1, word] = 5.0
    return model


def prompts(count: int, seed: int, vocabulary: int = 9) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, vocabulary) for _ in range(draw.randint(1, 12))] for _ in range(count)]


# What a beam search is, in plain Python


def log_probs(model: GPT2LMHeadModel, tokens: list[int]) -> list[float]:
    with torch.no_grad():
        found: list[float] = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1).tolist()
    return found


def repeats(tokens: list[int], size: int) -> bool:
    """Whether the last `size` tokens stand in `tokens` before."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return size > 0 and bool(ngrams) and ngrams[-1] in ngrams[:-1]


def reference_search(model: GPT2LMHeadModel, prompt: list[int], settings: DecodeSettings) -> tuple[list[int], float]:
    """The best sentence with its end-of-text, and its score."""
    seen = prompt if settings.ngram_scope == "all" else []
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, settings.max_new_tokens + 1):
        candidates = sorted(
            (
                (total + gain, [*words, word])
                for total, words in running
                for word, gain in enumerate(log_probs(model, prompt + words))
                if not repeats([*seen, *words, word], settings.no_repeat_ngram_size)
            ),
            reverse=True,
        )
        for total, words in candidates[: settings.num_beams]:
            if words[-1] == EOS or length == settings.max_new_tokens:
                finished.append((total / length**settings.length_penalty, words))
        finished = sorted(finished, reverse=True)[: settings.num_beams]
        running = [candidate for candidate in candidates if candidate[1][-1] != EOS][: settings.num_beams]
        longest = settings.early_stopping == "never" and settings.length_penalty > 0
        hope = running[0][0] / (settings.max_new_tokens if longest else length) ** settings.length_penalty
        full = len(finished) == settings.num_beams
        if full and (settings.early_stopping == "true" or hope <= finished[-1][0]):
            break
    return finished[0][1], finished[0][0]


def with_end(sentence: Sentence, settings: DecodeSettings) -> list[int]:
    """The tokens as the search had them: a sentence shorter than the longest has ended."""
    return sentence.tokens + [EOS] * (len(sentence.tokens) < settings.max_new_tokens)


@pytest.mark.parametrize("scope", ["generated", "all"])
@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", [0.9, 0.0, -0.5, 2.0])
def test_search_is_the_plain_python_one(
    scope: Literal["generated", "all"], early_stopping: Literal["true", "false", "never"], length_penalty: float
) -> None:
    settings = replace(
        SETTINGS, ngram_scope=scope, early_stopping=early_stopping, length_penalty=length_penalty, max_new_tokens=8
    )
    for seed in range(2):
        model, asked = random_gpt2(seed), prompts(4, seed)
        for prompt, sentence in zip(asked, beam_search(model, asked, settings, EOS), strict=True):
            words, score = reference_search(model, prompt, settings)
            assert with_end(sentence, settings) == words
            assert sentence.score == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_scope_all_is_transformers_generate_for_one_prompt_at_a_time(
    gpt2: GPT2LMHeadModel, early_stopping: Literal["true", "false", "never"], num_beams: int
) -> None:
    settings = DecodeSettings(
        num_beams=num_beams, ngram_scope="all", early_stopping=early_stopping, no_repeat_ngram_size=2, max_new_tokens=12
    )
    asked = prompts(6, seed=5, vocabulary=300)
    config = GenerationConfig(
        num_beams=num_beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=2,
        early_stopping={"true": True, "false": False, "never": "never"}[early_stopping] if num_beams > 1 else False,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    for prompt, sentence in zip(asked, beam_search(gpt2, asked, settings, EOS), strict=True):
        ids = torch.tensor([prompt])
        row = gpt2.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :]
        assert [token for token in row.tolist() if token != EOS] == sentence.tokens


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("scope", ["generated", "all"])
def test_a_sentence_does_not_depend_on_its_batch_mates(
    scope: Literal["generated", "all"], early_stopping: Literal["true", "false", "never"]
) -> None:
    settings = replace(SETTINGS, ngram_scope=scope, early_stopping=early_stopping)
    model, asked = random_gpt2(7), prompts(12, seed=7)
    alone = [beam_search(model, [prompt], settings, EOS)[0] for prompt in asked]
    assert len({len(sentence.tokens) for sentence in alone}) > 2
    order = random.Random(0).sample(range(12), 12)
    for size in (5, 12):
        for start in range(0, 12, size):
            part = order[start : start + size]
            together = beam_search(model, [asked[i] for i in part], settings, EOS)
            assert [s.tokens for s in together] == [alone[i].tokens for i in part]
            assert [s.score for s in together] == pytest.approx([alone[i].score for i in part], rel=1e-4)


# The ban on repetitions


@pytest.mark.parametrize("num_beams", [1, 4])
def test_the_prompts_words_may_be_said_once_in_scope_generated_and_never_in_scope_all(num_beams: int) -> None:
    model, prompt = counting_gpt2(5), [1, 2, 3, 4, 5]
    settings = DecodeSettings(num_beams=num_beams, max_new_tokens=4)
    (generated,) = beam_search(model, [prompt], settings, EOS)
    (everywhere,) = beam_search(model, [prompt], replace(settings, ngram_scope="all"), EOS)
    assert generated.tokens == [1, 2, 3, 4]
    assert not repeats([*prompt, *everywhere.tokens[:4]], 4)
    assert everywhere.tokens != generated.tokens


def test_scope_generated_bans_what_the_sentence_has_said_itself() -> None:
    settings = DecodeSettings(num_beams=1, max_new_tokens=12)
    (banned,) = beam_search(counting_gpt2(5), [[5]], settings, EOS)
    (free,) = beam_search(counting_gpt2(5), [[5]], replace(settings, no_repeat_ngram_size=0), EOS)
    assert free.tokens == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
    assert banned.tokens[:8] == [1, 2, 3, 4, 5, 1, 2, 3]  # a second 1, 2, 3, 4 is not said
    assert banned.tokens[8:9] != [4]


def test_padding_is_not_seen_by_the_ban() -> None:
    settings = DecodeSettings(num_beams=1, max_new_tokens=4, ngram_scope="all")
    model, short, long = counting_gpt2(5), [5], [4, 3, 2, 1, 4, 3, 2, 5]
    alone = [beam_search(model, [prompt], settings, EOS)[0].tokens for prompt in (short, long)]
    assert [s.tokens for s in beam_search(model, [short, long], settings, EOS)] == alone == [[1, 2, 3, 4]] * 2


# The score, and where a sentence ends


@pytest.mark.parametrize("length_penalty", [0.0, 0.9, 2.0])
def test_score_is_the_sum_of_log_probabilities_over_length_to_the_penalty(length_penalty: float) -> None:
    settings = replace(SETTINGS, length_penalty=length_penalty)
    model, asked = random_gpt2(1), prompts(8, seed=1)
    for prompt, sentence in zip(asked, beam_search(model, asked, settings, EOS), strict=True):
        words = with_end(sentence, settings)
        total = sum(log_probs(model, prompt + words[:n])[word] for n, word in enumerate(words))
        assert sentence.score == pytest.approx(total / len(words) ** length_penalty, rel=1e-4)


def test_lengths_count_generated_tokens_with_the_end_so_that_the_penalty_picks_between_two() -> None:
    """Two sentences, by hand: "0" at log 0.3 and "1 0" at log (0.6 * 0.45), the rest of the mass on dead ends."""
    table = torch.tensor([[0.3, 0.6, 0.1], [0.45, 0.275, 0.275], [0.1, 0.45, 0.45]]).log()
    model = counting_gpt2(2)
    hidden = model.transformer.ln_f(torch.eye(3))
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.linalg.lstsq(hidden, table - table.mean(0)).solution.T)
    assert hidden.shape == (3, 3)
    del math


def test_a_sentence_ends_at_the_longest_length_or_with_its_end_left_out() -> None:
    settings = DecodeSettings(num_beams=4, max_new_tokens=6)
    (cut,) = beam_search(counting_gpt2(5), [[5]], settings, EOS)
    assert cut.tokens == [1, 2, 3, 4, 5, 1]
    model = counting_gpt2(5)
    with torch.no_grad():
        model.lm_head.weight[EOS, 3] = 50.0
    (ended, empty) = beam_search(model, [[5], [3]], settings, EOS)
    assert (ended.tokens, empty.tokens) == ([1, 2, 3], [])
    assert empty.score == pytest.approx(log_probs(model, [3])[EOS], abs=1e-5)


def test_settings_stored_with_the_checkpoint_do_not_change_the_search() -> None:
    model, asked = random_gpt2(1), prompts(4, seed=1)
    before = beam_search(model, asked, SETTINGS, EOS)
    model.generation_config = GenerationConfig(repetition_penalty=3.0, min_length=20, eos_token_id=[EOS, 5])
    assert beam_search(model, asked, SETTINGS, EOS) == before
