"""The rules of the house, read from the imports: who may use whom, and what stays out of whose way."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import tl_vzero

PACKAGE = Path(tl_vzero.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
ROOMS = [
    "errors",
    "choices",
    "files",
    "distance",
    "rollout",
    "words",
    "scores",
    "models",
    "inputs",
    "targets",
    "clean",
    "zeroing",
    "methods",
    "effects",
    "comparison",
    "api",
    "tables",
    "corpus",
    "data",
    "evaluate",
    "plot",
    "report",
    "explore",
    "cli",
]
SAME_ROOM = {
    "__main__": "cli",
}
# (importing room, imported room) that may be reached inside a function, where the notebook asks for a figure.
LAZY = {("scores", "plot")}
PLOT_MAY_USE = {"plot", "scores", "effects", "errors", "choices", "files", "words", "evaluate"}
MODEL_CLASSES = {"HookedEncoder", "HookedTransformer", "HookedEncoderDecoder", "TransformerBridge"}
HEAVY = ("torch", "transformers", "transformer_lens", "plotly", "pandas", "spacy")


@dataclass(frozen=True)
class Import:
    """One room of tl_vzero used by a file; `lazy` if inside a function."""

    file: Path
    line: int
    room: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE)}:{self.line} imports {self.room}"


def room_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return SAME_ROOM.get(name, name)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def lines_inside_functions(tree: ast.Module) -> set[int]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {line for node in functions for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def modules_named(node: ast.AST, path: Path) -> list[str]:
    """The dotted modules that an import statement may load, relative ones made absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = ["tl_vzero", *path.relative_to(PACKAGE).parent.parts]
        base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def imports_of(path: Path) -> list[Import]:
    tree = tree_of(path)
    inside = lines_inside_functions(tree)
    found = set()
    for node in ast.walk(tree):
        for module in modules_named(node, path):
            parts = module.split(".")
            if parts[0] == "tl_vzero" and len(parts) > 1:
                room = SAME_ROOM.get(parts[1], parts[1])
                if room in ROOMS:
                    found.add(Import(path, node.lineno, room, node.lineno in inside))
    return sorted(found, key=lambda each: each.line)


ALL_IMPORTS = [
    each for path in FILES if path.name != "__init__.py" or path.parent != PACKAGE for each in imports_of(path)
]


def test_every_file_has_its_room() -> None:
    strangers = {room_of(path) for path in FILES} - {*ROOMS, "__init__", "py"}
    assert not strangers, f"give these rooms a place in the order: {strangers}"


def test_the_reader_of_imports_sees_them() -> None:
    """A guard for the guard: the package does import itself."""
    assert len(ALL_IMPORTS) > 10
    assert any(each.room == "errors" for each in ALL_IMPORTS)


def test_imports_only_go_up() -> None:
    wrong = [
        str(each)
        for each in ALL_IMPORTS
        if ROOMS.index(each.room) > ROOMS.index(room_of(each.file))
        and not (each.lazy and (room_of(each.file), each.room) in LAZY)
    ]
    assert not wrong


def test_plots_use_scores_and_results_only() -> None:
    wrong = [str(each) for each in ALL_IMPORTS if room_of(each.file) == "plot" and each.room not in PLOT_MAY_USE]
    assert not wrong


def test_methods_and_zeroing_do_not_know_each_other() -> None:
    pairs = {("methods", "zeroing"), ("zeroing", "methods")}
    assert not [str(each) for each in ALL_IMPORTS if (room_of(each.file), each.room) in pairs]


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
        if room_of(path) != "models"
    }
    assert not {path: names for path, names in wrong.items() if names}


def test_no_submodule_bears_a_public_name() -> None:
    submodules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not submodules & set(tl_vzero.__all__)


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_past_700_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 700


def test_shape_checked_modules_keep_their_annotations() -> None:
    """`from __future__ import annotations` would turn the shapes into text that nothing checks."""
    wrong = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in ast.walk(tree_of(path)))
    ]
    assert not wrong


def test_nothing_is_ever_unpickled() -> None:
    forbidden = {"pickle", "dill", "cloudpickle", "joblib"}
    for path in FILES:
        tree = tree_of(path)
        named = {name.split(".")[0] for node in ast.walk(tree) for name in modules_named(node, path)}
        assert not named & forbidden, path
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        loads = [call for call in calls if isinstance(call, ast.Attribute) and ast.unparse(call) == "torch.load"]
        assert not loads, path


def test_the_commands_print_by_one_function() -> None:
    """`say` escapes what acts on a terminal; typer's own echo does not."""
    printing = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("typer.echo", "typer.secho", "sys.stdout.write")
    }
    assert printing == {"cli/common.py", "data/train_agreement_mini.py"}  # the latter prints its own words only
