"""`python -m ghm.presets NAME [FOLDER]`: merge a preset into `params.yaml`, keep its comments, show what changes.

With a folder, that is where its data set lies, `data.root`.
"""

import difflib
import io
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ghm import check, files, params, sections
from ghm.cli import run
from ghm.errors import InputError

FOLDER = Path("presets")
PARAMS = Path("params.yaml")


def apply(name: str, root: str = "", layout: str = "") -> str:
    """Merge `presets/<name>.yaml` into `params.yaml` and return the difference, "" when nothing changed.

    Args:
        root: the folder of the data set; "" leaves it as the preset has it.
        layout: of its labels, `custom.layout`; "" has it recognised.

    Raises:
        InputError: there is no such preset or folder, or the result would not be valid; then nothing is written.
    """
    preset = read(name)
    if root:
        folder = Path(root).expanduser().absolute()  # DVC's experiments run elsewhere
        if not folder.is_dir():
            raise InputError(f"DATA must be an existing folder with your data set, got {root!r}")
        update(preset, {"data": {"root": str(folder), "source": None}, "custom": {"layout": layout or None}})
    return merge(preset, f"the preset {name}")


def merge(values: Mapping[str, Any], source: str) -> str:
    """Merge `values` of some sections into `params.yaml` and return the difference, "" when nothing changed.

    Args:
        source: what has these values, for the words.

    Raises:
        InputError: the result would not be valid; then nothing is written.
    """
    parameters = params.load(PARAMS)
    before = PARAMS.read_text(encoding="utf-8")
    yaml = YAML()  # configured as DVC configures it for `-S`, so that both write the same form
    content = yaml.load(before)
    update(content, values)
    meant = params.parse(content)
    if meant == parameters:
        return ""
    check.whole(meant)
    text = io.StringIO()
    yaml.dump(content, text)
    after = text.getvalue()
    try:
        is_meant = params.parse(YAML(typ="safe").load(after)) == meant
    except (YAMLError, InputError):
        is_meant = False
    if not is_meant:
        raise InputError(
            f"{PARAMS} would not mean what it should with {source}: put comments that stand beside a list "
            "or right after it on the line above it; nothing was changed"
        )
    files.write_text(PARAMS, after)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "params.yaml before", "params.yaml", n=0)
    return "\n".join(line.rstrip() for line in lines)


def read(name: str) -> dict[str, Any]:
    """A preset, on top of the one that its key `_base_` names. Raises InputError where there is no such preset."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in FOLDER.glob("*.yaml")))
        raise InputError(f"the preset must be one of {known}, got {name!r}")
    preset = sections.read(path)
    base = preset.pop("_base_", None)
    content = {} if base is None else read(base)
    update(content, preset)
    return content


def update(content: MutableMapping[str, Any], preset: Mapping[str, Any]) -> None:
    """Set in `content` what `preset` has, section by section."""
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), MutableMapping):
            update(content[key], value)
        elif content.get(key, ...) != value:  # an equal value keeps its form and its comments
            content[key] = value


def main() -> None:
    if not 2 <= len(sys.argv) <= 4:
        sys.exit("usage: python -m ghm.presets NAME [FOLDER [LAYOUT]]")
    print(apply(*sys.argv[1:]) or "params.yaml has these values already")


if __name__ == "__main__":
    run(main)
