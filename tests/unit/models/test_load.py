"""load_model: the embedded default, folders, hub names, in-memory models; and what it must warn about."""

import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support import references
from support.golden import minilm_folder
from support.models import (
    VOCABULARY,
    bridge,
    hf_bert,
    hf_bert_headless,
    hf_gpt2,
    hf_gpt2_headless,
    hf_llama,
    hf_neox,
    hooked_transformer,
    loaded,
    tokenizer,
    tokenizer_folder,
    unsaved_tokenizer,
)
from torch import Tensor

import tl_vzero
from tl_vzero import TLVZeroError
from tl_vzero.errors import ModelError
from tl_vzero.models.hub import layer_count

IDS = [2, 5, 9, 10, 3]
EMBEDDED = Path(tl_vzero.__file__).parent / "assets" / "agreement-mini"
HF_MODELS = [hf_bert, hf_bert_headless, hf_gpt2, hf_gpt2_headless, hf_llama, hf_neox]


def raw(model: Any, ids: list[int] = IDS) -> Tensor:
    return tl_vzero.value_zeroing(model, torch.tensor(ids)).values


def assert_right(model: Any, hf_model: Any, tolerance: float = 5e-6) -> None:
    assert (raw(model) - references.value_zeroing(hf_model, IDS)).abs().max() < tolerance


# --- the embedded default -------------------------------------------------------------------------------

needs_embedded = pytest.mark.skipif(
    not (EMBEDDED / "model.safetensors").exists(), reason="tl_vzero/assets/agreement-mini is not trained yet"
)


@needs_embedded
def test_the_embedded_model_reads_a_sentence_with_a_mask() -> None:
    model = tl_vzero.load_model("agreement-mini")
    scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    assert "[MASK]" in scores.src_tokens
    assert scores.dest_tokens[0] == "[CLS]" and scores.dest_tokens[-1] == "[SEP]"
    assert (scores.normalized().values.sum(-1) - 1).abs().max() < 1e-6
    assert next(model.parameters()).dtype == torch.float32


@needs_embedded
def test_the_embedded_model_takes_a_dtype() -> None:
    model = tl_vzero.load_model("agreement-mini", dtype=torch.float64, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    ids = [2, 6, 7, 8, 3]
    narrow = raw(tl_vzero.load_model("agreement-mini"), ids)
    assert (raw(model, ids) - narrow).abs().max() < 1e-5


def test_minilm_by_name() -> None:
    minilm_folder()
    scores = tl_vzero.value_zeroing(tl_vzero.load_model("all-MiniLM-L6-v2"), "the pictures of some hat")
    assert scores.dest_tokens == ("[CLS]", "the", "pictures", "of", "some", "hat", "[SEP]")


# --- folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("make", HF_MODELS)
def test_a_local_folder(make: Callable[..., Any], as_type: type, tmp_path: Path) -> None:
    hf_model = make()
    hf_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = tl_vzero.load_model(as_type(tmp_path))
    assert_right(model, hf_model)
    assert tl_vzero.value_zeroing(model, "the dog").dest_tokens == ("[CLS]", "the", "dog", "[SEP]")


@pytest.mark.parametrize("make", HF_MODELS)
def test_a_folder_without_a_tokenizer_loads_and_only_strings_raise(make: Callable[..., Any], tmp_path: Path) -> None:
    hf_model = make()
    hf_model.save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path)
    assert_right(model, hf_model)
    for text in ("the dog", ["the dog"]):
        with pytest.raises(TLVZeroError, match=r"(?i)tokenizer") as caught:
            tl_vzero.value_zeroing(model, text)
        assert isinstance(caught.value, ValueError | TypeError)


def test_labels_without_a_tokenizer_name_the_ids(tmp_path: Path) -> None:
    hf_bert().save_pretrained(tmp_path)
    scores = tl_vzero.value_zeroing(tl_vzero.load_model(tmp_path), torch.tensor(IDS))
    assert len(scores.dest_tokens) == len(IDS)
    for label, token_id in zip(scores.dest_tokens, IDS, strict=True):
        assert str(token_id) in label


def test_a_folder_with_a_tokenizer_of_the_users_own(tmp_path: Path) -> None:
    hf_bert().save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path, tokenizer=tokenizer())
    assert tl_vzero.value_zeroing(model, "the dog").dest_tokens == ("[CLS]", "the", "dog", "[SEP]")


