"""BLiMP, which is not in the repository, for the tests that read it."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.blimp import ABSENT, FOLDER

if TYPE_CHECKING:
    from tl_vzero.data.examples import ExampleSet


@pytest.fixture(scope="session")
def blimp_folder() -> Path:
    if not FOLDER.is_dir():
        pytest.skip(ABSENT)
    return FOLDER


@pytest.fixture(scope="session")
def blimp(blimp_folder: Path) -> "ExampleSet":
    # Not above: pytest reads this file first, and jaxtyping checks nothing that was imported before it.
    from tl_vzero.data.blimp import read_blimp

    return read_blimp(blimp_folder)
