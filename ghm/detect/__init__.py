"""A trained detector on images: `python -m ghm.detect`."""