def test_a_folder_of_half_precision_weights_is_read_in_the_dtype_asked_for(tmp_path: Path) -> None:
    hf_bert().half().save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.float64, torch.float16):
        model = tl_vzero.load_model(tmp_path, dtype=dtype)
        assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_a_folder_in_the_current_directory_goes_before_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_model = hf_bert(seed=4)
    hf_model.save_pretrained(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    assert_right(tl_vzero.load_model("bert-base-uncased"), hf_model)


# --- in memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", HF_MODELS)
def test_an_in_memory_model(make: Callable[..., Any]) -> None:
    hf_model = make()
    assert_right(tl_vzero.load_model(hf_model, tokenizer()), hf_model)


@pytest.mark.parametrize("make", HF_MODELS)
def test_an_in_memory_model_without_a_tokenizer(make: Callable[..., Any]) -> None:
    hf_model = make()
    model = tl_vzero.load_model(hf_model)
    assert_right(model, hf_model)
    with pytest.raises(TLVZeroError, match=r"(?i)tokenizer"):
        tl_vzero.value_zeroing(model, "the dog")


def test_an_in_memory_model_with_a_tokenizer_that_was_never_saved() -> None:
    model = tl_vzero.load_model(hf_bert(), unsaved_tokenizer())
    assert tl_vzero.value_zeroing(model, "the dog").dest_tokens == ("[CLS]", "the", "dog", "[SEP]")


@pytest.mark.parametrize("make", HF_MODELS)
def test_a_dtype_for_an_in_memory_model_is_a_copy(make: Callable[..., Any]) -> None:
    hf_model = make()
    model = tl_vzero.load_model(hf_model, tokenizer(), dtype=torch.float64)
    assert {weight.dtype for weight in model.parameters() if weight.is_floating_point()} == {torch.float64}
    assert hf_model.dtype == torch.float32
    assert_right(model, hf_model, 2e-6 if make is hf_llama else 1e-9)


def test_a_float64_model_keeps_its_dtype() -> None:
    hf_model = hf_bert().double()
    model = tl_vzero.load_model(hf_model, tokenizer())
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert_right(model, hf_model, 1e-9)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
def test_a_device(device: Any) -> None:
    model = tl_vzero.load_model(hf_bert(), tokenizer(), device=device)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [hf_bert, hf_gpt2, hf_llama, hf_neox])
def test_either_attention_implementation(make: Callable[..., Any], attention: str) -> None:
    hf_model = make()
    hf_model.set_attn_implementation(attention)
    assert_right(tl_vzero.load_model(hf_model, tokenizer()), hf_model)


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2, hf_llama, hf_neox])
def test_the_logits_are_those_of_the_hugging_face_model(make: Callable[..., Any]) -> None:
    """Weights that were processed would still give them, up to a constant; unprocessed ones do exactly."""
    hf_model = make()
    with torch.no_grad():
        expected = hf_model(input_ids=torch.tensor([IDS])).logits
        measured = loaded(hf_model)(torch.tensor([IDS]))
    assert (measured - expected).abs().max() < 1e-4


def test_a_model_of_one_layer_and_one_head() -> None:
    hf_model = hf_bert(layers=1, heads=1)
    assert_right(loaded(hf_model), hf_model)


# --- hub names without network --------------------------------------------------------------------------

OFFLINE_PROGRAM = """
import sys, time
import tl_vzero, torch, transformer_lens
from transformer_lens.model_bridge import TransformerBridge
tl_vzero.load_model
start = time.perf_counter()
try:
    tl_vzero.load_model("some-organisation/no-such-bert")
except tl_vzero.TLVZeroError as error:
    assert isinstance(error, ValueError)
    print(time.perf_counter() - start, flush=True)
    print(str(error), flush=True)
    # Threads that still wait for an answer would keep the interpreter: what is timed is the call.
    import os; os._exit(0)
"""
NO_NETWORK = ["offline_by_variable", "silent"]


