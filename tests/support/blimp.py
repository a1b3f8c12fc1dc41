"""Where BLiMP may be: it is not in the repository."""

import os
from pathlib import Path

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "blimp"
FOLDER = Path(os.environ.get("TL_VZERO_BLIMP", BESIDE_THE_REPOSITORY))
ABSENT = f"no BLiMP in {FOLDER}: name the folder of its JSONL files by TL_VZERO_BLIMP"
