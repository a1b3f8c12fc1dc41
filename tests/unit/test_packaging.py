"""What is shipped: the wheel, the pinned versions, the README's commands, and what the files give away."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
LINES = {"tl3": "3.9.", "tl4": "4."}
TOOLS = {"test", "browser", "notebook", "docs"}  # extras of those who work on the package
USED = [
    Requirement(text)
    for text in chain(
        PROJECT["dependencies"],
        *(texts for extra, texts in PROJECT["optional-dependencies"].items() if extra not in TOOLS),
    )
]

# Written so that this file does not match its own patterns.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|opt|work)/\w")
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com|net)\b", re.IGNORECASE)


def repository_files() -> list[Path]:
    """Every file that is in the repository or would be with `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git work tree: no list of the repository's files")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in repository_files() if (ROOT / "tl_vzero") in path.parents}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected


def test_the_wheel_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "tl_vzero/py.typed" in wheel.namelist()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "README.md"])
def test_the_wheel_holds_the_embedded_model(wheel: zipfile.ZipFile, name: str) -> None:
    assert wheel.getinfo(f"tl_vzero/assets/agreement-mini/{name}").file_size > 0


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    about = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert (about["Name"], about["Version"]) == ("tl-vzero", PROJECT["version"])
    assert about["License-Expression"] == "MIT"
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert "MIT License" in wheel.read(f"{folder}/licenses/LICENSE").decode()
    assert "tl-vzero = tl_vzero.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_the_installed_version_is_the_one_in_pyproject() -> None:
    assert metadata.version("tl-vzero") == PROJECT["version"]


def test_the_console_script_leads_to_a_function() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="tl-vzero")
    assert callable(script.load())


def test_the_changelog_begins_with_what_is_unreleased_or_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] in {"Unreleased", PROJECT["version"]}


def test_the_citation_names_this_package_at_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert canonicalize_name(citation["title"]) == PROJECT["name"]
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_the_readme_gives_the_papers_that_the_citation_refers_to() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    papers = [reference for reference in citation["references"] if reference["type"] == "conference-paper"]
    assert papers
    assert not [paper["title"] for paper in papers if paper["title"] not in readme or paper["doi"] not in readme]


@pytest.mark.parametrize("variable", ["main_job", "tests"])
def test_the_readme_gives_the_command_that_ci_runs(variable: str) -> None:
    found = re.search(rf'^{variable}="(.+)"$', (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f".ci/run sets no {variable}"
    readme = ROOT / "README.md"
    assert readme.is_file(), "there is no README.md"
    lines = [line.strip() for line in readme.read_text(encoding="utf-8").splitlines()]
    assert found[1] in lines, f"README.md has no line that reads: {found[1]}"
    assert found[1].startswith("python3 -m venv "), "any Python that is admitted may start it"


def test_tox_takes_the_python_that_started_it() -> None:
    tox = SETTINGS["tool"]["tox"]
    fixed = {name: env["base_python"] for name, env in tox["env"].items() if "base_python" in env}
    assert "base_python" not in tox["env_run_base"] and fixed == {"lowest": ["python3.11"], "py313": ["python3.13"]}


def pins(line: str) -> dict[str, str]:
    """The exact version of every distribution that a constraints file names."""
    text = (ROOT / ".ci" / f"constraints-{line}.txt").read_text(encoding="utf-8")
    entries = [entry for entry in text.splitlines() if not entry.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", entry) for entry in entries), "expected only lines NAME==VERSION"
    return {canonicalize_name(name): version for name, version in (entry.split("==") for entry in entries)}


@pytest.mark.parametrize("line", LINES)
def test_every_requirement_is_pinned_to_a_version_that_it_admits(line: str) -> None:
    pinned = pins(line)
    extras = dict(PROJECT["optional-dependencies"])
    if line == "tl4":
        del extras["hooked-encoder"]
    for text in chain(PROJECT["dependencies"], *extras.values()):
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"constraints-{line}.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"


@pytest.mark.parametrize("line", LINES)
def test_a_constraints_file_pins_its_own_line(line: str) -> None:
    pinned = pins(line)
    assert pinned["transformer-lens"].startswith(LINES[line])
    assert pinned["torch"] == "2.13.0"
    assert not {"tl-vzero", "pip", "setuptools"} & pinned.keys()


def test_the_lines_differ_in_transformer_lens_and_what_it_needs_only() -> None:
    first, second = pins("tl3"), pins("tl4")
    assert {name for name in first.keys() & second.keys() if first[name] != second[name]} == {"transformer-lens"}


def test_the_lowest_versions_are_the_declared_lower_bounds() -> None:
    pinned = pins("lowest")
    assert pinned["torch"] == "2.13.0"
    for requirement in USED:
        name = canonicalize_name(requirement.name)
        (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
        assert name == "torch" or Version(pinned[name]) == Version(bound), f"{requirement}: {pinned[name]} is pinned"


def test_every_package_that_is_imported_is_declared() -> None:
    """What another package happens to bring may be gone with its next release."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tl_vzero").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"tl_vzero"}
    assert {"torch", "transformer_lens"} <= modules
    brought_by = metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in USED}
    assert not {
        module for module in modules if not declared & {canonicalize_name(name) for name in brought_by.get(module, ())}
    }


def test_every_minor_version_of_python_that_is_named_is_admitted() -> None:
    start = "Programming Language :: Python :: 3."
    named = [each.removeprefix(start) for each in PROJECT["classifiers"] if each.startswith(start)]
    assert named == ["11", "12", "13"]
    assert PROJECT["requires-python"] == f">=3.{named[0]}"


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine path", "registry host"])
def test_no_file_tells_of_the_machine_it_was_made_on(pattern: re.Pattern[str]) -> None:
    told = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        told += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not told
