"""What a run decoded, as its stages hand it on: references and outputs, checked against each other."""

from typing import Any

from lora_dist.data.e2e import one_line
from lora_dist.errors import UserError
from lora_dist.files import read_json
from lora_dist.metrics.readers import Instances, read_pair
from lora_dist.metrics.text_files import read_text_file
from lora_dist.run_dir import RunDir


def read_decoding(run: RunDir) -> dict[str, Any]:
    """Read the object of decode/signature.json: settings, fingerprints and versions of the decoding.

    Raises:
        UserError: if the run has not been decoded, or the file is damaged.
    """
    problem = f"{run.root} has not been decoded (lora-dist decode {run.root})"
    decoding = read_json(run.decode_signature, problem)
    fields = {"decode": dict, "versions": dict, "adapter": str, "base": str, "test_data": str}
    if missing := [name for name, kind in fields.items() if not isinstance(decoding.get(name), kind)]:
        raise UserError(f"{problem}: {run.decode_signature} lacks {missing[0]}")
    return decoding


def read_decoded(run: RunDir) -> tuple[Instances, dict[str, str]]:
    """Read a run's references, outputs and MRs, and the SHA-256 of references.txt and outputs.txt.

    Raises:
        UserError: if a file is missing, empty or damaged, with the command that writes it again.
    """
    try:
        references, texts = read_text_file(run.references_text), read_text_file(run.outputs_text)
        outputs = read_text_file(run.outputs)
        instances = read_pair(references, outputs)
        if [one_line(text) for text in instances.outputs] != list(map(one_line, texts.lines)):
            raise UserError(f"{run.outputs_text} and {run.outputs} differ")
    except UserError as error:
        raise UserError(
            f"{error}; lora-dist decode {run.root} writes the files of {run.outputs.parent} again"
        ) from None
    return instances, {"references": references.sha256, "outputs": texts.sha256}
