"""Scores as files: safetensors and JSON, never pickle, and nothing left behind."""

import json
import os
import pickle
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.scores import TOKENS, WORD_LABELS, make_scores, partial_scores, per_head_scores, random_values

from tl_vzero import Scores, TLVZeroError
from tl_vzero.errors import FileFormatError, InputError, ScoresError


def spans_scores() -> Scores:
    """Two spans that begin at one position."""
    spans = ((1, 2), (1,), (4, 6, 5))
    tokens = ("the scar", "the", "cat")
    return make_scores(random_values(3, 7, 3), src_tokens=tokens, src_positions=(1, 1, 4), src_spans=spans)


def crossing_scores() -> Scores:
    """Destinations of one sentence, sources of another one, of another length."""
    return make_scores(
        random_values(3, 7, 4),
        src_tokens=("x", "##y", "z", "</s>"),
        src_positions=(0, 1, 2, 3),
        n_src_positions=4,
        src_word_ids=(0, 0, 1, None),
    )


SAVED: list[Any] = [
    pytest.param(make_scores, id="raw"),
    pytest.param(lambda: make_scores().normalized(), id="normalized"),
    pytest.param(lambda: make_scores().rollout(), id="rollout"),
    pytest.param(lambda: make_scores(identity=True), id="identity"),
    pytest.param(partial_scores, id="partial"),
    pytest.param(per_head_scores, id="per_head"),
    pytest.param(lambda: make_scores().words(), id="words"),
    pytest.param(lambda: make_scores(random_values(3, 7, 7, dtype=torch.float32)), id="float32"),
    pytest.param(lambda: make_scores(random_values(3, 7, 7).transpose(1, 2)), id="not_contiguous"),
    pytest.param(
        lambda: make_scores(dest_tokens=("é", "<script>", '"', "\\", "\n", "日本", "👋"), word_ids=None),
        id="odd_tokens",
    ),
    pytest.param(lambda: make_scores(dest_tokens=("\udc80", "\ud83d", *"abcde")), id="half_of_a_surrogate_pair"),
    pytest.param(lambda: make_scores(dest_tokens=("\x1b[2J", "\u202e", "\0", *"abcd")), id="controls"),
    pytest.param(lambda: spans_scores(), id="spans"),
    pytest.param(lambda: crossing_scores(), id="cross"),
    pytest.param(lambda: crossing_scores().words(), id="cross_words"),
    pytest.param(lambda: partial_scores().words(), id="partial_words"),
    pytest.param(lambda: make_scores(random_values(3, 7, 7).bfloat16()), id="bfloat16"),
    pytest.param(lambda: make_scores(random_values(3, 7, 7).half() * torch.nan), id="values_that_are_nan"),
    pytest.param(lambda: make_scores() - make_scores(random_values(3, 7, 7, seed=1)), id="difference"),
]
LABELS = (
    "method",
    "layers",
    "dest_tokens",
    "src_tokens",
    "dest_positions",
    "src_positions",
    "n_layers",
    "n_positions",
    "heads",
    "word_ids",
    "identity",
    "stage",
    "unit",
    "partial",
    "empty_rows",
)


def assert_equal(one: Scores, other: Scores) -> None:
    assert one.values.dtype == other.values.dtype
    assert torch.equal(one.values.nan_to_num(-1.0), other.values.nan_to_num(-1.0))
    for label in LABELS:
        assert getattr(one, label) == getattr(other, label), label


@pytest.mark.parametrize("build", SAVED)
def test_save_and_load_give_the_same_scores(build: Callable[[], Scores], tmp_path: Path) -> None:
    scores = build()
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    assert_equal(again, scores)
    assert dict(again.metadata) == json.loads(json.dumps(dict(scores.metadata)))


def test_what_was_loaded_works_on(tmp_path: Path) -> None:
    scores = make_scores()
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(str(tmp_path / "scores.safetensors"))
    assert torch.equal(again.rollout().values, scores.rollout().values)
    assert again.words().dest_tokens == WORD_LABELS


