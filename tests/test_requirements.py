"""Laws of what is declared: every import, every version in one place, and ranges that hold what is pinned."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

import ghm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("ghm", "stages", "benchmarks", "tests")
COMMANDS = {"pyright", "pytest-xdist", "ruff"}  # run, not imported


def pins(name: str) -> dict[str, str]:
    """Package -> version of a requirement file."""
    matches = [re.match(r"([\w.-]+)==([\w.]+)", line) for line in (ROOT / name).read_text().splitlines()]
    return {match[1]: match[2] for match in matches if match}


def imported(*folders: str) -> dict[str, set[str]]:
    """Top-level name that the files below folders import and Python does not bring -> the packages that have it."""
    provided, names = packages_distributions(), set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, *FOLDERS}
    return {name: {package.lower().replace("_", "-") for package in provided.get(name, ())} for name in names}


def test_every_import_is_declared_and_every_requirement_is_imported():
    packages, declared = imported(*FOLDERS), set(pins("requirements.txt"))
    assert {name for name, bringing in packages.items() if not declared & bringing} == set()
    assert declared - set().union(*packages.values()) == COMMANDS


def test_the_extra_pipeline_holds_all_that_the_package_imports():
    extras = PROJECT["project"]["optional-dependencies"]
    declared = {Requirement(line).name for line in (*extras["mmdet"], *extras["pipeline"])} | {"torch", "triton"}
    assert {name for name, bringing in imported("ghm").items() if not declared & bringing} == set()


def test_the_package_holds_all_its_files():
    endings = {path.suffix for path in (ROOT / "ghm").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {f"*{ending}" for ending in endings - {".py"}} == {*PROJECT["tool"]["setuptools"]["package-data"]["*"]}


def test_every_version_stands_in_one_place():
    direct, brought = pins("requirements.txt"), pins("constraints.txt")
    assert len(direct) + len(brought) > 100
    assert not direct.keys() & brought.keys()
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ghm.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", ghm.__version__)


def test_every_requirement_of_the_package_is_pinned_within_its_range():
    extras = PROJECT["project"]["optional-dependencies"]
    listed = [*PROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    direct = pins("requirements.txt")
    for requirement in map(Requirement, listed):
        assert requirement.name == "ghm" or requirement.specifier.contains(direct[requirement.name]), requirement
