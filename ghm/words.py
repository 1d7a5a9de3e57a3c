"""Counts and values in sentences."""


def count(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`. Where the plural takes more than an `s`, it follows a bar: `box|boxes`."""
    one, _, many = noun.partition("|")
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def label(value: object) -> str:
    """A value as people write it: 100 for 100.0."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else ""
    return f"{value:g}" if isinstance(value, int | float) else str(value)
