"""The package's layout: which folder may import which, and how large a file may grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_dist

PACKAGE = Path(lora_dist.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    {"errors"},
    {"config", "metrics"},
    {"presets"},
    {"files", "run_dir"},
    {"config_io", "run_guard"},
    {"distributed"},
    {"data"},
    {"model"},
    {"training", "decoding"},
    {"evaluation"},
    {"report"},
    {"planning"},
    {"workflows"},
    {"bench"},
    {"cli"},
)
"""Each may import what is above it; those of one line do not import each other, and metrics only errors."""
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lora_dist":
            below = (node.module or "").split(".")[1:]
            yield from below[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lora_dist."))


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) in LEVEL], ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    part = part_of(file)
    others = {name for name in imported_parts(file) if name != part and not name.startswith("__")}
    assert all(LEVEL[name] < LEVEL[part] for name in others), others
    assert part != "metrics" or others <= {"errors"}
    assert "TYPE_CHECKING" not in file.read_text(encoding="utf-8")


def test_every_part_of_the_package_has_its_place_in_the_order() -> None:
    assert {part_of(file) for file in FILES} == {*LEVEL, "__init__", "__main__"}
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_init_files_have_no_logic() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        assert isinstance(body[0], ast.Expr), file
        assert all(isinstance(node, ast.Expr | ast.Assign | ast.ImportFrom) for node in body), file


def test_files_have_at_most_250_lines_and_functions_at_most_50() -> None:
    long = []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{file} does not begin with what it is for"
        if len(text.splitlines()) > 250:
            long.append(str(file))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        long += [f"{file}:{f.name}" for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 50]
    assert not long


def test_scripts_do_not_pass_their_own_arguments_to_the_set_up_that_they_source() -> None:
    """Bash gives a sourced script the arguments of the one that sources it, unless it has some of its own."""
    lines = [line for script in PACKAGE.parent.glob("launch/*.sh") for line in script.read_text("utf-8").splitlines()]
    sourcing = [line for line in lines if line.startswith("source ") and "setup.sh" in line]
    assert len(sourcing) >= 7
    assert {line.rpartition("setup.sh")[2] for line in sourcing} == {'" ""', '" dev'}
