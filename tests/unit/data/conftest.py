"""BLiMP, which is not in the repository, for the tests that read it."""

import os
from pathlib import Path

import pytest

from tl_vzero.data.blimp import read_blimp
from tl_vzero.data.filtering import ExampleSet

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[4] / "shared" / "blimp"


@pytest.fixture(scope="session")
def blimp_folder() -> Path:
    folder = Path(os.environ.get("TL_VZERO_BLIMP", BESIDE_THE_REPOSITORY))
    if not folder.is_dir():
        pytest.skip(f"no BLiMP in {folder}: name the folder of its JSONL files by TL_VZERO_BLIMP")
    return folder


@pytest.fixture(scope="session")
def blimp(blimp_folder: Path) -> ExampleSet:
    return read_blimp(blimp_folder)