def test_the_file_is_safetensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    make_scores().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert any(torch.equal(tensor, make_scores().values) for tensor in tensors.values())
    assert any("made up" in json.dumps(json.loads(text)) for text in header.values() if text.startswith("{"))
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, AttributeError)):
        pickle.loads(path.read_bytes())


def test_saving_overwrites_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    make_scores(random_values(3, 7, 7, seed=1)).save(path)
    make_scores().save(path)
    assert torch.equal(Scores.load(path).values, make_scores().values)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.safetensors"]


@pytest.mark.parametrize("name", ["scores.json", "scores.pt", "scores.npy", "scores.csv", "scores.safetensors.zip"])
def test_a_name_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.safetensors; for JSON there is to_dict"):
        make_scores().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    make_scores().save(tmp_path / "scores")
    assert_equal(Scores.load(tmp_path / "scores"), make_scores())


class Bomb:
    """Unpickling it would show."""

    exploded = False

    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    Bomb.exploded = True


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def _torch_pickle(path: Path) -> None:
    torch.save({"values": torch.zeros(1, 2, 2), "bomb": Bomb()}, path)


def _truncated(path: Path) -> None:
    make_scores().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def _header_only(path: Path) -> None:
    make_scores().save(path)
    path.write_bytes(path.read_bytes()[:64])


def _other_safetensors(path: Path) -> None:
    save_file({"values": torch.zeros(1, 2, 2)}, path)


def _other_safetensors_with_metadata(path: Path) -> None:
    save_file({"values": torch.zeros(1, 2, 2)}, path, metadata={"format": "pt"})


def _values_of_another_shape(path: Path) -> None:
    """A real header on values that do not fit it."""
    make_scores().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        header, names = file.metadata(), list(file.keys())
    save_file({name: torch.zeros(2, 3, 3) for name in names}, path, metadata=header)


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


NO_SCORES: list[Any] = [
    pytest.param(_pickle, id="pickle"),
    pytest.param(_torch_pickle, id="torch_save"),
    pytest.param(_truncated, id="truncated"),
    pytest.param(_header_only, id="cut_in_the_header"),
    pytest.param(_other_safetensors, id="other_safetensors"),
    pytest.param(_other_safetensors_with_metadata, id="other_safetensors_with_metadata"),
    pytest.param(_values_of_another_shape, id="values_of_another_shape"),
    pytest.param(lambda path: path.write_text("layer,dest,src\n"), id="text"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path: path.mkdir(), id="folder"),
    pytest.param(lambda path: None, id="missing"),
    pytest.param(_npy, id="npy"),
]


