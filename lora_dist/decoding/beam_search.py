"""Beam search on one device for a batch of prompts.

The algorithm is that of transformers' `generate`: of the 2 K best candidates per step, the first K may finish a
sentence, and the best K that do not end are continued.

Steps are made in blocks. Within a block all shapes are the same and the host waits for nothing, so on a GPU a step is a
CUDA graph that is replayed; between blocks the host reads which prompts have finished.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_dist.config import DecodeSettings
from lora_dist.decoding import hypotheses
from lora_dist.decoding.hypotheses import Beams, Rules
from lora_dist.decoding.kv_cache import DecodingModel, KVCache
from lora_dist.errors import UserError, is_out_of_memory
from lora_dist.model.kernels.graphs import GraphRecorder

log = logging.getLogger(__name__)

FEWEST_REPLAYS = 2
"""Replays in a block from which recording a graph, which takes the host as long as a step, saves time."""


@dataclass(frozen=True)
class Sentence:
    """A hypothesis of the beam search."""

    tokens: list[int]
    """Generated token ids, without end-of-text."""
    score: float
    """Sum of log-probabilities in nats / length ** length_penalty, both including end-of-text if it was generated."""


def beam_search(
    model: DecodingModel, prompts: Sequence[Sequence[int]], settings: DecodeSettings, eos_id: int
) -> list[list[Sentence]]:
    """Search the best sentences of each prompt: one to `num_beams` finished hypotheses, best first.

    The other prompts of the batch change the result by rounding at most.

    Args:
        model: from `kv_cache.lay_out`.
        prompts: token ids of each prompt, at least one.
        settings: beams, penalties and limits.
        eos_id: id of the end-of-text token.

    Raises:
        UserError: if a sentence might exceed the model's positions.
        RuntimeError: if the batch is too large for the memory, see `errors.is_out_of_memory`.
    """
    check_room(model.positions, max(map(len, prompts)), settings)
    recorder = model.kernels.graph_recorder(model.device) if model.captured else None
    with torch.inference_mode():
        if recorder is not None:
            try:
                return _Search(model, prompts, settings, eos_id, recorder).run()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                log.warning("decoding runs eagerly, as capturing CUDA graphs failed: %s", error.__context__ or error)
            finally:
                recorder.release()
        return _Search(model, prompts, settings, eos_id, None).run()


def check_room(positions: int, longest: int, settings: DecodeSettings) -> None:
    """Refuse sentences that might exceed the model's `positions` after a prompt of `longest` tokens.

    Raises:
        UserError: if they might.
    """
    if longest + settings.max_new_tokens > positions:
        raise UserError(
            f"--decode.max-new-tokens is {settings.max_new_tokens}: after a prompt of {longest} tokens the model's "
            f"{positions} positions leave room for {max(0, positions - longest)}"
        )


class _Search:
    """One search: the cache, the hypotheses, and the graph of a step."""

    def __init__(
        self,
        model: DecodingModel,
        prompts: Sequence[Sequence[int]],
        settings: DecodeSettings,
        eos_id: int,
        recorder: GraphRecorder | None,
    ) -> None:
        """Compute the prompts and start their hypotheses.

        Args:
            model: see `beam_search`.
            prompts: see `beam_search`.
            settings: see `beam_search`.
            eos_id: see `beam_search`.
            recorder: records the graph of a step; None makes all steps eagerly.
        """
        self._kernels, self._settings, self._recorder = model.kernels, settings, recorder
        self._vocabulary: int = model.body.config.vocab_size
        self._rules = Rules(settings, eos_id, model.device)
        self._cache = KVCache(model, prompts, settings.num_beams, settings.max_new_tokens)
        self._beams = hypotheses.start(prompts, settings, model.device)
        self._length = torch.zeros(1, dtype=torch.long, device=model.device)
        """Tokens of the running hypotheses: (1,)."""
        self._replay: Callable[[], None] | None = None
        self._found: list[list[Sentence]] = [[] for _ in prompts]

    def run(self) -> list[list[Sentence]]:
        """Make the steps and return the finished sentences of each prompt, best first."""
        # At first there is one hypothesis per prompt, the empty one.
        self._extend(self._cache.logits[:, None])
        made, longest = 1, self._settings.max_new_tokens
        while made < longest:
            done = self._beams.done.tolist()  # the host waits for the device
            if all(done):
                break
            if sum(done) >= self._kernels.LEAVE_AT * len(done):
                self._drop_finished()
            steps = min(self._kernels.STEPS_PER_BLOCK, longest - made)
            self._make(steps)
            made += steps
        self._collect(self._beams)
        return self._found

    def _make(self, steps: int) -> None:
        """Make a block of steps."""
        if self._cache.begin_block(steps):
            self._forget_graph()
        if self._recorder is not None and self._replay is None and steps > FEWEST_REPLAYS:
            self._replay = self._recorder.record(self._step)  # which also makes one step
            steps -= 1
        for _ in range(steps):
            (self._replay or self._step)()

    def _step(self) -> None:
        self._extend(self._cache.step(self._beams.history[..., -1]))

    def _extend(self, logits: Tensor) -> None:
        """Extend the first hypotheses of each prompt by the best tokens of `logits` (prompts, hypotheses, columns)."""
        beams, settings = self._beams, self._settings
        history, running = beams.history[:, : logits.shape[1]], beams.running[:, : logits.shape[1]]
        banned = hypotheses.repetitions(history, settings.no_repeat_ngram_size)
        best = hypotheses.candidates(self._kernels, logits, self._vocabulary, running, banned, k=2 * settings.num_beams)
        self._cache.follow(hypotheses.advance(beams, *best, self._length, self._rules))
        self._length += 1

    def _drop_finished(self) -> None:
        """Collect the sentences of finished prompts, and continue without these prompts."""
        self._collect(self._beams.take(self._beams.done))
        left = (~self._beams.done).nonzero()[:, 0]
        self._beams = self._beams.take(left)
        self._cache.keep(left)
        self._forget_graph()

    def _forget_graph(self) -> None:
        """Free the graph, whose tensors are no longer those of the search."""
        if self._recorder is not None and self._replay is not None:
            self._recorder.release()
        self._replay = None

    def _collect(self, beams: Beams) -> None:
        """Write the finished sentences of `beams` to the entries of their prompts."""
        fields = (beams.rows, beams.finished, beams.sentences, beams.lengths)
        for row, *each in zip(*(field.tolist() for field in fields), strict=True):
            found = []
            for score, text, length in zip(*each, strict=True):
                tokens = text[len(text) - length :]
                if score > -torch.inf:
                    found.append(Sentence(tokens[:-1] if tokens[-1] == self._rules.eos_id else tokens, score))
            self._found[row] = found
