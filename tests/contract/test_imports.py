"""Imports point one way, and `import ckptstore` stays light.

Question answered: does any module of the five packages import from a package that it must not know? Read from the import statements of
the source, wherever they stand, so that a lazy import counts as well. The one exception is the façade, which may look up at the client.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACADE = ROOT / "ckptstore/__init__.py"
#: package → its folder and the packages of this project that it may import
ALLOWED = {
    "ckptstore": (ROOT / "ckptstore", {"ckptstore"}),
    "ckptstore_tiers": (ROOT / "tiers/ckptstore_tiers", {"ckptstore", "ckptstore_tiers"}),
    "ckptstore_client": (ROOT / "client/ckptstore_client", {"ckptstore", "ckptstore_tiers", "ckptstore_client"}),
    "ckptstore_server": (ROOT / "server/ckptstore_server", {"ckptstore", "ckptstore_tiers", "ckptstore_server"}),
    "ckptstore_bench": (
        ROOT / "bench/ckptstore_bench",
        {"ckptstore", "ckptstore_tiers", "ckptstore_client", "ckptstore_server", "ckptstore_bench"},
    ),
}
HEAVY = ("torch", "numpy", "pydantic", "httpx", "fastapi", "sqlalchemy")


def imported_modules(source: str, own_package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import statement; a relative import stays in its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or own_package if node.level == 0 else own_package


def upward_imports(package: str) -> list[str]:
    folder, allowed = ALLOWED[package]
    found = []
    for file in sorted(folder.rglob("*.py")):
        if file == FACADE:
            continue
        for line, module in imported_modules(file.read_text("utf-8"), package):
            top = module.partition(".")[0]
            if (top in ALLOWED or top == "tests") and top not in allowed:
                found.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_from_the_packages_below_it(package: str) -> None:
    folder, _ = ALLOWED[package]
    assert list(folder.rglob("*.py")), f"{folder} has no modules: the layout moved and this test looks at nothing"
    assert upward_imports(package) == []


def test_an_upward_import_is_seen_wherever_it_stands() -> None:
    source = "def late():\n    from ckptstore_server.daemon import Daemon\n    import ckptstore_client.cli\n"
    assert list(imported_modules(source, "ckptstore")) == [(2, "ckptstore_server.daemon"), (3, "ckptstore_client.cli")]


def test_the_facade_looks_upwards_only_at_the_client() -> None:
    upward = {module.partition(".")[0] for _, module in imported_modules(FACADE.read_text("utf-8"), "ckptstore")} & set(ALLOWED)
    assert upward == {"ckptstore", "ckptstore_client"}


def test_importing_the_facade_loads_nothing_heavy() -> None:
    script = f"import ckptstore, json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd="/")
    assert json.loads(answer.stdout) == []


def test_importing_the_facade_does_not_load_the_client() -> None:
    script = "import ckptstore, json, sys; print(json.dumps(sorted(name for name in sys.modules if name.startswith('ckptstore_'))))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd="/")
    assert json.loads(answer.stdout) == []
