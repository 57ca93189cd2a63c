"""Damage the files of a folder, for the tests of what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]
Rewrite = Callable[[bytes], bytes]
"""Damages the content of a file."""

REWRITES: list[Rewrite] = [
    lambda _: b"",
    lambda content: b"\0" * 40 + content,
    lambda content: content[: len(content) // 2],
    lambda content: content.replace(b"e", b"\xe9"),
    lambda _: b"{}",
]
"""What kills, power cuts, other encodings and other programs leave of a file."""


def rewriting(name: str, **changes: object) -> Damage:
    """Damages a folder by changing keys of a JSON file in it."""

    def rewrite(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return rewrite


def overwriting(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def removing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()
