"""Scores of the dev set by generation, for a training that asks for them after each epoch."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_dist.config import Settings
from lora_dist.data.e2e import group_by_mr, load_split, one_line
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.decode import check_groups
from lora_dist.decoding.decoder import load_decoder
from lora_dist.decoding.shard import chunk_tokens, decode_shard, smaller_chunk_tokens, smallest_memory
from lora_dist.distributed.collectives import SharedCounter, first_on_node, gather_by_index, on_main
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.world import World
from lora_dist.errors import UserError
from lora_dist.metrics import mteval, suite
from lora_dist.run_dir import ADAPTER_WEIGHTS

log = logging.getLogger(__name__)


class DevScorer:
    """Decodes the dev set's meaning representations (MRs) with an adapter as `decode` does the test set's, and scores.

    The decoding model is loaded for each scoring and freed after it. The one in training is partitioned under ZeRO-3,
    and in bf16 its weights are rounded before the adapter is merged, so it would not give the sentences of `decode`.
    """

    def __init__(self, settings: Settings, world: World) -> None:
        """Load the dev set. Collective: call on all ranks.

        Raises:
            UserError: on every rank, if it cannot be read or decoded.
        """
        self._settings, self._world = settings, world
        self._chunk_tokens = 0  # of the first scoring, or smaller if it did not fit
        self._groups = group_by_mr(first_on_node(world, lambda: load_split(settings.data, "dev")))
        first_on_node(world, lambda: check_groups(settings, self._groups))

    def __call__(self, adapter: Path, asked: Callable[[], bool], end_if_asked: Callable[[], None]) -> dict[str, float]:
        """Return the scores to 6 decimals, as `score_outputs` does. Collective: call on all ranks.

        Args:
            adapter: folder of the adapter.
            asked: whether this rank has received a signal; all ranks then decode no further.
            end_if_asked: raises on every rank if any of them has received a signal. Collective: called on all ranks.
        """
        outputs = self._decode(adapter, asked, end_if_asked)
        self._world.watchdog.progress("scoring the dev set")
        references = [[one_line(reference) for reference in group.references] for group in self._groups]
        return on_main(self._world, lambda: score_outputs(references, outputs))

    def _decode(self, adapter: Path, asked: Callable[[], bool], end_if_asked: Callable[[], None]) -> list[str]:
        """Return the best sentence of each MR; the arguments are those of a call."""
        world = self._world
        require_shared(world, adapter)  # waits until the folder appears on every machine
        digest = hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
        require_agreement(world, {"the SHA-256 of the epoch's adapter": digest})
        decoder = first_on_node(world, lambda: load_decoder(self._settings, adapter, world.device))
        mrs = [group.mr for group in self._groups]
        prompts = encode_prompts(decoder.tokenizer, mrs, self._settings.data.linearization)
        asking = SharedCounter(world)
        memory = smallest_memory(world)
        self._chunk_tokens = self._chunk_tokens or chunk_tokens(decoder.settings, decoder.model, prompts, memory)
        while (
            found := decode_shard(decoder, prompts, self._chunk_tokens, {}, world, lambda: asking.add(int(asked())) > 0)
        ) is None:
            self._chunk_tokens = smaller_chunk_tokens(self._settings.decode, prompts, self._chunk_tokens)
        end_if_asked()
        return [best for (best, _), *_ in gather_by_index(world, found, len(prompts))]


def score_outputs(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> dict[str, float]:
    """Compute the five scores to 6 decimals, as in scores.json; only BLEU and NIST, with a warning, where Java fails.

    Args:
        references: one or more references per output.
        outputs: the outputs.

    Raises:
        UserError: if BLEU or NIST is undefined.
    """
    try:
        scores = suite.score(references, outputs)
    except UserError as error:
        log.warning("dev scores are BLEU and NIST only: %s", error)
        statistics = mteval.ngram_statistics(references, outputs, "perl")
        scores = {
            "BLEU": mteval.corpus_bleu(statistics, "perl"),
            "NIST": mteval.corpus_nist(statistics, "perl"),
        }
    return {name: round(value, 6) for name, value in scores.items()}
