"""BLiMP, which is not in the repository, for the tests that read it."""

from pathlib import Path

import pytest
from support.blimp import ABSENT, FOLDER

from tl_vzero.data.blimp import read_blimp
from tl_vzero.data.examples import ExampleSet


@pytest.fixture(scope="session")
def blimp_folder() -> Path:
    if not FOLDER.is_dir():
        pytest.skip(ABSENT)
    return FOLDER


@pytest.fixture(scope="session")
def blimp(blimp_folder: Path) -> ExampleSet:
    return read_blimp(blimp_folder)
