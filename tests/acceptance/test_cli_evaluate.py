"""The evaluations from the command line: a table to read, files to compute with, bad input in words."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.evaluated import reproduction
from support.models import hf_gpt2, tokenizer
from transformers import AutoTokenizer, BertForMaskedLM
from typer.testing import CliRunner

import tl_vzero
from tl_vzero.cli import app
from tl_vzero.evaluate.cue_alignment import cue_alignment
from tl_vzero.evaluate.protocol import Reproduction
from tl_vzero.evaluate.sentences import sentences_for

RUNNER = CliRunner()
MINI = Path(tl_vzero.__file__).parent / "assets" / "agreement-mini"
TWO = ["--method", "value_zeroing", "--method", "attention"]


def run(*words: str | Path) -> tuple[int, str]:
    result = RUNNER.invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def strict(path: Path) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"the JSON holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_cue_alignment_prints_a_table_and_writes_json_and_csv(tmp_path: Path) -> None:
    files = ["--json", tmp_path / "cue.json", "--csv", tmp_path / "cue.csv"]
    code, output = run("evaluate", "cue-alignment", *TWO, "--limit", "20", "--seed", "3", *files, "--quiet")
    assert code == 0
    assert "value_zeroing" in output and "chosen by limit 20" in output and "chance" in output
    model = tl_vzero.load_model("agreement-mini")
    chosen = sentences_for(model, limit=20, seed=3).examples
    expected = cue_alignment(model, chosen, ["value_zeroing", "attention"], seed=3).to_frame()
    table = pd.read_csv(tmp_path / "cue.csv")
    assert table["mean"].tolist() == pytest.approx(expected["mean"].tolist())
    written = strict(tmp_path / "cue.json")
    assert len(written["cells"]) == len(table)
    assert written["source"] == "the embedded agreement sentences"
    assert sum(written["filters"][-1]["kept"].values()) == 20


def test_the_other_measure_can_be_printed() -> None:
    code, output = run("evaluate", "cue-alignment", "--measure", "average_precision", *TWO, "--limit", "10", "--quiet")
    assert code == 0
    assert output.startswith("average precision")


def test_probing_prints_every_layer_and_the_embeddings(tmp_path: Path) -> None:
    code, output = run("evaluate", "probing", "--limit", "190", "--json", tmp_path / "probing.json", "--quiet")
    assert code == 0
    assert "layer -1: embeddings" in output
    written = strict(tmp_path / "probing.json")
    assert written["layers"] == [-1, 0, 1, 2, 3] and written["mode"] == "correct" and written["n"] == 190


def test_probing_repeats_the_published_program(tmp_path: Path) -> None:
    table = tmp_path / "probing.csv"
    code, _ = run("evaluate", "probing", "--mode", "paper", "--limit", "100", "--csv", table, "--quiet")
    assert code == 0
    assert pd.read_csv(table)["mode"].unique().tolist() == ["paper"]


def test_faithfulness_takes_every_convention(tmp_path: Path) -> None:
    chosen = ["--replacement", "removed", "--change", "absolute", "--over", "forms", "--special-tokens"]
    file = tmp_path / "faith.json"
    code, output = run("evaluate", "faithfulness", *TWO, "--limit", "10", *chosen, "--json", file, "--quiet")
    assert code == 0
    assert "value_zeroing" in output
    conventions = strict(file)["settings"]["conventions"]
    assert conventions == {"replacement": "removed", "change": "absolute", "over": "forms", "special_tokens": True}


def test_knockout_takes_every_convention(tmp_path: Path) -> None:
    chosen = ["--renormalise", "--change", "absolute", "--over", "forms", "--special-tokens"]
    file = tmp_path / "knockout.json"
    code, output = run("evaluate", "knockout", *TWO, "--limit", "4", *chosen, "--json", file, "--quiet")
    assert code == 0 and "from_layer" in output and "value_zeroing" in output
    settings = strict(file)["settings"]
    conventions = {"change": "absolute", "over": "forms", "special_tokens": True, "renormalise": True}
    assert settings | conventions == settings


def test_removal_prints_what_stays_and_the_time(tmp_path: Path) -> None:
    chosen = ["--layer", "1", "--share", "0.5", "--share", "1", "--own-layer", "--repeats", "1"]
    file = tmp_path / "removal.json"
    code, output = run("evaluate", "removal", *TWO, "--limit", "10", *chosen, "--json", file, "--quiet")
    assert code == 0, output
    assert "from block 1 on" in output and "random" in output and "of the time of whole sentences" in output
    written = strict(file)
    assert written["settings"]["shares"] == [0.5, 1] and written["settings"]["rolled_out"] is False
    assert len(written["times"]) == 2


def test_a_users_own_sentences(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    rows = [
        "the pictures of some hat [MASK] scaring marcus.,are,is,pictures",
        "the picture of some hats [MASK] scaring marcus.,is,are,picture",
        "the picture of some hats [MASK] scaring marcus.,zyzzyvas,are,picture",
    ]
    mine.write_text("sentence,good,bad,cue\n" + "\n".join(rows) + "\n", encoding="utf-8")
    file = tmp_path / "mine.json"
    code, output = run("evaluate", "cue-alignment", "--examples", mine, *TWO, "--json", file, "--quiet")
    assert code == 0
    assert "sentences: mine.csv; read 3, target is one token 2" in output
    (gone,) = strict(file)["filtered_out"]
    assert "zyzzyvas" in gone["reason"]


def numbers_of(path: Path) -> list[list[float]]:
    return pd.read_csv(path).select_dtypes("number").to_numpy().tolist()


EIGHT = ["--limit", "8", "--seed", "1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the sentences of an evaluation."""
    folder = tmp_path_factory.mktemp("scored")
    code, output = run("evaluate", "sentences", *EIGHT, "--out", folder / "sentences.jsonl")
    assert code == 0 and "sentences.jsonl: 8 sentences" in output.replace("\n", "")
    methods = ["--methods", "value_zeroing,attention"]
    assert run("corpus", folder / "sentences.jsonl", "--out", folder / "corpus", *methods, "--quiet")[0] == 0
    return folder / "corpus"


