"""BLiMP as read from files and from the hub, made-up and real; its cues against a list written by hand."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import httpx
import pytest

from tl_vzero.data.blimp import FIVE, PARADIGM_FILES, MinimalPair, _example, cue_by_template, read_blimp
from tl_vzero.data.examples import ExampleSet
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, OfflineError

RPSV = PARADIGM_FILES["rpsv"]


def record(pair: int, good: str = "The dogs bark.", bad: str = "The dogs barks.") -> dict[str, str]:
    return {"sentence_good": good, "sentence_bad": bad, "UID": RPSV, "pairID": str(pair)}


def write(folder: Path, records: list[dict[str, str]]) -> Path:
    lines = "".join(json.dumps(fields) + "\n" for fields in records)
    (folder / f"{RPSV}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def thousand(*first: dict[str, str]) -> list[dict[str, str]]:
    return [*first, *(record(pair) for pair in range(len(first), 1000))]


def test_an_example_of_a_pair(tmp_path: Path) -> None:
    first = record(0, "The cats haven't slept.", "The cats hasn't slept.")
    example = read_blimp(write(tmp_path, thousand(first)), paradigms=["rpsv"])[0]
    assert example.words == ("The", "cats", "have", "not", "slept", ".")
    assert (example.target, example.good, example.bad, example.cue) == (2, "have", "has", (1,))
    assert (example.id, example.pair, example.number, example.cue_source) == ("rpsv-0", "0", "plural", "template")


def test_pairs_that_cannot_be_used_are_counted_and_listed(tmp_path: Path) -> None:
    odd = [
        record(0, "The dogs bark.", "The dogs bark."),
        record(1, "The dogs bark.", "The dog barks."),
        record(2, "The dogs bark.", "The dogs bark loudly."),
        record(3, "The dogs ain't old.", "The dogs isn't old."),
        record(4, "Bark loudly.", "Barks loudly."),
    ]
    examples = read_blimp(write(tmp_path, thousand(*odd)), paradigms=["rpsv"])
    assert examples.report.to_frame().loc["rpsv"].to_dict() == {
        "read": 1000,
        "contractions expanded": 999,
        "differ in one word": 996,
        "cue found": 995,
    }
    skipped = examples.report.skipped_frame().set_index("id")
    assert skipped["stage"].to_dict() == {
        "rpsv-0": "differ in one word",
        "rpsv-1": "differ in one word",
        "rpsv-2": "differ in one word",
        "rpsv-3": "contractions expanded",
        "rpsv-4": "cue found",
    }
    assert skipped.loc["rpsv-0", "reason"] == "the sentences differ in 0 words"
    assert skipped.loc["rpsv-1", "reason"] == "the sentences differ in 2 words"
    assert skipped.loc["rpsv-2", "reason"] == "4 words in the good sentence, 5 in the bad one"
    assert "ain't" in skipped.loc["rpsv-3", "reason"]
    assert skipped.loc["rpsv-4", "reason"] == "no noun before the target"


def test_a_paradigm_by_its_file_name(tmp_path: Path) -> None:
    assert read_blimp(write(tmp_path, thousand()), paradigms=[RPSV]).counts() == {"rpsv": 1000}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (thousand()[:999], "holds 999 pairs: expected the published 1000"),
        ([*thousand(), record(1000)], "holds 1001 pairs"),
        ([*thousand()[:999], record(5)], "a pair number twice"),
        ([{"sentence_good": "The dogs bark.", "UID": RPSV}], "line 1 has no column sentence_bad, pairID"),
        ([record(0) | {"UID": "wh_island"}], f"line 1 is of the paradigm wh_island: expected {RPSV}"),
        ([["The dogs bark."]], "line 1 is list: expected an object"),
        ([record(0) | {"sentence_good": 7}], "line 1 has .*sentence_good=7.*expected a number and two texts"),
        ([record(0) | {"sentence_bad": None}], "line 1 has .*sentence_bad=None"),
        ([record(0) | {"pairID": ["0"]}], "line 1 has pairID="),
    ],
)
def test_a_file_that_is_not_as_published(tmp_path: Path, records: list, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_blimp(write(tmp_path, records), paradigms=["rpsv"])


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / f"{RPSV}.jsonl").write_text("sentence_good,sentence_bad\n")
    with pytest.raises(FileFormatError, match="line 1 is no JSON"):
        read_blimp(tmp_path, paradigms=["rpsv"])
    for text, message in (("[" * 200_000, "nested"), ("9" * 5000, "digits"), ('{"UID": 1, "UID": 2}', "twice")):
        (tmp_path / f"{RPSV}.jsonl").write_text(text)
        with pytest.raises(FileFormatError, match=f"line 1 is no JSON .*{message}"):
            read_blimp(tmp_path, paradigms=["rpsv"])
    (tmp_path / f"{RPSV}.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="no text in UTF-8"):
        read_blimp(tmp_path, paradigms=["rpsv"])


def test_no_folder_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no folder .*nowhere"):
        read_blimp(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match=r"no file anaphor_number_agreement\.jsonl in .*for the paradigm ana"):
        read_blimp(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"paradigms": ["rsvp"]}, InputError, "unknown paradigm 'rsvp'.*did you mean 'rpsv'"),
        ({"paradigms": []}, InputError, "paradigms is empty"),
        ({"paradigms": "ana"}, InputTypeError, r"such as \['ana'\]"),
        ({"paradigms": ["ana", "anaphor_number_agreement"]}, InputError, "each at most once"),
        ({"cannot": "can't"}, InputError, "unknown writing of can't"),
    ],
)
def test_arguments_are_checked_first(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_blimp("/nowhere", **arguments)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The hub's client and cache replaced: `rows` is what it would give, `requests` what was requested of it."""
    state = SimpleNamespace(rows=[], requests=[], cache=tmp_path)

    def load_dataset(name: str, configuration: str, *, split: str) -> list[dict[str, object]]:
        state.requests.append((name, configuration, split))
        return state.rows

    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(httpx, "head", lambda *_, **__: None)
    return state


