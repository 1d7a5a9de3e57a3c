"""Laws of `dvc.yaml`: a stage runs again when, and only when, code that shapes its outs has changed."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
# Found by their registered names, not imported.
REGISTERED = [
    "ghm/head.py",
    "ghm/registry.py",
    "ghm/losses/*.py",
    "ghm/training/samples.py",
    "ghm/training/optimizer.py",
]
# Imported, but without effect on the outs, or with an effect that is in another dependency of the stage.
GLUE = {
    "stages/__init__.py",
    "ghm/__init__.py",
    "ghm/losses/__init__.py",
    "ghm/evaluation/__init__.py",
    "ghm/cli.py",
    "ghm/errors.py",
    "ghm/files.py",
    "ghm/words.py",
}
MANIFEST = {str(path.relative_to(ROOT)) for path in ROOT.glob("ghm/data/*.py")}
# Digit crops, and what fetches weights.
CROPS = {f"ghm/data/{name}.py" for name in ("digits", "digits_render", "download", "part")}
WEIGHTS = {"ghm/backbones.py"}
TRAINING = {str(path.relative_to(ROOT)) for path in ROOT.glob("ghm/training/*.py")} - {"ghm/training/samples.py"}
TRAINING |= {"ghm/checkpoints.py", "ghm/gradient_norms.py", "ghm/registry.py"}
LOSSES = {str(path.relative_to(ROOT)) for path in ROOT.glob("ghm/losses/*.py")}  # registered, and never called
NO_EFFECT = {
    "data": GLUE | {"ghm/mmcv_ops.py"},
    "backbone": GLUE | MANIFEST - CROPS | {"ghm/mmcv_ops.py", "ghm/registry.py"} | LOSSES,
    "train": GLUE | MANIFEST | WEIGHTS,
    "evaluate": GLUE | MANIFEST | WEIGHTS | TRAINING | LOSSES,
    "report": GLUE | MANIFEST | {"ghm/mmcv_ops.py", "ghm/registry.py"} | LOSSES,
}


def imported(start: list[Path]) -> set[str]:
    """The files of this project behind the imports of some files, and behind theirs."""
    found, waiting = set(start), list(start)
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] not in ("ghm", "stages"):
                    continue
                parts = name.split(".")
                packages = [ROOT.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
                files = [path for path in (ROOT.joinpath(*parts).with_suffix(".py"), *packages) if path.is_file()]
                waiting += [path for path in files if path not in found]
                found.update(files)
    return {str(path.relative_to(ROOT)) for path in found}


def listed(stage: str) -> set[str]:
    found: set[str] = set()
    for dependency in STAGES[stage].get("do", STAGES[stage])["deps"]:
        path = ROOT / dependency
        if dependency.startswith(("ghm/", "stages/")):
            assert path.exists(), dependency
            found |= {str(file.relative_to(ROOT)) for file in (path.glob("*.py") if path.is_dir() else [path])}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_files_that_shape_its_outs_and_no_others(stage: str):
    start = [ROOT / "stages" / f"{stage}.py"]
    if stage in ("train", "evaluate"):
        start += [path for pattern in REGISTERED for path in ROOT.glob(pattern)]
    needed = imported(start)
    assert listed(stage) - needed == set(), "listed and not run through"
    assert needed - listed(stage) - NO_EFFECT[stage] == set(), "run through and not listed"


def test_every_stage_says_what_it_is_for():
    for name, stage in STAGES.items():
        assert stage.get("do", stage)["desc"], name