@pytest.mark.parametrize("evaluation", ["cue-alignment", "faithfulness", "removal"])
def test_scoring_and_evaluating_are_separate_steps(tmp_path: Path, corpus: Path, evaluation: str) -> None:
    tables = [tmp_path / "computed.csv", tmp_path / "read.csv"]
    for table, origin in zip(tables, [[], ["--corpus", corpus]], strict=True):
        code, output = run("evaluate", evaluation, *EIGHT, *TWO, *origin, "--csv", table, "--quiet")
        assert code == 0, output
    computed, read = map(numbers_of, tables)
    assert len(computed) == len(read) > 0
    assert all(one == pytest.approx(other, abs=1e-5, nan_ok=True) for one, other in zip(read, computed, strict=True))


def test_sentences_that_a_corpus_lacks_are_counted(corpus: Path) -> None:
    words = ["--limit", "9", "--seed", "1", "--corpus", corpus, "--quiet"]
    code, output = run("evaluate", "cue-alignment", *words)
    assert code == 2 and "1 of 9 examples are not among the 8 sentences" in output.replace("\n", " ")


def test_a_table_of_masked_sentences_is_a_corpus_as_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text(
        "sentence,good,bad,cue\nthe pictures of some hat [MASK] scaring marcus.,are,is,pictures\n"
        "the zyzzyva of some hats [MASK] scaring marcus .,is,are,zyzzyva\n",
        encoding="utf-8",
    )
    corpus = tmp_path / "corpus"
    assert run("corpus", mine, "--out", corpus, "--rows", "target", "--quiet")[0] == 0
    code, output = run("evaluate", "cue-alignment", "--examples", mine, "--corpus", corpus, "--quiet")
    assert code == 0, output
    assert "value_zeroing" in output and "mine.csv; read 2" in output
    code, output = run("evaluate", "faithfulness", "--examples", mine, "--corpus", corpus, "--quiet")
    assert code == 2 and "needs whole maps" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cue-alignment", "--blimp", "no/such/folder"], "no folder no/such/folder"),
        (["cue-alignment", "--examples", "none.csv"], "no file none.csv"),
        (["cue-alignment", "--examples", "none.csv", "--blimp", "there"], "one source of sentences"),
        (["cue-alignment", "--method", "atention"], "did you mean 'attention'"),
        (["cue-alignment", "--limit", "0"], "limit is 0"),
        (["cue-alignment", "--protocol", "causal", "--limit", "5"], "attends in both directions"),
        (["cue-alignment", "--csv", "no/such/folder/table.csv"], "does not exist"),
        (["cue-alignment", "--model", "agrement-mini"], "agreement-mini"),
        (["cue-alignment", "--corpus", "none"], "none is no corpus"),
        (["probing", "--corpus", "any"], "probing reads representations, and a corpus holds maps"),
        (["probing", "--limit", "20"], "given 20 examples: expected at least 188"),
        (["probing", "--seed", "-1"], "seed is -1"),
        (["removal", "--layer", "4"], "layer holds 4: expected 0 to 3"),
        (["removal", "--share", "1.5"], "shares hold 1.5"),
        (["faithfulness", "--model", "all-MiniLM-L6-v2", "--limit", "5"], "no trained prediction head"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output = run("evaluate", *words, "--quiet")
    assert code == 2
    assert output.startswith("error: ")
    assert said in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--replacement", "nothing"], ["--over", "words"], ["--change", "small"]])
def test_an_unknown_convention_is_refused(words: list[str]) -> None:
    code, output = run("evaluate", "faithfulness", *words)
    assert code == 2
    assert "is not one of" in output


def test_a_causal_model_is_offered_the_causal_protocol(tmp_path: Path) -> None:
    hf_gpt2().save_pretrained(tmp_path / "gpt2")
    tokenizer().save_pretrained(tmp_path / "gpt2")
    mine = tmp_path / "mine.csv"
    mine.write_text("sentence,good,bad,cue\nsome dogs near the hat [MASK] near marcus.,are,is,dogs\n", encoding="utf-8")
    words = ["evaluate", "cue-alignment", "--model", tmp_path / "gpt2", "--examples", mine, *TWO, "--quiet"]
    code, output = run(*words)
    assert code == 2 and "--protocol causal" in output
    code, output = run(*words, "--protocol", "causal")
    assert code == 0


def test_reproduce_writes_the_page_the_numbers_and_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, object] = {}

    def made_up(model: object, **chosen: object) -> Reproduction:
        options.update(chosen)
        return reproduction()

    monkeypatch.setattr("tl_vzero.evaluate.protocol.reproduce", made_up)
    code, output = run("reproduce", "--limit", "2", "--seed", "5", "--out", tmp_path, "--quiet")
    assert code == 0, output
    assert (options["limit"], options["seed"], options["folder"], options["progress"]) == (2, 5, tmp_path, False)
    assert "Value Zeroing lies on the cue more than every other method" in output and "\ntook " in output
    assert "<html" in (tmp_path / "reproduction.html").read_text(encoding="utf-8")
    assert strict(tmp_path / "reproduction.json")["metadata"] == json.loads(json.dumps(reproduction().metadata))
    assert {path.stem for path in tmp_path.glob("*.csv")} == set(reproduction().frames())
    assert len(pd.read_csv(tmp_path / "cue_alignment.csv")) == len(reproduction().frames()["cue_alignment"])