def unreachable(*_: object, **__: object) -> None:
    raise httpx.ConnectError("no network")


def hub_rows(count: int) -> list[dict[str, object]]:
    rows = thousand()[:count]
    return [{name: row[name] for name in row if name != "pairID"} | {"pair_id": i} for i, row in enumerate(rows)]


def test_pairs_from_the_hub(hub: SimpleNamespace) -> None:
    hub.rows = hub_rows(1000)
    examples = read_blimp(paradigms=["rpsv"])
    assert hub.requests == [("nyu-mll/blimp", RPSV, "train")]
    assert len(examples) == 1000 and examples[7].id == "rpsv-7"


def test_the_hub_gives_too_few(hub: SimpleNamespace) -> None:
    hub.rows = hub_rows(3)
    with pytest.raises(FileFormatError, match="holds 3 pairs"):
        read_blimp(paradigms=["rpsv"])


def test_no_network(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "head", unreachable)
    with pytest.raises(OfflineError, match=r"cannot be reached.*not in the local cache.*folder="):
        read_blimp(paradigms=["rpsv"])
    assert not hub.requests


def test_the_hub_switched_off(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
        read_blimp(paradigms=["rpsv"])
    assert not hub.requests


def test_the_cache_serves_without_a_network(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "head", unreachable)
    (hub.cache / "nyu-mll___blimp" / RPSV).mkdir(parents=True)
    hub.rows = hub_rows(1000)
    assert len(read_blimp(paradigms=["rpsv"])) == 1000


def test_the_client_fails_underway(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", unreachable_dataset)
    with pytest.raises(OfflineError, match="broken off"):
        read_blimp(paradigms=["rpsv"])


def unreachable_dataset(*_: object, **__: object) -> None:
    raise ConnectionError("broken off")


def test_blimp_itself(blimp) -> None:
    """All pairs of the five paradigms can be used, and their contractions are written out."""
    assert blimp.counts() == dict.fromkeys(FIVE, 1000)
    assert not blimp.report.skipped
    assert blimp.report.to_frame().loc["all"].tolist() == [5000] * 4
    assert not [example.id for example in blimp if any(word.endswith(("n't", "n’t")) for word in example.words)]
    assert not [example.id for example in blimp if example.number is None]


LIST = json.loads((Path(__file__).parent / "hand_checked.json").read_text(encoding="utf-8"))


def cue_of(example) -> tuple:
    return example.target, example.cue, example.attractor


def expected(entry: dict) -> tuple:
    return entry["target"], (entry["cue"],), tuple(entry["attractor"])


def test_the_list_is_long_enough() -> None:
    counts = Counter(entry["paradigm"] for entry in LIST["blimp"])
    assert all(counts[paradigm] >= 20 for paradigm in FIVE)
    assert len({(entry["paradigm"], entry["pair"]) for entry in LIST["blimp"]}) == len(LIST["blimp"])


def test_blimp_as_checked_by_hand(blimp: ExampleSet) -> None:
    by_id = {example.id: example for example in blimp}
    wrong = {}
    for entry in LIST["blimp"]:
        example = by_id[f"{entry['paradigm']}-{entry['pair']}"]
        if cue_of(example) != expected(entry):
            wrong[example.id] = (cue_of(example), expected(entry))
    assert not wrong


@pytest.mark.parametrize("entry", LIST["own"], ids=lambda entry: entry["good"])
def test_sentences_of_ours(entry: dict) -> None:
    pair = MinimalPair(entry["paradigm"], "0", entry["good"], entry["bad"])
    assert cue_of(_example(pair, "cannot")) == expected(entry)


@pytest.mark.parametrize(
    ("paradigm", "sentence", "target", "reason"),
    [
        ("ana", "Susan saw them .", 2, "no reflexive"),
        ("ana", "The themselves .", 1, "no noun phrase"),
        ("dna", "Susan saw the dog .", 2, "no demonstrative"),
        ("dnaa", "Susan saw this .", 2, "no noun after"),
        ("darn", "A lot of dogs bark .", 4, "no about or of"),
        ("darn", "The dogs bark .", 2, "no about or of"),
        ("rpsv", "The bark .", 1, "no noun before"),
        ("rpsv", "A lot of bark .", 3, "no noun before"),
    ],
)
def test_sentences_of_another_template(paradigm: str, sentence: str, target: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        cue_by_template(paradigm, sentence.split(), target)
