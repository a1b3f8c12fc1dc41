"""The rules of the house that the import contracts in pyproject.toml cannot say: what stays out of whose way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tl_vzero

PACKAGE = Path(tl_vzero.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
MODEL_CLASSES = {"HookedEncoder", "HookedTransformer", "HookedEncoderDecoder", "TransformerBridge"}
HEAVY = ("torch", "transformers", "transformer_lens", "plotly", "pandas", "spacy")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def names_in(tree: ast.Module) -> set[str]:
    """Every identifier, imported name and string that is nothing but a name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name.split(".")[-1])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_only_models_names_the_model_classes() -> None:
    wrong = {
        str(path.relative_to(PACKAGE)): names_in(tree_of(path)) & MODEL_CLASSES
        for path in FILES
        if "models" not in path.relative_to(PACKAGE).parts
    }
    assert not {path: names for path, names in wrong.items() if names}


def test_no_submodule_bears_a_public_name() -> None:
    submodules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert submodules & set(tl_vzero.__all__) == {"plot"}  # which is public itself


@pytest.mark.parametrize("name", tl_vzero.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(tl_vzero, name) is not None
    assert name in dir(tl_vzero)


def test_the_names_of_the_contract_are_public() -> None:
    contract = {"load_model", "value_zeroing", "value_zeroing_hooks", "score", "Scores", "METHODS", "TLVZeroError"}
    assert contract <= set(tl_vzero.__all__)
    assert len(tl_vzero.__all__) == len(set(tl_vzero.__all__))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        tl_vzero.no_such_name  # noqa: B018


def heavy_modules_after(program: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded at the end of a program."""
    ending = f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program + ending],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split() if result.stdout.splitlines() else []


def test_importing_the_package_imports_no_torch() -> None:
    assert heavy_modules_after("import tl_vzero; dir(tl_vzero)") == []


def test_reading_the_registry_imports_no_torch() -> None:
    program = "from tl_vzero.registry import METHODS, label_of; [m.summary for m in METHODS.values()]; label_of('alti')"
    assert heavy_modules_after(program) == []


def test_help_imports_no_torch() -> None:
    program = """
import sys
sys.argv = ["tl-vzero", "--help"]
from tl_vzero.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    assert heavy_modules_after(program) == []


def test_no_file_is_past_700_lines() -> None:
    """A reminder to look for the second story in a long file."""
    assert [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 700] == []
