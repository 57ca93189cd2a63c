"""METEOR 1.5 by the Java program that coco-caption and the E2E challenge use.

The program aligns each output with its references and prints the counts of the best alignment; the score is computed
here from those counts, as the program itself does it (its EVAL command gives the same digits), because that needs no
second round and lets the counts be added up for any selection of instances.

Denkowski and Lavie (2014), "Meteor Universal: Language Specific Translation Evaluation for Any Target Language",
section 3, with English parameters and task "rank". Adding up follows coco-caption's modified jar: the counts of all
instances are summed and scored once.
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
_TABLE = "meteor/data/paraphrase-en.gz"
_FIELDS = 23
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""Of exact, stem, synonym and paraphrase matches."""
_MOST_PROCESSES = 4
_LEAST_INSTANCES = 100
"""For one process: starting it takes as long as scoring about so many."""


def paraphrase_table() -> Path:
    """The paraphrase table that comes with the program.

    Raises:
        UserError: if pycocoevalcap is not installed.
    """
    return find_jar(_TABLE)


def statistics(
    references: Sequence[Sequence[str]], outputs: Sequence[str], paraphrases: bytes | None = None
) -> NDArray[np.float64]:
    """The counts of each output's best alignment: one row an instance, 23 numbers.

    They are the length and the number of function words (output, reference), the matched content and function words
    of either side for exact, stem, synonym and paraphrase matches, the chunks, and the matched words of either side.

    Args:
        references: The references of each output, as `ptb.tokenize` returns them.
        outputs: The outputs, likewise.
        paraphrases: The paraphrase table to use, gzipped (see `paraphrases.select`); None takes the program's own.

    Raises:
        UserError: if Java fails.
    """
    requests = [_request(group, output) for group, output in zip(references, outputs, strict=True)]
    processes = max(1, min(os.cpu_count() or 1, _MOST_PROCESSES, len(requests) // _LEAST_INSTANCES))
    rows = np.empty((len(requests), _FIELDS))
    with TemporaryDirectory(prefix="lora-dist-") as name, ThreadPoolExecutor(processes) as pool:
        folder = Path(name)
        arguments: list[str | Path] = ["-jar", find_jar(_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
        if paraphrases is not None:
            (folder / "paraphrases.gz").write_bytes(paraphrases)
            arguments += ["-a", "paraphrases.gz"]
        shares = [requests[first::processes] for first in range(processes)]
        printed = pool.map(lambda share: run_java(arguments, "\n".join(share) + "\n", folder=folder), shares)
        for first, (share, text) in enumerate(zip(shares, printed, strict=True)):
            rows[first::processes] = _parse(text, len(share))
    return rows


def _request(references: Sequence[str], output: str) -> str:
    # The bars separate the fields of a request, so coco-caption takes them out of an output; a reference with bars
    # counts as several references.
    output = output.replace("|||", "").replace("  ", " ")
    return LINE_BREAKS.sub(" ", " ||| ".join(("SCORE", *references, output)))


def _parse(printed: str, expected: int) -> NDArray[np.float64]:
    lines = printed.splitlines()
    if len(lines) != expected or any(line.count(" ") != _FIELDS - 1 for line in lines):
        raise UserError(f"METEOR answered {expected} requests with {len(lines)} lines, the last of them {lines[-1:]}")
    return np.array([line.split() for line in lines], dtype=np.float64)


def sentence_scores(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """METEOR of each row of counts, 0 to 1.

    Denkowski and Lavie (2014), section 3: weighted precision and recall, their harmonic mean with `alpha`, and the
    fragmentation penalty gamma * (chunks / matches) ** beta, which a wholly matched output in one chunk is spared.
    """
    lengths, function_words = statistics[:, 0:2], statistics[:, 2:4]
    # Axes: instance, kind of match, content or function word, output or reference.
    stages = statistics[:, 4:20].reshape(-1, 4, 2, 2)
    chunks, words = statistics[:, 20], statistics[:, 21:23]
    content, function = np.moveaxis(np.einsum("iksw,k->isw", stages, _WEIGHTS), 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        matched = _DELTA * content + (1 - _DELTA) * function
        precision, recall = (matched / (_DELTA * (lengths - function_words) + (1 - _DELTA) * function_words)).T
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = np.where(_complete(statistics), 0.0, chunks / words.mean(axis=1))
        scores = mean * (1 - _GAMMA * fragmentation**_BETA)
    return np.where(np.isnan(scores), 0.0, np.maximum(scores, 0.0))


def score(statistics: NDArray[np.float64]) -> float:
    """METEOR of all instances together, 0 to 1: the score of the summed counts, not the mean of the scores."""
    total = statistics.sum(axis=0)
    # A wholly matched output's single chunk does not count as a break.
    total[20] -= _complete(statistics).sum()
    return float(sentence_scores(total[None])[0])


def _complete(statistics: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows are of an output whose words, and the reference's, all match in one chunk."""
    complete: NDArray[np.bool_] = (statistics[:, 21:23] == statistics[:, 0:2]).all(axis=1) & (statistics[:, 20] == 1)
    return complete
