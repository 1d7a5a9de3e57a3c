"""Laws of the requirement files: what is imported is declared, and every version stands in one place."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"ghm", "stages", "benchmarks", "tests"}


def pinned(name: str) -> list[str]:
    """The packages of a requirement file."""
    lines = (ROOT / name).read_text().splitlines()
    return [match[1].lower() for line in lines if (match := re.match(r"([\w.-]+)==", line))]


def imported(folder: str) -> set[str]:
    """The top-level names that the files below a folder import and Python does not bring."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - OURS


@pytest.mark.parametrize("folder", sorted(OURS))
def test_every_package_that_is_imported_is_declared(folder: str):
    provided = packages_distributions()
    names = imported(folder)
    assert names or folder == "stages"
    declared = set(pinned("requirements.txt"))
    assert {name for name in names if not declared & {other.lower() for other in provided.get(name, [])}} == set()


def test_what_pandas_imports_to_write_markdown_is_declared():
    assert "tabulate" in pinned("requirements.txt")


def test_every_version_stands_in_one_place():
    names = [*pinned("requirements.txt"), *pinned("constraints.txt")]
    assert len(names) > 100
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
