"""Ledgers after a kill or a power cut."""

from pathlib import Path

import pytest

from lora_dist.decoding.ledger import append_to_ledger, open_ledger
from lora_dist.run_dir import RunDir


@pytest.mark.parametrize(
    "damage",
    [
        *(
            b'[7, [["cut',
            b"\0\0\0",
            b"7",
            b"null",
            b"[7, 7]",
            b"[7, []]",
            b'[7, [["text", null]]]',
            b'["7", [["text", 1]]]',
        ),
        *(b'[7, [["caf\xe9", 1]]]', b"[" * 100_000),
    ],
)
def test_a_damaged_line_of_a_ledger_is_decoded_again(damage: bytes, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert open_ledger(run, {"beams": 10}) == {}
    append_to_ledger(run, 0, {0: [("A café.", -1.0)], 1: [("Two.", -2.0), ("2.", -3.0)]})
    run.ledger(0).write_bytes(run.ledger(0).read_bytes() + damage + b"\n")
    append_to_ledger(run, 0, {2: [("Three.", -1.5)]})
    expected = {0: [("A café.", -1.0)], 1: [("Two.", -2.0), ("2.", -3.0)], 2: [("Three.", -1.5)]}
    assert open_ledger(run, {"beams": 10}) == expected


@pytest.mark.parametrize("signature", [b"", b"\0\0", b"\xff", b"{}"])
def test_a_ledger_of_another_or_a_damaged_signature_is_dropped(signature: bytes, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    open_ledger(run, {"beams": 10})
    append_to_ledger(run, 0, {0: [("One.", -1.0)]})
    (run.ledger(0).parent / "signature.json").write_bytes(signature)
    assert open_ledger(run, {"beams": 10}) == {}
    assert not run.ledger(0).exists()
