"""Names that people gave to classes, variants and curves, as text of each medium: all letters kept, no markup made."""

import re

NAMELESS = "(no name)"
LONGEST = 48  # letters of a name in a figure
PLAIN = re.compile(r"[^\W_]([\w .,:;=+/()-]*[^\W_])?")
# Whatever ends a line, turns it round or is no letter at all.
SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")
MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")
BLOCK = re.compile(r"^(\d*)([#+=.)-])(?=[#=-]*(\s|$))")  # at the start of a line: a heading, a list or a rule


def line(name: str) -> str:
    """On one line: each run of white space and of control characters is a space, none at the ends."""
    return SPACE.sub(" ", name).strip() or NAMELESS


def markdown(name: str) -> str:
    """For Markdown, anywhere in a line and in a table."""
    text = MARKUP.sub(lambda found: f"\\{found[0]}", line(name)).replace("$", "&#36;")  # $x$ is mathematics to some
    return BLOCK.sub(r"\1\\\2", text)


def code(name: str) -> str:
    """For Markdown, in the letters of code where the name has nothing that these would not show as it is."""
    return f"`{name}`" if PLAIN.fullmatch(name) else markdown(name)


def figure(name: str) -> str:
    """For matplotlib: no mathematics between two $, and no label that a legend leaves out because it begins with _."""
    text = line(name)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return ("\u200a" if text.startswith("_") else "") + text.replace("$", r"\$")
