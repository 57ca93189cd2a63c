"""Ledgers after a kill or a power cut."""

import json
from pathlib import Path

import pytest

from lora_dist.decoding.ledger import append_to_ledger, open_ledger, resumed_chunk_tokens
from lora_dist.run_dir import RunDir

HEAD = {"adapter": "1f", "device": "cuda"}


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


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({**HEAD, "chunk_tokens": 16}, 16),
        ({**HEAD, "chunk_tokens": 24}, 64),
        ({**HEAD, "device": "cpu", "chunk_tokens": 16}, 64),
        (HEAD, 64),
        ([], 64),
    ],
    ids=["halved", "not halved", "another signature", "without a size", "no object"],
)
def test_only_an_interrupted_decoding_that_had_halved_its_chunks_sets_their_size(
    head: object, expected: int, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.ledger(0).parent.mkdir(parents=True)
    (run.ledger(0).parent / "signature.json").write_text(json.dumps(head))
    assert resumed_chunk_tokens(run, HEAD, 64) == expected
