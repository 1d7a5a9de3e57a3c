"""`python -m ghm.presets coco_r50_1x`: merge a preset into `params.yaml`, keep its comments, show what changes."""

import difflib
import io
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ghm import files, params
from ghm.cli import run
from ghm.errors import InputError

FOLDER = Path("presets")
PARAMS = Path("params.yaml")
_NULL = "tag:yaml.org,2002:null"


def apply(name: str) -> str:
    """Merge `presets/<name>.yaml` into `params.yaml` and return the difference, "" when nothing changed.

    Raises:
        InputError: there is no such preset, or the result would not be valid; then nothing is written.
    """
    preset = _read(name)
    params.load(PARAMS)
    yaml = YAML()  # the round-trip kind: comments and [flow] lists stay as they are
    yaml.width = 200
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    before = PARAMS.read_text(encoding="utf-8")
    content = yaml.load(before)
    _merge(content, preset)
    params.parse(content)
    text = io.StringIO()
    yaml.dump(content, text)
    after = text.getvalue()
    files.write_text(PARAMS, after)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "params.yaml before", "params.yaml", n=0)
    return "\n".join(line.rstrip() for line in lines)


def _read(name: str) -> MutableMapping[str, Any]:
    """A preset on top of the one that its key `_base_` names, if any."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in FOLDER.glob("*.yaml")))
        raise InputError(f"the preset must be one of {known}, got {name!r}")
    own = YAML().load(path.read_text(encoding="utf-8"))
    base = own.pop("_base_", None)
    if base is None:
        return own
    content = _read(base)
    _merge(content, own)
    return content


def _merge(content: MutableMapping[str, Any], preset: Mapping[str, Any]) -> None:
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), MutableMapping):
            _merge(content[key], value)
        elif content.get(key) != value:
            content[key] = value


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ghm.presets NAME")
    print(apply(sys.argv[1]) or "params.yaml has these values already")


if __name__ == "__main__":
    run(main)
