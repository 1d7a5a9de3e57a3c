"""Counts in sentences."""


def count(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`. Where the plural takes more than an `s`, it follows a bar: `box|boxes`."""
    one, _, many = noun.partition("|")
    return f"{number:,} {one if number == 1 else many or one + 's'}"
