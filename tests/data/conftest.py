"""What several tests of data sets need."""

from pathlib import Path

# Beside the repository, where there is a copy; the data set is fetched from its source otherwise.
BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"