@pytest.fixture(scope="module")
def offline_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[float, str]]]:
    """How long load_model took and what it said, for each way of having no network.

    A network that refuses at once is the easy case; the hard one takes the call and never answers.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    silent = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = {
        "offline_by_variable": {"HF_HUB_OFFLINE": "1"},
        "silent": {"HF_ENDPOINT": silent},
    }
    home = str(tmp_path_factory.mktemp("hf_home"))
    with ThreadPoolExecutor() as pool:
        runs = {name: pool.submit(_run_offline, {**extra, "HF_HOME": home}) for name, extra in settings.items()}
        yield {name: run.result() for name, run in runs.items()}
    listener.close()


def _run_offline(extra: dict[str, str]) -> tuple[float, str]:
    """(seconds, message) of load_model in a process of its own: huggingface_hub reads its variables once."""
    dropped = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    root = str(Path(tl_vzero.__file__).resolve().parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE_PROGRAM],
        env={**environment, **extra, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0 and result.stdout, result.stderr[-2000:]
    seconds, _, message = result.stdout.partition("\n")
    return float(seconds), message


@pytest.mark.parametrize("network", NO_NETWORK)
def test_a_hub_name_without_network_fails_within_three_seconds(
    offline_runs: dict[str, tuple[float, str]], network: str
) -> None:
    assert offline_runs[network][0] < 3


@pytest.mark.parametrize("network", NO_NETWORK)
def test_a_hub_name_without_network_gets_the_offline_choices(
    offline_runs: dict[str, tuple[float, str]], network: str
) -> None:
    message = offline_runs[network][1]
    assert "some-organisation/no-such-bert" in message
    assert "offline" in message.lower() or "network" in message.lower() or "reach" in message.lower()
    assert "agreement-mini" in message and "all-MiniLM-L6-v2" in message and "folder" in message


def test_a_folder_of_nearly_that_name_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "my-bert").mkdir()
    (tmp_path / "my-bert" / "config.json").write_text("{}")
    for typed, near in (("my-bret", "my-bert"), ("./my-bret", "my-bert"), ("all-minilm-l6-v2x", "all-MiniLM-L6-v2")):
        with pytest.raises(ModelError, match=f"did you mean '{near}'"):
            tl_vzero.load_model(typed)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_hidden_layers": 12}, 12),
        ({"n_layer": 6}, 6),
        ({"n_layers": 3}, 3),
        ({"num_layers": 24}, 24),
        ({"num_layers": 6, "num_decoder_layers": 6, "is_encoder_decoder": True}, None),
        ({"text_config": {"num_hidden_layers": 2}}, None),
        ({"num_hidden_layers": "twelve"}, None),
    ],
)
def test_how_many_layers_a_folder_has_is_read_off_its_config(
    config: dict[str, Any], count: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    assert layer_count(str(tmp_path)) == count


def test_how_many_layers_a_hub_model_has_is_known_where_its_config_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 7}')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert layer_count("some-organisation/some-bert") == 7


# --- processed weights ----------------------------------------------------------------------------------


def first_use(model: Any) -> Any:
    return tl_vzero.value_zeroing(model, torch.tensor(IDS))


@pytest.mark.parametrize(
    ("processing", "named"),
    [
        pytest.param({"fold_value_biases": True}, "value bias", id="fold_value_biases"),
        pytest.param({"center_writing_weights": True}, "cent(re|er)", id="center_writing_weights"),
        pytest.param(
            {"fold_value_biases": True, "center_writing_weights": True, "fold_ln": True, "center_unembed": True},
            "value bias",
            id="the_defaults",
        ),
    ],
)
def test_a_hooked_transformer_with_processed_weights_warns(processing: dict[str, bool], named: str) -> None:
    model = hooked_transformer(hf_gpt2(), **processing)
    with pytest.warns(UserWarning, match=f"(?i){named}"):
        first_use(model)


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2])
def test_a_bridge_in_compatibility_mode_warns(make: Callable[..., Any]) -> None:
    model = bridge(make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.enable_compatibility_mode(disable_warnings=True)
    with pytest.warns(UserWarning, match="(?i)value bias|cent(re|er)"):
        first_use(model)


def test_the_warning_says_what_it_does_to_the_scores() -> None:
    model = bridge(hf_gpt2())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.enable_compatibility_mode(disable_warnings=True)
    with pytest.warns(UserWarning, match="(?i)score|map|zero") as caught:
        first_use(model)
    assert any("load_model" in str(warning.message) for warning in caught)


def test_unprocessed_weights_do_not_warn_in_a_hooked_transformer() -> None:
    model = hooked_transformer(hf_gpt2())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_use(model)


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2, hf_llama, hf_neox])
@pytest.mark.parametrize("how", [bridge, loaded])
def test_unprocessed_weights_do_not_warn_in_a_bridge(how: Callable[[Any], Any], make: Callable[..., Any]) -> None:
    model = how(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_use(model)


def test_compatibility_mode_without_processing_does_not_warn() -> None:
    model = bridge(hf_gpt2())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_use(model)


def test_a_model_that_load_model_read_never_warns() -> None:
    """A fresh GPT-2 has zero value biases without any folding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    fresh = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_use(tl_vzero.load_model(fresh, tokenizer()))


# --- contracts ------------------------------------------------------------------------------------------


def test_weights_from_the_network_are_never_trusted_with_code(tmp_path: Path) -> None:
    """A folder that asks for its own code gets an error, and its code is not run."""
    trace = tmp_path / "it_ran"
    (tmp_path / "config.json").write_text(
        '{"model_type": "strange", "architectures": ["Strange"],'
        ' "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Strange",'
        ' "AutoModelForCausalLM": "code.Strange", "AutoModelForMaskedLM": "code.Strange"}}'
    )
    (tmp_path / "code.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).write_text('yes')\n")
    with pytest.raises(TLVZeroError) as caught:
        tl_vzero.load_model(tmp_path)
    assert isinstance(caught.value, ValueError)
    assert not trace.exists()


def test_loading_twice_from_one_folder_gives_the_same(tmp_path: Path) -> None:
    hf_bert().save_pretrained(tmp_path)
    assert torch.equal(raw(tl_vzero.load_model(tmp_path)), raw(tl_vzero.load_model(tmp_path)))


def test_the_tokenizers_folder_is_no_model() -> None:
    with pytest.raises(TLVZeroError, match=r"config|model"):
        tl_vzero.load_model(tokenizer_folder())


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2])
def test_the_bridge_reads_text_as_one_of_the_users_own(make: Callable[..., Any]) -> None:
    theirs, ours = bridge(make()), loaded(make())
    assert ours.cfg.tokenizer_prepends_bos == theirs.cfg.tokenizer_prepends_bos
    for prepended in (True, False):
        one, other = (model.to_tokens("the dog", prepend_bos=prepended) for model in (theirs, ours))
        assert torch.equal(one, other)
