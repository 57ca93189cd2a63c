import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from search_models import EARLY_STOPPING, EOS, EarlyStopping, Scope, config_of, prompts, random_gpt2
from torch import Tensor
from transformers import GenerationConfig, GPT2LMHeadModel

from lora_dist.config import DecodeSettings
from lora_dist.decoding.beam_search import Sentence
from lora_dist.decoding.beam_search import beam_search as n_best
from lora_dist.decoding.kv_cache import lay_out

SETTINGS = DecodeSettings(num_beams=3, no_repeat_ngram_size=3, max_new_tokens=10)


def bigram_gpt2(logits: Tensor) -> GPT2LMHeadModel:
    """A GPT-2 that gives row i of logits (vocabulary, vocabulary) after token i, whatever came before."""
    vocabulary = len(logits)
    model = GPT2LMHeadModel(config_of(vocabulary=vocabulary, width=vocabulary, layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        one_hot = torch.eye(vocabulary)
        deviation = (one_hot[0].var(correction=0) + model.config.layer_norm_epsilon).sqrt()
        model.transformer.wte.weight.copy_(one_hot)
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.ln_f.bias.fill_(1 / vocabulary / deviation)  # undoes the centring
        model.lm_head.weight.copy_(deviation * logits.t())
    return model


def counting_gpt2() -> GPT2LMHeadModel:
    """Counts 1, 2, 3, 4, 5, 1, 2, ...; end-of-text (0) and the rest are unlikely."""
    logits = torch.zeros(6, 6)
    logits[torch.arange(6), torch.tensor([1, 2, 3, 4, 5, 1])] = 5.0
    return bigram_gpt2(logits)


# What a beam search is, in plain Python


def log_probs(model: GPT2LMHeadModel, texts: list[list[int]]) -> list[list[float]]:
    """For each of some equally long texts the log-probability of each next token."""
    with torch.no_grad():
        found: list[list[float]] = model(torch.tensor(texts)).logits[:, -1].double().log_softmax(-1).tolist()
    return found


def repeats(tokens: list[int], size: int) -> bool:
    """Whether the last `size` tokens occur earlier in `tokens`."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return size > 0 and bool(ngrams) and ngrams[-1] in ngrams[:-1]


def reference_search(model: GPT2LMHeadModel, prompt: list[int], settings: DecodeSettings) -> tuple[list[int], float]:
    """The best sentence with its end-of-text, and its score."""
    history = prompt if settings.ngram_scope == "all" else []
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, settings.max_new_tokens + 1):
        gains = log_probs(model, [prompt + tokens for _, tokens in running])
        candidates = sorted(
            (
                (total + gain, [*tokens, token])
                for (total, tokens), row in zip(running, gains, strict=True)
                for token, gain in enumerate(row)
                if not repeats([*history, *tokens, token], settings.no_repeat_ngram_size)
            ),
            reverse=True,
        )
        for total, tokens in candidates[: settings.num_beams]:
            if tokens[-1] == EOS or length == settings.max_new_tokens:
                finished.append((total / length**settings.length_penalty, tokens))
        finished = sorted(finished, reverse=True)[: settings.num_beams]
        running = [candidate for candidate in candidates if candidate[1][-1] != EOS][: settings.num_beams]
        longest = settings.early_stopping == "never" and settings.length_penalty > 0
        bound = running[0][0] / (settings.max_new_tokens if longest else length) ** settings.length_penalty
        full = len(finished) == settings.num_beams
        if full and (settings.early_stopping == "true" or bound <= finished[-1][0]):
            break
    return finished[0][1], finished[0][0]


def beam_search(
    model: GPT2LMHeadModel, asked: list[list[int]], settings: DecodeSettings, eos_id: int
) -> list[Sentence]:
    """The best sentence of each prompt."""
    return [found[0] for found in n_best(lay_out(copy.deepcopy(model)), asked, settings, eos_id)]


def with_end(sentence: Sentence, settings: DecodeSettings) -> list[int]:
    """The tokens as the search counts them: a sentence shorter than the longest has ended."""
    return sentence.tokens + [EOS] * (len(sentence.tokens) < settings.max_new_tokens)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize(("scope", "length_penalty"), [("generated", 0.9), ("generated", -0.5), ("all", 2.0)])
def test_the_search_is_the_plain_python_one(scope: Scope, early_stopping: EarlyStopping, length_penalty: float) -> None:
    settings = replace(SETTINGS, ngram_scope=scope, early_stopping=early_stopping, length_penalty=length_penalty)
    for seed in (4, 6):
        model, asked = random_gpt2(seed), prompts(5, seed)
        for prompt, sentence in zip(asked, beam_search(model, asked, settings, EOS), strict=True):
            tokens, score = reference_search(model, prompt, settings)
            assert with_end(sentence, settings) == tokens
            assert sentence.score == pytest.approx(score, rel=1e-4)


def test_the_three_ways_to_stop_give_three_results() -> None:
    found = set()
    for early_stopping in EARLY_STOPPING:
        settings = replace(SETTINGS, early_stopping=early_stopping)
        sentences = [s for seed in (4, 6) for s in beam_search(random_gpt2(seed), prompts(5, seed), settings, EOS)]
        found.add(str(sentences))
    assert len(found) == 3


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_scope_all_is_transformers_generate_for_one_prompt_at_a_time(
    gpt2: GPT2LMHeadModel, early_stopping: EarlyStopping, num_beams: int
) -> None:
    settings = DecodeSettings(
        num_beams=num_beams, ngram_scope="all", early_stopping=early_stopping, no_repeat_ngram_size=2, max_new_tokens=12
    )
    asked = prompts(4, seed=5, vocabulary=300)
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


@pytest.mark.parametrize(("scope", "early_stopping"), [("generated", "true"), ("generated", "false"), ("all", "never")])
def test_a_sentence_does_not_depend_on_the_rest_of_its_batch(scope: Scope, early_stopping: EarlyStopping) -> None:
    settings = replace(SETTINGS, ngram_scope=scope, early_stopping=early_stopping)
    model, asked = random_gpt2(3), prompts(9, seed=3)
    separately = [beam_search(model, [prompt], settings, EOS)[0] for prompt in asked]
    assert len({len(sentence.tokens) for sentence in separately}) > 2
    order = random.Random(0).sample(range(9), 9)
    for size in (5, 9):
        for start in range(0, 9, size):
            part = order[start : start + size]
            together = beam_search(model, [asked[i] for i in part], settings, EOS)
            assert [s.tokens for s in together] == [separately[i].tokens for i in part]
            assert [s.score for s in together] == pytest.approx([separately[i].score for i in part], rel=1e-4)


# The ban on repetitions


@pytest.mark.parametrize("num_beams", [1, 4])
def test_the_prompts_ngrams_may_be_generated_in_scope_generated_and_never_in_scope_all(num_beams: int) -> None:
    model, prompt = counting_gpt2(), [1, 2, 3, 4, 5]
    settings = DecodeSettings(num_beams=num_beams, max_new_tokens=4)
    (generated,) = beam_search(model, [prompt], settings, EOS)
    (everywhere,) = beam_search(model, [prompt], replace(settings, ngram_scope="all"), EOS)
    assert generated.tokens == [1, 2, 3, 4]
    assert not repeats([*prompt, *everywhere.tokens[:4]], 4)
    assert everywhere.tokens != generated.tokens


def test_scope_generated_bans_the_ngrams_of_the_sentence_itself() -> None:
    settings = DecodeSettings(num_beams=1, max_new_tokens=12)
    (banned,) = beam_search(counting_gpt2(), [[5]], settings, EOS)
    (free,) = beam_search(counting_gpt2(), [[5]], replace(settings, no_repeat_ngram_size=0), EOS)
    assert free.tokens == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
    assert banned.tokens[:8] == [1, 2, 3, 4, 5, 1, 2, 3]  # 1, 2, 3, 4 does not occur twice
    assert banned.tokens[8:9] != [4]


def test_the_ban_ignores_padding() -> None:
    settings = DecodeSettings(num_beams=1, max_new_tokens=4, ngram_scope="all")
    model, short, long = counting_gpt2(), [5], [4, 3, 2, 1, 4, 3, 2, 5]
    separately = [beam_search(model, [prompt], settings, EOS)[0].tokens for prompt in (short, long)]
    assert [s.tokens for s in beam_search(model, [short, long], settings, EOS)] == separately == [[1, 2, 3, 4]] * 2


# The score, and where a sentence ends


@pytest.mark.parametrize("length_penalty", [0.0, 0.9, 2.0])
def test_the_score_is_the_sum_of_log_probabilities_over_length_to_the_penalty(length_penalty: float) -> None:
    settings = replace(SETTINGS, length_penalty=length_penalty)
    model, asked = random_gpt2(3), prompts(8, seed=3)
    for prompt, sentence in zip(asked, beam_search(model, asked, settings, EOS), strict=True):
        tokens = with_end(sentence, settings)
        total = sum(log_probs(model, [prompt + tokens[:n]])[0][token] for n, token in enumerate(tokens))
        assert sentence.score == pytest.approx(total / len(tokens) ** length_penalty, rel=1e-4)


@pytest.mark.parametrize(("length_penalty", "best"), [(0.0, []), (0.9, [1])])
def test_the_length_counts_generated_tokens_with_end_of_text(length_penalty: float, best: list[int]) -> None:
    # "<end>" scores log 0.48, "1 <end>" log(0.5 * 0.6) / 2 ** 0.9. With the prompt in the lengths, 5 and 6, or without
    # the end in them, "<end>" would win both times.
    probabilities = torch.tensor([[1.0, 1.0, 1.0], [0.6, 0.39, 0.01], [0.48, 0.5, 0.02]])
    settings = DecodeSettings(num_beams=2, length_penalty=length_penalty, max_new_tokens=4)
    (sentence,) = beam_search(bigram_gpt2(probabilities.log()), [[2, 2, 2, 2]], settings, EOS)
    assert sentence.tokens == best
    by_hand = math.log(0.5 * 0.6) / 2**0.9 if best else math.log(0.48)
    assert sentence.score == pytest.approx(by_hand, rel=1e-4)


def test_a_sentence_ends_at_the_longest_length_or_before_end_of_text() -> None:
    settings = DecodeSettings(num_beams=4, max_new_tokens=6, early_stopping="never")
    (cut,) = beam_search(counting_gpt2(), [[5]], settings, EOS)
    assert cut.tokens == [1, 2, 3, 4, 5, 1]
    model = counting_gpt2()
    with torch.no_grad():
        model.lm_head.weight[EOS, 3] = 50.0
    ended, empty = beam_search(model, [[5], [3]], settings, EOS)
    assert (ended.tokens, empty.tokens) == ([1, 2, 3], [])


def test_settings_stored_with_the_checkpoint_do_not_change_the_search() -> None:
    model, asked = random_gpt2(3), prompts(4, seed=3)
    before = beam_search(model, asked, SETTINGS, EOS)
    model.generation_config = GenerationConfig(repetition_penalty=3.0)
    assert beam_search(model, asked, SETTINGS, EOS) == before
