"""Ledgers: what each rank has decoded so far, so that a restart can skip it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lora_dist.files import write_text
from lora_dist.run_dir import RunDir

Found = list[tuple[str, float]]
"""The sentences of one meaning representation (MR) with their scores, best first."""


def open_ledger(run: RunDir, signature: dict[str, Any]) -> dict[int, Found]:
    """Read what ranks of any earlier world have decoded under this signature, by index of the MR.

    Ledgers and outputs of another signature are deleted.
    """
    folder = run.ledger(0).parent
    folder.mkdir(parents=True, exist_ok=True)
    head = folder / "signature.json"
    if not head.is_file() or head.read_bytes() != json.dumps(signature).encode():
        # Scores and texts of other settings would not belong to the new outputs.
        outputs = (run.outputs, run.outputs_text, run.decode_signature, run.decode_timing)
        for file in (*folder.glob("rank-*.jsonl"), *outputs, run.scores, run.sentence_scores):
            file.unlink(missing_ok=True)
        write_text(head, json.dumps(signature))
    done: dict[int, Found] = {}
    for file in sorted(folder.glob("rank-*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            # A kill may have cut a line short, or a power cut left bytes that are none of ours.
            with suppress(ValueError, TypeError, RecursionError):
                index, sentences = json.loads(line.decode())
                found = [(text, float(score)) for text, score in sentences if isinstance(text, str)]
                if type(index) is int and found:
                    done.setdefault(index, found)
    return done


def resumed_chunk_tokens(run: RunDir, signature: Mapping[str, Any], size: int) -> int:
    """Return the size of a chunk of an interrupted decoding that had halved `size` for want of memory, else `size`.

    Args:
        run: the run.
        signature: signature of the decoding, without the size of a chunk.
        size: tokens of a chunk to begin with.
    """
    with suppress(OSError, ValueError, TypeError, AttributeError, LookupError):
        head = json.loads((run.ledger(0).parent / "signature.json").read_bytes())
        found = head.pop("chunk_tokens")
        if head == dict(signature) and type(found) is int and any(found == size >> n for n in range(size.bit_length())):
            return found
    return size


def append_to_ledger(run: RunDir, rank: int, found: Mapping[int, Found]) -> None:
    """Append the sentences of some MRs, by index, to the ledger of `rank`."""
    with run.ledger(rank).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps([i, sentences], ensure_ascii=False) + "\n" for i, sentences in found.items())
