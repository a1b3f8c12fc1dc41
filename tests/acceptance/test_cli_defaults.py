"""The commands without a sentence or a target, on each kind of model; and messages in the command line's own words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.decoder import KEYS, TOKENS, decoder_folder
from support.models import hf_bert, tokenizer
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from tl_vzero.cli import app
from tl_vzero.cli.common import in_options

RUNNER = CliRunner()
MASKED = "the pictures of some hat [MASK] scaring marcus."


def run(*words: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def numbers_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_decoder_opens_on_its_next_token(tmp_path: Path) -> None:
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    code, output = run("report", "--model", decoder_folder(), "--out", page, "--json", numbers, "--quiet")
    assert code == 0, output
    written = numbers_of(numbers)
    assert written["text"] == KEYS and tuple(written["tokens"]) == TOKENS
    assert written["target"] == {"position": 4, "token": " cabinet"}
    assert written["effect"]["target"] == 4 and len(written["predictions"]) == len(TOKENS)
    assert [tuple(pair) for pair in written["effect"]["predicted"]] == [tuple(p) for p in written["predictions"][-1]]


def test_a_decoder_is_compared_at_its_next_token(tmp_path: Path) -> None:
    code, output = run("compare", "--model", decoder_folder(), "--method", "attention", "--quiet")
    assert code == 0
    assert re.search(r"on the logit of '.+' as the next token after 4 cabinet", output)
    numbers = tmp_path / "map.json"
    for words, position in (((), 4), (("--target", "-2"), 3)):
        options = ("--method", "gradient_x_input", "--json", numbers, "--quiet")
        assert run("map", "--model", decoder_folder(), *options, *words)[0] == 0
        assert numbers_of(numbers)["dest_positions"] == [position]


def test_the_default_sentence_fits_the_model(tmp_path: Path) -> None:
    hf_bert(kind=BertForSequenceClassification).save_pretrained(tmp_path / "classifier")
    tokenizer().save_pretrained(tmp_path / "classifier")
    sentences = {
        "agreement-mini": (MASKED, 6),
        decoder_folder(): (KEYS, 4),
        str(tmp_path / "classifier"): ("the pictures of some hat are scaring marcus.", 0),
    }
    for model, (text, target) in sentences.items():
        numbers = tmp_path / "numbers.json"
        written = ("--out", tmp_path / "a.html", "--json", numbers, "--method", "attention", "--quiet")
        assert run("report", "--model", model, *written)[0] == 0
        assert (numbers_of(numbers)["text"], numbers_of(numbers)["target"]["position"]) == (text, target)
        for command in (["map"], ["heads"], ["compare", "--method", "attention"]):
            assert run(*command, "--model", model, "--quiet")[0] == 0


def test_a_classifiers_prediction_is_of_a_class(tmp_path: Path) -> None:
    hf_bert(kind=BertForSequenceClassification).save_pretrained(tmp_path / "classifier")
    tokenizer().save_pretrained(tmp_path / "classifier")
    code, output = run("compare", "--model", tmp_path / "classifier", "--method", "attention", "--quiet")
    assert code == 0 and "on the logit of 'LABEL_" in output and "at 0 [CLS]" in output


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "the hat.", "--method", "gradient_x_input"),
        ("report", "the hat.", "--good", "are"),
        ("report", "--good", "arre"),
        ("report", "--good", "are", "--bad", "are"),
        ("report", "--corrupted", "the picture [MASK] marcus."),
        ("map", "--stack", "cross"),
        ("map", "--heads", "9"),
        ("compare", "--layer", "9"),
        ("evaluate", "cue-alignment", "--protocol", "causal", "--limit", "5"),
        ("evaluate", "cue-alignment", "--cues", "spacy", "--limit", "5"),
        ("evaluate", "cue-alignment", "--model", "DECODER", "--limit", "5"),
        ("corpus", "FILE", "--out", "out", "--target", "3"),
        ("corpus", "FILE", "--out", "out", "--model", "DECODER", "--text-column", "words"),
    ],
    ids=" ".join,
)
def test_messages_speak_of_options(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"DECODER": decoder_folder(), "FILE": __file__}
    code, output = run(*(places.get(word, word) for word in words), "--quiet")
    assert code == 2 and output.startswith("error: ")
    assert not re.search(r"\w=|\w+_(ids|inputs|head|format|column)\b", output.replace(decoder_folder(), ""))


def test_a_target_that_is_needed_is_told_by_its_option() -> None:
    code, output = run("compare", "the hat.", "--method", "gradient_x_input", "--quiet")
    assert code == 2 and "expected exactly one; give --target, a position from 0 to 4" in output


def test_a_message_keeps_what_is_no_argument_of_python() -> None:
    for message in ("the text has 'a=b'", "target 99 is outside the sentence", "layers holds 9: expected 0 to 3"):
        assert in_options(message) == message
    assert in_options("stack='cross' given; give target=") == "--stack cross given; give --target"
    assert in_options('give protocol="masked", or per_head=True') == "give --protocol masked, or --per-head True"