@pytest.mark.parametrize("write", NO_SCORES)
def test_a_file_that_is_no_scores_is_refused(write: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    write(path)
    with pytest.raises(TLVZeroError, match=r"given\.safetensors") as caught:
        Scores.load(path)
    assert isinstance(caught.value, ValueError)
    assert not Bomb.exploded


def _in_a_missing_folder(folder: Path) -> Path:
    return folder / "missing" / "scores.safetensors"


def _a_folder(folder: Path) -> Path:
    (folder / "scores.safetensors").mkdir()
    return folder / "scores.safetensors"


def _under_a_file(folder: Path) -> Path:
    (folder / "file").write_text("text")
    return folder / "file" / "scores.safetensors"


@pytest.mark.parametrize("choose", [_in_a_missing_folder, _a_folder, _under_a_file])
def test_an_output_path_that_cannot_be_written(choose: Callable[[Path], Path], tmp_path: Path) -> None:
    path = choose(tmp_path)
    before = sorted(str(entry) for entry in tmp_path.rglob("*"))
    with pytest.raises(TLVZeroError, match=r"scores\.safetensors") as caught:
        make_scores().save(path)
    assert isinstance(caught.value, ValueError)
    assert sorted(str(entry) for entry in tmp_path.rglob("*")) == before


def written(path: Path, labels: object, values: torch.Tensor | None = None) -> Path:
    """A file as `save` writes one, with labels as somebody altered them: a text, or what JSON makes one of."""
    text = labels if isinstance(labels, str) else json.dumps(labels)
    header = {"format": "tl_vzero.scores", "version": "1", "labels": text}
    save_file({"values": make_scores().values if values is None else values}, path, metadata=header)
    return path


def altered(**changes: Any) -> dict[str, Any]:
    return make_scores().labels() | changes


WITHIN = 2.0  # seconds, on a machine that others use too; reading such a file takes milliseconds
ALTERED: dict[str, Any] = {
    "brackets": "[" * 200_000,
    "brackets in a label": json.dumps(altered())[:-1] + ', "metadata": ' + "[" * 200_000,
    "objects": '{"a":' * 200_000,
    "digits": json.dumps(altered()).replace('"n_positions": 7', '"n_positions": ' + "9" * 5000),
    "NaN": json.dumps(altered(metadata={"a": float("nan")})),
    "infinity": json.dumps(altered(metadata={"a": float("-inf")})),
    "too large a number": json.dumps(altered()).replace('"n_positions": 7', '"n_positions": 1e999'),
    "a label twice": json.dumps(altered())[:-1] + ', "n_positions": 7}',
    "a list": [1, 2, 3],
    "null": None,
    "a number": 7,
    "no JSON": "values",
    "nothing": "",
    "a label too many": altered(colour="red"),
    "a long label": altered(**{"colour" * 10**5: "red"}),
    "a long stage": altered(stage="cooked" * 10**5),
    "a label that python has": altered(__class__="Scores"),
    "a label too few": {name: label for name, label in altered().items() if name != "identity"},
    "many positions": altered(n_positions=10**12),
    "many positions, word ids unknown": altered(n_positions=10**12, word_ids=None),
    "as many positions as fit": altered(n_positions=2**31 - 1),
    "many layers": altered(n_layers=10**12),
    "many source positions": altered(n_src_positions=10**12),
    "negative positions": altered(n_positions=-7),
    "a float": altered(n_positions=7.0),
    "true": altered(n_layers=True),
    "a text for a number": altered(n_positions="7"),
    "a number for a text": altered(method=7),
    "a number for a token": altered(dest_tokens=[1, *"bcdefg"]),
    "a text for a list": altered(dest_tokens="abcdefg"),
    "one for true": altered(identity=1),
    "no such stage": altered(stage="cooked"),
    "no such unit": altered(unit="sentence"),
    "a list for metadata": altered(metadata=[]),
    "a position twice": altered(dest_positions=[0, 1, 2, 3, 4, 5, 5]),
    "a source position twice": altered(src_positions=[0, 1, 2, 3, 4, 5, 5]),
    "a negative position": altered(dest_positions=[-1, 1, 2, 3, 4, 5, 6]),
    "a position outside": altered(src_positions=[0, 1, 2, 3, 4, 5, 7]),
    "a layer twice": altered(layers=[0, 1, 1]),
    "a negative layer": altered(layers=[-3, -2, -1]),
    "a layer outside": altered(layers=[0, 1, 3]),
    "no layers": altered(layers=[]),
    "a head twice": altered(heads=[0, 0]),
    "heads of no axis": altered(heads=[0]),
    "a token too many": altered(dest_tokens=[*"abcdefgh"]),
    "a source token too few": altered(src_tokens=[*"abcdef"]),
    "too few word ids": altered(word_ids=[None, 0, 1]),
    "word ids of no sentence": altered(word_ids=[]),
    "a word id that is a text": altered(word_ids=["0"] * 7),
    "a negative word id": altered(word_ids=[-1] * 7),
    "word ids of words": altered(unit="word"),
    "word ids of sources that are not there": altered(src_word_ids=[0] * 7),
    "spans too few": altered(src_spans=[[0]]),
    "an empty span": altered(src_spans=[[], *([i] for i in range(1, 7))]),
    "a span that begins elsewhere": altered(src_spans=[[1, 0], *([i] for i in range(1, 7))]),
    "a span outside": altered(src_spans=[[0, 7], *([i] for i in range(1, 7))]),
}


@pytest.mark.parametrize("labels", ALTERED.values(), ids=ALTERED)
def test_altered_labels_are_refused_in_words_and_at_once(labels: object, tmp_path: Path) -> None:
    path = written(tmp_path / "altered.safetensors", labels)
    begin = time.monotonic()
    with pytest.raises(FileFormatError, match=r"altered\.safetensors") as caught:
        Scores.load(path)
    assert time.monotonic() - begin < WITHIN
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "values",
    [
        torch.ones(3, 7, 7, dtype=torch.int64),
        torch.ones(3, 7, 7, dtype=torch.bool),
        torch.ones(3, 7, 7, dtype=torch.complex64),
        torch.ones(3, 7, 7).to(torch.float8_e4m3fn),
        torch.ones(0),
        torch.ones(3, 0, 7),
        torch.ones(()),
        torch.ones(3, 1, 7, 7),
    ],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_other_values_are_refused(values: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"altered\.safetensors"):
        Scores.load(written(tmp_path / "altered.safetensors", altered(), values))


@pytest.mark.parametrize("shape", [[3, 0, 7], [0, 7, 7], [3, 7, 0]])
def test_labels_of_an_empty_map_are_refused(shape: list[int], tmp_path: Path) -> None:
    layers, dests, sources = (list(range(size)) for size in shape)
    labels = altered(
        layers=layers,
        dest_positions=dests,
        src_positions=sources,
        dest_tokens=["a"] * shape[1],
        src_tokens=["a"] * shape[2],
    )
    with pytest.raises(FileFormatError, match=r"altered\.safetensors"):
        Scores.load(written(tmp_path / "altered.safetensors", labels, torch.ones(shape)))


def _more_tensors(path: Path) -> None:
    header = {"format": "tl_vzero.scores", "version": "1", "labels": json.dumps(altered())}
    save_file({"values": make_scores().values, "more": torch.ones(2)}, path, metadata=header)


def _raw(path: Path, about: object, n_bytes: int) -> None:
    """A header of our own making, before as many bytes, which take no room on the disk."""
    header = json.dumps(about).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + n_bytes)


