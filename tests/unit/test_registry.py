"""The registry: its own entries, and methods of other packages by entry point, which are never in the package's way."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_vzero
from tl_vzero.errors import MethodNameWarning, PluginError
from tl_vzero.registry import BUILT_IN, Method, Methods, label_of, resolved

PLAIN = {"attention": Method(lambda model, inputs: [], "plain", "plain", "plain")}
GOOD = '''
import dataclasses
import tl_vzero

def halves(model, inputs, *, layers=None, share=0.5):
    """Half of attention.

    And more."""
    found = tl_vzero.score(model, inputs, method="attention", layers=layers)
    every = found if isinstance(found, list) else [found]
    halved = [dataclasses.replace(each, values=each.values * share, method="halves") for each in every]
    return halved if isinstance(found, list) else halved[0]

def nothing(model, inputs):
    return None

number = 3
'''


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_entry_says_all_that_is_said_of_a_method(name: str) -> None:
    method = BUILT_IN[name]
    assert method.name == name and tl_vzero.METHODS[name] is method
    assert all((method.summary, method.reference, method.defined_for, method.label, method.needs))
    assert label_of(name) == method.label and label_of("of_a_plugin") == "Of a plugin"
    assert method.options is not None  # its function is where the entry says
    of_layer = method.layer
    for function in (of_layer.heads, of_layer.rows, of_layer.through) if of_layer else ():
        assert function is None or callable(resolved(function))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, code: str, points: dict[str, str]) -> None:
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{method} = {value}" for method, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[tl_vzero.methods]", *lines]))


def test_a_function_becomes_a_method(folder: Path) -> None:
    install(folder, "good_pack", GOOD, {"halves": "good_pack:halves"})
    methods = Methods(PLAIN)
    assert list(methods) == ["attention", "halves"] and len(methods) == 2
    assert "halves" in methods and "attention" in methods and "other" not in methods and 3 not in methods
    assert "good_pack" not in sys.modules  # listing names imports nothing
    halves = methods["halves"]
    assert halves.summary == "Half of attention" and "good_pack 1.2" in halves.reference and halves.needs == ()
    assert halves.options == ("layers", "share")
    assert methods["halves"] is halves
    model = tl_vzero.load_model("agreement-mini")
    scores: Any = halves(model, "the authors today.")
    whole: Any = tl_vzero.score(model, "the authors today.", method="attention")
    assert scores.method == "halves" and torch.equal(2 * scores.values, whole.values)


def test_a_method_with_all_that_is_said_of_it(folder: Path) -> None:
    code = "from tl_vzero.registry import Method\ntold = Method(print, 'a summary', 'a paper', 'all', ('clean run',))\n"
    install(folder, "told_pack", code, {"told": "told_pack:told"})
    method = Methods(PLAIN)["told"]
    assert (method.summary, method.reference, method.needs) == ("a summary", "a paper", ("clean run",))


def test_the_packages_own_name_stays(folder: Path) -> None:
    install(folder, "clash_pack", GOOD, {"attention": "clash_pack:halves", "halves": "clash_pack:halves"})
    methods = Methods(PLAIN)
    with pytest.warns(MethodNameWarning, match=r"clash_pack 1\.2 brings a method 'attention'.* tl_vzero has"):
        assert list(methods) == ["attention", "halves"]
    assert methods["attention"] is PLAIN["attention"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert list(methods) == ["attention", "halves"]


def test_of_two_packages_the_first_keeps_the_name(folder: Path) -> None:
    install(folder, "one_pack", GOOD, {"halves": "one_pack:halves"})
    install(folder, "two_pack", GOOD, {"halves": "two_pack:halves"})
    with pytest.warns(MethodNameWarning, match=r"(one|two)_pack 1\.2 brings .* (one|two)_pack 1\.2 has"):
        assert list(Methods(PLAIN)) == ["attention", "halves"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("broken_pack:anything", "ZeroDivisionError"),
        ("good_pack:absent", "AttributeError"),
        ("no_such_pack:anything", "ModuleNotFoundError"),
        ("good_pack:number", "is int: expected a Method or a function"),
    ],
)
def test_what_cannot_be_loaded_is_listed_and_says_so_when_used(folder: Path, value: str, said: str) -> None:
    for name in ("broken_pack", "good_pack"):
        sys.modules.pop(name, None)
    install(folder, "broken_pack", "1 / 0", {"broken": value})
    install(folder, "good_pack", GOOD, {"halves": "good_pack:halves"})
    methods = Methods(PLAIN)
    assert set(methods) == {"attention", "broken", "halves"}
    assert said in methods["broken"].summary
    with pytest.raises(PluginError, match=rf"'broken' of the package broken_pack 1\.2 cannot be used.*{said}"):
        methods["broken"](torch.nn.Module(), "text")
    assert methods["halves"].summary == "Half of attention"


PROGRAM = """
import tl_vzero
model = tl_vzero.load_model("agreement-mini")
text = "the authors today."
assert {*list(tl_vzero.METHODS)[-3:]} == {"halves", "nothing", "broken"}, list(tl_vzero.METHODS)
compared = tl_vzero.compare(model, text, ["attention", "halves"], options={"halves": {"share": 0.25}}, layers=[1])
assert (compared["halves"].values == compared["attention"].values / 4).all()
assert "halves" not in tl_vzero.compare(model, text)
for name, said in (("nothing", "gave NoneType for 1 sentences"), ("broken", "broken_pack 1.2 cannot be used")):
    try:
        tl_vzero.compare(model, text, [name])
    except tl_vzero.TLVZeroError as error:
        assert said in str(error), error
    else:
        raise AssertionError(name)
from tl_vzero.cli import app
app(["methods"], prog_name="tl-vzero")
"""


def test_an_installed_method_is_one_of_all(tmp_path: Path) -> None:
    install(tmp_path, "good_pack", GOOD, {"halves": "good_pack:halves", "nothing": "good_pack:nothing"})
    install(tmp_path, "broken_pack", "1 / 0", {"broken": "broken_pack:anything"})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(tl_vzero.__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Half of attention (the package good_pack 1.2)" in done.stdout
    assert "broken\n    cannot be used: broken_pack:anything cannot be loaded" in done.stdout
