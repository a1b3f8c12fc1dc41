"""Every notebook runs, offline, and gives the outputs that are committed with it."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "demos").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat (tox -e full)")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (tox -e full)")
    notebook = nbformat.read(path, as_version=4)
    committed = printed(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert printed(notebook) == committed


def printed(notebook: object) -> list[str]:
    """What each cell prints on standard output."""
    cells = notebook.cells  # type: ignore[attr-defined]
    return [
        "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
        for cell in cells
        if cell.cell_type == "code"
    ]