def _long_shape(path: Path) -> None:
    metadata = {"format": "tl_vzero.scores", "version": "1", "labels": json.dumps(altered())}
    _raw(path, {"__metadata__": metadata, "values": {"dtype": "F64", "shape": [1] * 10**5}}, 8)


def _huge_shape(path: Path) -> None:
    labels = altered(layers=[0], n_layers=1)
    about = {
        "__metadata__": {"format": "tl_vzero.scores", "version": "1", "labels": json.dumps(labels)},
        "values": {"dtype": "F64", "shape": [2**20, 2**10, 2**10], "data_offsets": [0, 2**43]},
    }
    _raw(path, about, 2**40)


def _overlapping(path: Path) -> None:
    about = {
        "__metadata__": {"format": "tl_vzero.scores", "version": "1", "labels": json.dumps(altered())},
        "values": {"dtype": "F64", "shape": [3, 7, 7], "data_offsets": [8, 8]},
    }
    _raw(path, about, 3 * 7 * 7 * 8)


def _longer(path: Path) -> None:
    make_scores().save(path)
    path.write_bytes(path.read_bytes() + b"more")


def _other_version(path: Path) -> None:
    make_scores().save(path)
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"2"'))


NO_FILES: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "a header of a terabyte": lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"),
    "a header of deep brackets": lambda path: path.write_bytes((10**6).to_bytes(8, "little") + b"[" * 10**6),
    "a header that is a list": lambda path: _raw(path, [1], 8),
    "metadata that are a list": lambda path: _raw(path, {"__metadata__": [], "values": {}}, 8),
    "huge shape": _huge_shape,
    "long shape": _long_shape,
    "values elsewhere": _overlapping,
    "more tensors": _more_tensors,
    "more bytes": _longer,
    "another version": _other_version,
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_a_file_made_to_harm_is_refused_in_words_and_at_once(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "given.safetensors")
    begin = time.monotonic()
    with pytest.raises(FileFormatError, match=r"given\.safetensors") as caught:
        Scores.load(tmp_path / "given.safetensors")
    assert time.monotonic() - begin < WITHIN
    assert len(str(caught.value)) < 1000


