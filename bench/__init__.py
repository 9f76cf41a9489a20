"""Speed, measured side by side in one run; figures are for reading, nothing passes or fails by them."""

import sys
from pathlib import Path

# `python -m bench` puts the repository's root on the path; what makes recordings lies beside the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
