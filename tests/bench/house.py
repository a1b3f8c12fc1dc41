"""The house's figures: how much there is to read in tl_vzero/, beside the aims: `python tests/bench/house.py`.

A figure that misses its aim is marked NOT MET. --verbose adds the lists behind the figures; --check exits with 1 if an
aim is missed; --root measures another checkout. Counted are all .py files below tl_vzero/, `__init__.py` included, and
all their lines: code, docstrings, comments and blank ones.

- Function lengths run from `def` to the last line, without decorators; functions inside functions count too. Comment
  lines hold nothing but a comment.
- Internal imports: statements `import tl_vzero...` and `from tl_vzero... import` at the top of a file, inside functions
  and under TYPE_CHECKING. (ruff bans relative imports.)
- Circles: sets of files that reach each other by imports that run when a file is loaded, so not those inside functions
  or under TYPE_CHECKING. `from tl_vzero.a import b` leads to b's file if b is a module, else to a's; that Python also
  runs the `__init__.py` of every folder on the way is left out.
- Rooms: a folder with .py files, also one inside another (models/adapters/), or a file directly in tl_vzero/. Floors:
  the rooms in the longest chain of imports that run at loading; rooms in a circle share a floor.
- Files crossed: files with a Python function that a second, equal call enters; embedded model and sentence, closed form
  for value_zeroing, default methods for compare.
- Words bound: how often a name that says nothing is a parameter, a target (=, for, with, as, :=, comprehension,
  pattern), an attribute assigned, a dataclass field, a function or a class. Whole identifiers only.

The aims are those of the issue that asked for whole rooms. The 209 files that it was written about have, counted so:
25,856 lines, median 104; 955 imports; 38 rooms; 33 files crossed by value_zeroing; `each` bound 268 times.
"""

import argparse
import ast
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WORDS = ("each", "found", "own", "given", "known", "kept", "seen", "told", "asked", "made", "number")
SENTENCE = "the pictures of some hat [MASK] scaring marcus."
LONG_FILE = 700  # lines; the reminder in tests/unit/test_architecture.py
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

Graph = dict[str, set[str]]  # from an importer to what it imports


@dataclass(frozen=True)
class Figure:
    """One figure, its aim if it has one, and the list behind it."""

    label: str
    value: float
    at_most: float = float("inf")
    at_least: float = 0
    details: Sequence[str] = ()  # always printed
    more: Sequence[str] = ()  # printed with --verbose

    @property
    def is_met(self) -> bool:
        return self.at_least <= self.value <= self.at_most

    def text(self, verbose: bool) -> str:
        aim = f"at least {self.at_least:,}" if self.at_least else f"at most {self.at_most:,}"
        aim = "" if aim == "at most inf" else aim
        row = f"{self.label:<50}{self.value:>8,}   {aim:<17}{'' if self.is_met else 'NOT MET'}".rstrip()
        return "\n    ".join([row, *self.details, *(self.more if verbose else ())])


@dataclass(frozen=True)
class Import:
    """One statement that imports modules of tl_vzero."""

    importer: str
    targets: set[str]
    when: str  # "loaded", "called" or "never": under TYPE_CHECKING


