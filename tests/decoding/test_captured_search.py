"""The search as a GPU makes it, in blocks of steps that are graphs, here on a CPU with a stand-in for the graphs."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from recorded_graph import RecordedGraphs, graphs_on_a_cpu
from search_models import EARLY_STOPPING, EOS, EarlyStopping, Scope, prompts, random_gpt2
from transformers import GPT2LMHeadModel

from lora_dist.config import DecodeSettings
from lora_dist.decoding.beam_search import beam_search
from lora_dist.decoding.kv_cache import DecodingModel, KVCache, lay_out
from lora_dist.model.kernels import cuda

SETTINGS = DecodeSettings(num_beams=3, no_repeat_ngram_size=3, max_new_tokens=30)


def on_a_gpu(gpt2: GPT2LMHeadModel) -> DecodingModel:
    return lay_out(copy.deepcopy(gpt2))


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RecordedGraphs]]:
    monkeypatch.setattr(cuda, "CACHE_STEP", 8)  # so that the cache of a short search grows
    with graphs_on_a_cpu(cuda) as made:
        yield made


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("scope", ["generated", "all"])
def test_captured_steps_find_what_eager_ones_and_a_cpu_find(
    scope: Scope, early_stopping: EarlyStopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, ngram_scope=scope, early_stopping=early_stopping)
    monkeypatch.setattr(cuda, "CACHE_STEP", 8)
    for seed, beams in ((3, 3), (6, 5)):
        gpt2, asked, settings = random_gpt2(seed), prompts(11, seed), replace(settings, num_beams=beams)
        expected = beam_search(lay_out(copy.deepcopy(gpt2)), asked, settings, EOS)
        with graphs_on_a_cpu(cuda) as recorders:
            eager = beam_search(replace(on_a_gpu(gpt2), captured=False), asked, settings, EOS)
            assert not recorders
            captured = beam_search(on_a_gpu(gpt2), asked, settings, EOS)
        assert captured == eager
        assert len(recorders[0].replayed) > 8
        assert recorders[0].released >= 1
        for ours, theirs in zip(captured, expected, strict=True):
            assert [s.tokens for s in ours] == [s.tokens for s in theirs]
            assert [s.score for s in ours] == pytest.approx([s.score for s in theirs], rel=1e-4)


def test_a_graph_is_recorded_anew_when_prompts_leave_or_the_cache_grows_and_at_no_other_time(
    recorders: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []

    def noting(name: str) -> None:
        method: Callable[..., Any] = getattr(KVCache, name)

        def noted(self: KVCache, *arguments: Any) -> Any:
            moves.append(name)
            return method(self, *arguments)

        monkeypatch.setattr(KVCache, name, noted)

    noting("keep")
    noting("_grow")
    beam_search(on_a_gpu(random_gpt2(3)), prompts(11, 3), SETTINGS, EOS)
    assert set(moves) == {"keep", "_grow"}
    assert 1 < len(recorders[0].recorded) <= len(moves)


def test_the_cache_is_as_large_as_what_beams_can_see(recorders: list[RecordedGraphs]) -> None:
    cache = KVCache(on_a_gpu(random_gpt2(3)), [[1, 2, 3], [4]], beams=4, max_new_tokens=40)
    tokens, first = torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    rooms = []
    for _ in range(5):
        cache.begin_block(8)
        rooms.append(cache._entries[0].shape[3])
        for _ in range(8):
            cache.step(tokens)
            cache.follow(first)  # every beam continues the first one, so of each step one entry stays visible
    assert rooms == [40, 48, 56, 64, 72]  # 3 + 32, then 8 more of each block, in multiples of 8
    assert max(rooms) < 3 + 4 * 40


def test_what_cannot_be_captured_is_searched_eagerly_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(RecordedGraphs):
        def record(self, run: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
            run()
            raise RuntimeError("operation not permitted when stream is capturing")

    gpt2, asked = random_gpt2(3), prompts(5, 3)
    with graphs_on_a_cpu(cuda, Refusing), caplog.at_level(logging.WARNING, "lora_dist"):
        found = beam_search(on_a_gpu(gpt2), asked, SETTINGS, EOS)
        assert found == beam_search(replace(on_a_gpu(gpt2), captured=False), asked, SETTINGS, EOS)
    assert "decoding runs eagerly, as capturing CUDA graphs failed: operation not permitted" in caplog.text
