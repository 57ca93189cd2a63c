"""Damage the files of a folder, for the tests of what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def rewriting(name: str, **changes: object) -> Damage:
    """Damages a folder by changing keys of a JSON file in it."""

    def rewrite(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return rewrite


def overwriting(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def removing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()