class Package:
    """The files of tl_vzero/, parsed, under the names of their modules."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "tl_vzero"
        self.paths: dict[str, Path] = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            self.paths[".".join(part for part in parts if part != "__init__")] = path
        self.lines = {name: path.read_text(encoding="utf-8").splitlines() for name, path in self.paths.items()}
        self.trees = {name: ast.parse("\n".join(lines)) for name, lines in self.lines.items()}
        self.imports = [entry for name, tree in self.trees.items() for entry in self.imports_in(tree, name, "loaded")]

    def file(self, module: str) -> str:
        return str(self.paths[module].relative_to(self.folder))

    def room(self, module: str) -> str:
        path = Path(self.file(module))
        return f"{path.parent}/" if len(path.parts) > 1 else path.name

    def imports_in(self, node: ast.AST, importer: str, when: str) -> Iterator[Import]:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in self.paths else str(node.module) for name in inside]
        internal = {name for name in targets if name.split(".")[0] == "tl_vzero"}
        if internal:
            yield Import(importer, internal, when)
        when = "called" if when == "loaded" and isinstance(node, FUNCTIONS) else when
        guarded = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
        for child in ast.iter_child_nodes(node):
            yield from self.imports_in(child, importer, "never" if child in guarded else when)

    def graph(self, place: Callable[[str], str], *when: str) -> Graph:
        """Which places (files or rooms) import which others at these times."""
        graph: Graph = {place(module): set() for module in self.paths}
        for entry in self.imports:
            if entry.when in when:
                graph[place(entry.importer)] |= {place(name) for name in entry.targets if name in self.paths}
        return {start: ends - {start} for start, ends in graph.items()}


def circles(graph: Graph) -> list[list[str]]:
    """The sets of places that all reach each other."""
    reach: Graph = {}
    for start in graph:
        reach[start], waiting = set(), set(graph[start])
        while waiting:
            place = waiting.pop()
            reach[start].add(place)
            waiting |= graph[place] - reach[start]
    return sorted(map(list, {tuple(sorted(p for p in reach[s] if s in reach[p])) for s in graph if s in reach[s]}))


def floors(graph: Graph) -> dict[str, int]:
    """The floor of every place: one above the highest that it imports from outside its circle."""
    group_of = {place: {place} for place in graph} | {place: set(group) for group in circles(graph) for place in group}
    floor_of: dict[str, int] = {}

    def floor(place: str) -> int:
        if place not in floor_of:
            below = {end for member in group_of[place] for end in graph[member]} - group_of[place]
            floor_of[place] = 1 + max(map(floor, below), default=0)
        return floor_of[place]

    return {place: floor(place) for place in graph}


def bound_names(tree: ast.AST) -> Iterator[str | None]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.ExceptHandler(name=name) | ast.alias(asname=name) | ast.MatchAs(name=name):
                yield name


def size_figures(package: Package) -> Iterator[Figure]:
    lengths = {package.file(name): len(lines) for name, lines in package.lines.items()}
    longest, total = max(lengths, key=lengths.__getitem__), sum(lengths.values())
    yield Figure("Python files", len(lengths), at_most=130)
    yield Figure("lines per file, median", statistics.median(lengths.values()), at_least=180)
    yield Figure("lines", total, at_most=24_000)
    past = [f"{file}: {length}, past {LONG_FILE}" for file, length in lengths.items() if length > LONG_FILE]
    yield Figure(f"lines of longest file, {longest}", lengths[longest], details=past)
    functions = sorted(
        ((node.end_lineno or 0) - node.lineno + 1, f"{package.file(name)}:{node.lineno} {node.name}")
        for name, tree in package.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
    )
    rows = [f"{length:>3} {where}" for length, where in functions[:-11:-1]]
    yield Figure("lines of longest function", functions[-1][0], details=rows[:1], more=rows[1:])
    ninetieth = statistics.quantiles([length for length, _ in functions], n=10)[-1]
    yield Figure("lines per function, 90th percentile", round(ninetieth))
    comments = sum(line.lstrip().startswith("#") for lines in package.lines.values() for line in lines)
    yield Figure("comment lines, percent", round(100 * comments / total, 1))
    names = Counter(path.name for path in package.paths.values() if path.name != "__init__.py")
    repeated = sorted(f"{name} {count}" for name, count in names.items() if count > 1)
    yield Figure("file names that occur twice", len(repeated), at_most=0, details=repeated)


def import_figures(package: Package) -> Iterator[Figure]:
    yield Figure("internal import statements", len(package.imports), at_most=650)
    floor_of = floors(package.graph(package.room, "loaded"))
    levels = range(1, max(floor_of.values()) + 1)
    rows = [
        f"{level:>2} " + ", ".join(sorted(room for room in floor_of if floor_of[room] == level)) for level in levels
    ]
    yield Figure("rooms", len(floor_of), at_most=30)
    yield Figure("floors", len(levels), at_most=13, more=rows)
    for label, place in (("files", package.file), ("rooms", package.room)):
        rows = [", ".join(circle) for circle in circles(package.graph(place, "loaded"))]
        yield Figure(f"circles of {label}", len(rows), at_most=0, details=rows)
        rows = [", ".join(circle) for circle in circles(package.graph(place, "loaded", "called"))]
        yield Figure("  with imports inside functions (a remark)", len(rows), more=rows)


def word_figures(package: Package) -> Iterator[Figure]:
    bound = Counter(name for tree in package.trees.values() for name in bound_names(tree) if name in WORDS)
    row = ", ".join(f"{word} {bound[word]}" for word in WORDS)
    yield Figure("words that say nothing, bound", bound.total(), at_most=100, details=[row])


def crossing_figures(package: Package) -> Iterator[Figure]:
    sys.path.insert(0, str(package.folder.parent))
    import tl_vzero

    if Path(tl_vzero.__file__).parent != package.folder:
        raise SystemExit(f"tl_vzero is imported from {tl_vzero.__file__}, not from {package.folder}")
    model = tl_vzero.load_model("agreement-mini")
    zeroed = files_crossed(package, lambda: tl_vzero.value_zeroing(model, SENTENCE, engine="closed_form"))
    yield Figure("files crossed by a warm value_zeroing", len(zeroed), at_most=26, more=zeroed)
    compared = files_crossed(package, lambda: tl_vzero.compare(model, SENTENCE))
    yield Figure("files crossed by a warm compare", len(compared), at_most=40, more=compared)


def files_crossed(package: Package, call: Callable[[], object]) -> list[str]:
    """The files of the package with a function that the second call enters."""
    call()
    crossed: set[str] = set()
    sys.setprofile(lambda frame, event, _: crossed.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sorted(package.file(name) for name, path in package.paths.items() if str(path) in crossed)


def main() -> int:
    """Print the figures; the exit code."""
    parser = argparse.ArgumentParser(description="Print the house's figures beside their aims.")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="the checkout to measure")
    parser.add_argument("--verbose", action="store_true", help="print the lists behind the figures")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an aim is missed")
    options = parser.parse_args()
    package = Package(options.root.resolve())
    all_met = True
    for measure in (size_figures, import_figures, word_figures, crossing_figures):
        for figure in measure(package):
            print(figure.text(options.verbose), flush=True)
            all_met = all_met and figure.is_met
    return 1 if options.check and not all_met else 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.exit(main())
