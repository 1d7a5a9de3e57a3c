"""Laws of what is declared: every import, every version in one place, and ranges that hold what is pinned."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ghm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"ghm", "stages", "benchmarks", "tests"}


def pins(name: str) -> dict[str, str]:
    """Package -> version of a requirement file."""
    matches = [re.match(r"([\w.-]+)==([\w.]+)", line) for line in (ROOT / name).read_text().splitlines()]
    return {match[1]: match[2] for match in matches if match}


def distributions() -> dict[str, set[str]]:
    """Top-level name -> the packages that bring it, spelled as in a requirement file."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, packages in packages_distributions().items():
        found[name] = {package.lower().replace("_", "-") for package in packages}
    return found


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
    provided = distributions()
    names = imported(folder)
    assert names or folder == "stages"
    declared = set(pins("requirements.txt"))
    assert {name for name in names if not declared & provided[name]} == set()


def test_what_pandas_imports_to_write_markdown_is_declared():
    assert "tabulate" in pins("requirements.txt")


def test_every_version_stands_in_one_place():
    direct, brought = pins("requirements.txt"), pins("constraints.txt")
    assert len(direct) + len(brought) > 100
    assert not direct.keys() & brought.keys()
    about = PROJECT["project"]
    assert "version" in about["dynamic"] and PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "ghm.__version__"
    }
    assert re.fullmatch(r"\d+\.\d+\.\d+", ghm.__version__)


def test_every_requirement_of_the_package_is_pinned_within_its_range():
    extras = PROJECT["project"]["optional-dependencies"]
    listed = [*PROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    direct = pins("requirements.txt")
    for requirement in map(Requirement, listed):
        assert requirement.name == "ghm" or requirement.specifier.contains(direct[requirement.name]), requirement


def test_the_extra_pipeline_holds_all_that_the_package_imports():
    provided = distributions()
    extras = PROJECT["project"]["optional-dependencies"]
    declared = {Requirement(line).name for line in (*extras["mmdet"], *extras["pipeline"])} | {"torch", "triton"}
    assert {name for name in imported("ghm") if not declared & provided[name]} == set()
