"""The files that a decoding ends with: the sentences in the official order, their references, and the signature."""

from collections.abc import Sequence
from typing import Any

from lora_dist.data.e2e import Group, format_outputs, format_references
from lora_dist.decoding.ledger import Found
from lora_dist.files import write_json, write_jsonl, write_text
from lora_dist.run_dir import RunDir


def write_outputs(run: RunDir, groups: Sequence[Group], sentences: Sequence[Found], signature: dict[str, Any]) -> None:
    """Write the outputs in the official order and formats."""
    rows = [
        {"index": index, "mr": group.mr, **_row(found)}
        for index, (group, found) in enumerate(zip(groups, sentences, strict=True))
    ]
    write_text(run.references_text, format_references(groups))
    write_text(run.outputs_text, format_outputs([row["text"] for row in rows]))
    write_json(run.decode_signature, signature)
    write_jsonl(run.outputs, rows)


def _row(sentences: Found) -> dict[str, Any]:
    """Return the best sentence and, if more were requested, the alternatives."""
    (text, score), *others = sentences
    more = {"alternatives": [{"text": text, "score": score} for text, score in others]} if others else {}
    return {"text": text, "score": score, **more}