@pytest.mark.slow
def test_reproduce_runs_the_protocol_once_for_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run("reproduce", "--limit", "2", "--out", out, "--quiet")
    assert code == 0, output
    assert "Value Zeroing lies on the cue more than every other method" in output
    assert "\ntook " in output
    assert "<html" in (out / "reproduction.html").read_text(encoding="utf-8")
    written = strict(out / "reproduction.json")
    assert written["metadata"]["evaluated_n"] == 2 and written["missing"]["probing"]
    table = pd.read_csv(out / "cue_alignment.csv")
    assert {"value_zeroing", "integrated_gradients"} <= set(table["method"])
    code, output = run("reproduce", "--limit", "3", "--out", out, "--quiet")
    assert code == 2 and "limit was 2, is 3" in output


def test_reproduce_refuses_bad_input_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in ((["--blimp", "none"], "no folder none"), (["--limit", "0"], "limit is 0")):
        code, output = run("reproduce", *words, "--quiet")
        assert code == 2 and output.startswith("error: ") and said in output
    assert not list(tmp_path.iterdir())


def heads_of(file: Path) -> set[tuple[int, int]]:
    table = pd.read_csv(file)
    changed = table[table["changed"].eq(True)]
    return set(zip(changed["layer"], changed["head"], strict=True))


def test_training_names_the_head_that_a_checkpoint_changed(tmp_path: Path) -> None:
    before, after = BertForMaskedLM.from_pretrained(MINI), tmp_path / "after"
    with torch.no_grad():
        before.bert.encoder.layer[2].attention.output.dense.weight[:, 32:64] = 0  # head 1
    before.save_pretrained(after)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(after)
    files = ["--json", tmp_path / "training.json", "--csv", tmp_path / "training.csv"]
    files += ["--page", tmp_path / "training.html", "--heads", tmp_path / "heads.csv"]
    code, output = run("evaluate", "training", "--checkpoint", after, "--limit", "24", *files, "--quiet")
    assert code == 0, output
    assert "mix into the target: 1 of 16" in output and "chosen by limit 24" in output
    assert heads_of(tmp_path / "training.csv") == {(2, 1)}
    assert pd.read_csv(tmp_path / "heads.csv")[["layer", "head"]].to_numpy().tolist() == [[2, 1]]
    page = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "<h3>Layer 2, head 1: " in page and "24: the embedded agreement sentences" in page
    written = strict(tmp_path / "training.json")
    assert {(one["layer"], one["head"]) for one in written["shown"]} == {(2, 1)}
    assert written["settings"]["rate"] == 0.05 and "filters" in written


@pytest.mark.filterwarnings("ignore")
def test_training_reads_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = peft.LoraConfig(
            r=4, lora_alpha=64, target_modules=["value"], layers_to_transform=[1], init_lora_weights=False
        )
        peft.get_peft_model(BertForMaskedLM.from_pretrained(MINI), options).save_pretrained(tmp_path / "lora")
    file = tmp_path / "training.csv"
    words = ["--adapter", tmp_path / "lora", "--limit", "24", "--csv", file, "--quiet"]
    code, output = run("evaluate", "training", *words)
    assert code == 0, output
    assert {layer for layer, _ in heads_of(file)} == {1}


def test_training_says_what_it_lacks(tmp_path: Path) -> None:
    code, output = run("evaluate", "training")
    assert code == 2 and "expected at least one --checkpoint or --adapter" in output
    code, output = run("evaluate", "training", "--checkpoint", MINI, "--open")
    assert code == 2 and "--open without --page" in output
    code, output = run("evaluate", "training", "--checkpoint", tmp_path / "none")
    assert code == 2 and output.startswith("error: ")
    code, output = run("evaluate", "training", "--adapter", tmp_path, "--limit", "6", "--quiet")
    assert code == 2 and "holds no adapter_config.json" in output
