"""Every promise of SEMANTICS.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SEMANTICS.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)


def functions_in(file: Path) -> set[str]:
    """The test functions of a file, and of the contract classes that it imports."""
    tree = ast.parse(file.read_text("utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_contract"):
            name = (node.module or "").rsplit(".", 1)[-1]
            names |= functions_in(ROOT / "tests" / "contract" / f"{name}.py")
    return names


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_promise_names_a_test_that_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"SEMANTICS.md names {file}"
    assert not name or name in functions_in(ROOT / file), f"SEMANTICS.md names {file}::{name}"


def test_every_promise_has_a_test() -> None:
    numbered = re.split(r"^\d+\. ", PAGE, flags=re.MULTILINE)[1:]
    assert len(numbered) >= 20
    for promise in numbered:
        assert "`tests/" in promise.split("\n\n")[0], f"no test is named: {promise[:80]}"
