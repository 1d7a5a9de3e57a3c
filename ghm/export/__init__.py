"""A trained detector for other programs: `python -m ghm.export`."""