def test_saving_keeps_a_file_as_private_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    before = os.umask(0o027)
    try:
        make_scores().save(path)
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        make_scores().save(path)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_link_to_scores_is_read_and_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to("scores.safetensors")
    make_scores().save(tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink()
    assert_equal(Scores.load(tmp_path / "link.safetensors"), Scores.load(tmp_path / "scores.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"baseline": torch.zeros(2)}}, "not what JSON holds"),
        ({"metadata": {"a": float("nan")}}, "not what JSON holds"),
        ({"metadata": {"options": {1: "one", "1": "text"}}}, "occurs twice"),
        ({"metadata": {"a": "b" * 2**24}}, "leave metadata out"),
        ({"dest_positions": (0, 1, 2, 3, 4, 5, 5)}, "dest_positions holds a number twice"),
        ({"n_positions": 10**12}, "n_positions"),
        ({"word_ids": (0,)}, "word_ids are of 1 positions, and the sentence has 7"),
    ],
)
def test_what_would_not_be_read_back_is_not_saved(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match=message):
        make_scores(**changes).save(tmp_path / "scores.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [10**12, 2**31 - 1])
def test_labels_in_memory_allocate_nothing_for_a_count(count: int) -> None:
    begin = time.monotonic()
    scores = make_scores(n_positions=count, n_layers=count)
    assert scores.partial and repr(scores) and scores.words().n_positions == 5
    with pytest.raises(ScoresError):
        scores.rollout()
    with pytest.raises(ScoresError):
        make_scores(n_layers=count).rollout()
    assert make_scores(n_src_positions=count).partial
    assert time.monotonic() - begin < WITHIN


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_values_in_memory_are_real_numbers(dtype: torch.dtype) -> None:
    from support.state import type_checks_off

    with type_checks_off(), pytest.raises(ScoresError, match="expected real numbers"):
        make_scores(torch.ones(3, 7, 7, dtype=dtype))


def test_no_token_acts_on_the_terminal_that_shows_the_scores() -> None:
    scores = make_scores(
        src_tokens=("\x1b[2J", "\u202eevil", "\udc80", "\r", "\x9b31m", "\u2028", "hat"), method="\x1b]0;title\x07"
    )
    shown = repr(scores)
    assert shown.isprintable() and "hat" in shown and r"\x1b" in shown
    shown.encode()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**13), 10**13)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.sampled_from(["raw", "rollout", "word", "token"]),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@example(build=make_scores, name="method", place=None, value="\ud800")
@example(build=make_scores, name="method", place=None, value="\ud7fc")
@example(build=make_scores, name="dest_tokens", place=1, value="\ud800")
@settings(max_examples=100, deadline=2000, derandomize=True)
@given(
    build=st.sampled_from([make_scores, partial_scores, per_head_scores, spans_scores, crossing_scores]),
    name=st.sampled_from(sorted(make_scores().labels())),
    place=st.none() | st.integers(0, 9),
    value=JSON,
)
def test_any_label_that_is_altered_gives_scores_that_hold_it_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[[], Scores], name: str, place: int | None, value: Any
) -> None:
    scores = build()
    labels = deepcopy(scores.labels())
    if place is not None and isinstance(labels[name], list) and labels[name]:
        labels[name][place % len(labels[name])] = value
    else:
        labels[name] = value
    path = written(tmp_path_factory.mktemp("fuzz") / "fuzzed.safetensors", labels, scores.values.contiguous())
    try:
        again = Scores.load(path)
    except FileFormatError:
        return
    assert again.labels() == labels and torch.equal(again.values, scores.values)
    assert repr(again).isprintable() and isinstance(again.partial, bool)
    for work in (again.words, again.rollout, again.to_frame):
        try:
            work()
        except ScoresError:
            continue
    again.save(path)
    assert Scores.load(path).labels() == labels


