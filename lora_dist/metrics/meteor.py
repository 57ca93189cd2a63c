"""METEOR 1.5 with the Java program of coco-caption and the E2E challenge.

The program aligns each output with its references and prints the statistics of the best alignment. The score is
computed here from these statistics by the program's own formula; its EVAL command gives the same digits. This saves a
second pass through the program and allows sums over any subset of instances.

Denkowski and Lavie (2014), "Meteor Universal: Language Specific Translation Evaluation for Any Target Language",
section 3, with the English parameters of the task "rank". The corpus score follows coco-caption's modified jar: the
statistics of all instances are summed and scored once.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lora_dist.errors import UserError
from lora_dist.metrics.java import find_jar, run_java
from lora_dist.metrics.ptb import LINE_BREAKS

_JAR = "meteor/meteor-1.5.jar"
_PARAPHRASE_TABLE = "meteor/data/paraphrase-en.gz"
_NUM_STATISTICS = 23
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""Weights of exact, stem, synonym and paraphrase matches."""
_MAX_PROCESSES = 4
_MIN_INSTANCES_PER_PROCESS = 100
"""Starting a process takes as long as scoring about 100 instances."""


def paraphrase_table_path() -> Path:
    """Return the path of the program's paraphrase table.

    Raises:
        UserError: if pycocoevalcap is not installed.
    """
    return find_jar(_PARAPHRASE_TABLE)


def alignment_statistics(
    references: Sequence[Sequence[str]], outputs: Sequence[str], paraphrases: bytes | None = None
) -> NDArray[np.float64]:
    """Compute the statistics of each output's best alignment, shape (outputs, 23).

    The columns, as the program prints them:

    - 0-1: tokens of output and reference
    - 2-3: function words of output and reference
    - 4-19: matched content and function words of output and reference, for exact, stem, synonym and paraphrase matches
    - 20: chunks
    - 21-22: matched tokens of output and reference

    Args:
        references: The references of each output, as `ptb.ptb_tokenize` returns them.
        outputs: The outputs, likewise.
        paraphrases: The gzipped paraphrase table (see `paraphrases.filter_paraphrases`); None uses the program's own.

    Raises:
        UserError: if Java fails.
    """
    requests = [_score_request(group, output) for group, output in zip(references, outputs, strict=True)]
    processes = max(1, min(os.cpu_count() or 1, _MAX_PROCESSES, len(requests) // _MIN_INSTANCES_PER_PROCESS))
    statistics = np.empty((len(requests), _NUM_STATISTICS))
    with TemporaryDirectory(prefix="lora-dist-") as name, ThreadPoolExecutor(processes) as pool:
        folder = Path(name)
        arguments: list[str | Path] = ["-jar", find_jar(_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
        if paraphrases is not None:
            (folder / "paraphrases.gz").write_bytes(paraphrases)
            arguments += ["-a", "paraphrases.gz"]
        shards = [requests[first::processes] for first in range(processes)]
        answers = pool.map(lambda shard: run_java(arguments, "\n".join(shard) + "\n", folder=folder), shards)
        for first, (shard, stdout) in enumerate(zip(shards, answers, strict=True)):
            statistics[first::processes] = _parse_statistics(stdout, len(shard))
    return statistics


def _score_request(references: Sequence[str], output: str) -> str:
    # "|||" separates the fields of a request. coco-caption removes it from outputs only, so a reference that contains
    # it counts as several references.
    output = output.replace("|||", "").replace("  ", " ")
    return LINE_BREAKS.sub(" ", " ||| ".join(("SCORE", *references, output)))


def _parse_statistics(stdout: str, num_requests: int) -> NDArray[np.float64]:
    lines = stdout.splitlines()
    if len(lines) != num_requests or any(line.count(" ") != _NUM_STATISTICS - 1 for line in lines):
        raise UserError(
            f"METEOR answered {num_requests} requests with {len(lines)} lines, the last of which is {lines[-1:]}"
        )
    return np.array([line.split() for line in lines], dtype=np.float64)


def sentence_meteor(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute METEOR from each row of alignment statistics, 0 to 1, shape (rows,).

    Denkowski and Lavie (2014), section 3: weighted precision and recall, their harmonic mean with `alpha`, and the
    fragmentation penalty gamma * (chunks / matches) ** beta. A complete match in one chunk has no penalty.
    """
    lengths, function_words = statistics[:, 0:2], statistics[:, 2:4]
    # Axes: instance, matcher, content or function word, output or reference.
    matches = statistics[:, 4:20].reshape(-1, 4, 2, 2)
    chunks, matched_tokens = statistics[:, 20], statistics[:, 21:23]
    content, function = np.moveaxis(np.einsum("imcs,m->ics", matches, _MATCHER_WEIGHTS), 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        matched = _DELTA * content + (1 - _DELTA) * function
        precision, recall = (matched / (_DELTA * (lengths - function_words) + (1 - _DELTA) * function_words)).T
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = np.where(_is_complete_match(statistics), 0.0, chunks / matched_tokens.mean(axis=1))
        scores = f_mean * (1 - _GAMMA * fragmentation**_BETA)
    return np.where(np.isnan(scores), 0.0, np.maximum(scores, 0.0))


def corpus_meteor(statistics: NDArray[np.float64]) -> float:
    """Compute METEOR of all instances together, 0 to 1, from the summed statistics; not the mean over instances."""
    total = statistics.sum(axis=0)
    # The single chunk of a complete match does not count as fragmentation.
    total[20] -= _is_complete_match(statistics).sum()
    return float(sentence_meteor(total[None])[0])


def _is_complete_match(statistics: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the rows in which all tokens of output and reference match in one chunk, shape (rows,)."""
    matched_all = (statistics[:, 21:23] == statistics[:, 0:2]).all(axis=1)
    complete: NDArray[np.bool_] = matched_all & (statistics[:, 20] == 1)
    return complete