@settings(max_examples=200, deadline=2000)
@given(data=st.data())
def test_any_byte_that_is_altered_gives_equal_scores_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    scores = make_scores()
    scores.save(folder / "whole.safetensors")
    content = bytearray((folder / "whole.safetensors").read_bytes())
    begins = 8 + int.from_bytes(content[:8], "little")  # of the values, of which any bytes are numbers
    at = data.draw(st.integers(0, begins - 1))
    cut = data.draw(st.integers(0, 40))
    content[at : at + cut] = data.draw(st.binary(max_size=40) | st.sampled_from([b'"', b"[", b"}", b"\\", b"9", b"-"]))
    (folder / "fuzzed.safetensors").write_bytes(content)
    try:
        again = Scores.load(folder / "fuzzed.safetensors")
    except FileFormatError:
        return
    again.save(folder / "again.safetensors")
    assert_equal(Scores.load(folder / "again.safetensors"), again)


def test_unknown_positions_are_saved_and_a_file_without_them_has_none(tmp_path: Path) -> None:
    make_scores(metadata={"unknown": [3, 4]}).save(tmp_path / "new.safetensors")
    make_scores().save(tmp_path / "old.safetensors")
    assert Scores.load(tmp_path / "new.safetensors").unknown_positions == (3, 4)
    assert Scores.load(tmp_path / "old.safetensors").unknown_positions == ()


@pytest.mark.parametrize("odd", ["34", ["3"], [True], 3, [1.0], None])
def test_unknown_positions_that_are_none_are_refused(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(ScoresError, match=r"metadata\['unknown'\] holds no positions"):
        make_scores(metadata={"unknown": odd}).save(tmp_path / "odd.safetensors")


def long_rows() -> Scores:
    scores = make_scores().normalized()
    return replace(scores, error=scores.values / 10).strongest(2)


def test_errors_and_what_is_omitted_are_saved(tmp_path: Path) -> None:
    scores = long_rows()
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    assert_equal(again, scores)
    assert scores.error is not None and scores.omitted is not None
    assert torch.equal(again.error, scores.error) and torch.equal(again.omitted, scores.omitted)
    assert again.metadata["src_tokens"] == list(TOKENS)


def with_error(path: Path, error: torch.Tensor) -> Path:
    header = {"format": "tl_vzero.scores", "version": "1", "labels": json.dumps(altered())}
    save_file({"values": make_scores().values, "error": error}, path, metadata=header)
    return path


@pytest.mark.parametrize(
    "error",
    [
        torch.zeros(3, 7, 6),
        torch.zeros(3, 7),
        torch.full((3, 7, 7), -1e-9),
        torch.full((3, 7, 7), torch.nan),
        torch.zeros(3, 7, 7, dtype=torch.int64),
    ],
    ids=["narrower", "of_rows", "negative", "nan", "integers"],
)
def test_an_error_that_is_none_is_refused(error: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"error\.safetensors"):
        Scores.load(with_error(tmp_path / "error.safetensors", error))


def test_an_error_that_would_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="its error is negative"):
        make_scores(error=torch.full((3, 7, 7), -1.0)).save(tmp_path / "scores.safetensors")


@pytest.mark.parametrize("odd", [["a"] * 6, [1] * 7, "abcdefg"])
def test_texts_of_all_sources_that_are_none_are_refused(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(FileFormatError, match="7 sources"):
        Scores.load(written(tmp_path / "odd.safetensors", altered(metadata={"src_tokens": odd})))
