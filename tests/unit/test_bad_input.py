"""Bad input: an error that says what was given and what is expected, and a model that is left as it was."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import (
    CONTEXT,
    VOCABULARY,
    bridge,
    build,
    hf_bert,
    hf_gpt2,
    third_party_warnings_ignored,
    tokenizer,
)
from support.state import left_as_found, type_checks_off
from torch import Tensor, nn

import tl_vzero
from tl_vzero import TLVZeroError
from tl_vzero.errors import InputTypeError

IDS = torch.tensor([2, 5, 9, 10, 3])
BATCH = torch.tensor([[2, 5, 9, 3], [2, 5, 3, 0]])
ROUTES = [
    pytest.param("load_model", "bert", id="load_model-bert"),
    pytest.param("load_model", "gpt2", id="load_model-gpt2"),
    pytest.param("HookedEncoder", "bert", id="HookedEncoder"),
    pytest.param("HookedTransformer", "gpt2", id="HookedTransformer"),
]


@pytest.fixture(autouse=True)
def as_for_users() -> Iterator[None]:
    with type_checks_off():
        yield


@cache
def model_of(route: str, architecture: str) -> Any:
    return build(route, architecture)[1]


def assert_clear_error(call: Callable[[], Any], *mentions: str) -> None:
    """A TLVZeroError that is also a ValueError or TypeError and matches every pattern, in any case."""
    with pytest.raises(TLVZeroError) as caught:
        call()
    assert isinstance(caught.value, ValueError | TypeError)
    message = str(caught.value)
    for mention in mentions:
        assert re.search(mention, message, re.IGNORECASE), f"{mention!r} is not in: {message}"


EXPECTED_INPUTS = r"string|tensor|list|ids|word"


def inputs(name: str, value: Any, *mentions: str) -> Any:
    return pytest.param(value, mentions, id=name)


BAD_INPUTS = [
    inputs("empty_text", "", "empty", EXPECTED_INPUTS),
    inputs("blank_text", "  \n\t ", "empty|blank|space", EXPECTED_INPUTS),
    inputs("empty_list", [], "empty", EXPECTED_INPUTS),
    inputs("empty_text_in_a_list", ["the dog", ""], "empty", "1|second"),
    inputs("empty_ids", torch.tensor([], dtype=torch.long), "empty|no ids|0", EXPECTED_INPUTS),
    inputs("no_rows_of_ids", torch.zeros(0, 4, dtype=torch.long), r"empty|no |0", EXPECTED_INPUTS),
    inputs("empty_rows_of_ids", torch.zeros(2, 0, dtype=torch.long), r"empty|no |0", EXPECTED_INPUTS),
    inputs("none", None, "None", EXPECTED_INPUTS),
    inputs("number", 5, "int", EXPECTED_INPUTS),
    inputs("bytes", b"the dog", "bytes", EXPECTED_INPUTS),
    inputs("dictionary", {"ids": IDS}, "dict", EXPECTED_INPUTS),
    inputs("list_of_fractions", [2.0, 5.0, 3.0], "float", EXPECTED_INPUTS),
    inputs("set_of_numbers", {2, 5, 3}, "set", EXPECTED_INPUTS),
    inputs("mixed_list", ["the dog", 3], "int", EXPECTED_INPUTS),
    inputs("list_of_lists", [["the dog"]], "list", "string"),
    inputs("float_ids", IDS.float(), "float", "int"),
    inputs("half_ids", IDS.half(), "float16|half", "int"),
    inputs("bool_ids", IDS > 3, "bool", "int"),
    inputs("complex_ids", IDS.to(torch.complex64), "complex", "int"),
    inputs("id_past_the_vocabulary", torch.tensor([2, VOCABULARY, 3]), str(VOCABULARY), r"\b(59|60)\b"),
    inputs("id_far_past_the_vocabulary", torch.tensor([2, 2**40, 3]), str(2**40), r"\b(59|60)\b"),
    inputs("negative_id", torch.tensor([2, -1, 3]), "-1", r"\b(0|59|60)\b"),
    inputs("ids_without_an_axis", torch.tensor(5), r"0-D|0 dim|\[\]|shape|scalar", "1-D|2-D|dim"),
    inputs("ids_of_three_axes", IDS[None, None], r"3-D|3 dim|\[1, 1, 5\]|\(1, 1, 5\)", "1-D|2-D|dim"),
    inputs("ids_past_the_context", torch.full((CONTEXT + 6,), 5), str(CONTEXT + 6), str(CONTEXT)),
    inputs("text_past_the_context", "dog " * (CONTEXT + 4), str(CONTEXT + 6), str(CONTEXT)),
    inputs("one_text_past_the_context", ["dog", "dog " * (CONTEXT + 4)], str(CONTEXT + 6), str(CONTEXT)),
]


@pytest.mark.parametrize(("route", "architecture"), ROUTES)
@pytest.mark.parametrize(("given", "mentions"), BAD_INPUTS)
def test_inputs(route: str, architecture: str, given: Any, mentions: tuple[str, ...]) -> None:
    model = model_of(route, architecture)
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, given), *mentions)


BAD_MASKS = [
    inputs("another_length", torch.ones(2, 3, dtype=torch.long), r"2, 3|2 x 3", r"2, 4|2 x 4"),
    inputs("another_batch", torch.ones(3, 4, dtype=torch.long), r"3, 4|3 x 4", r"2, 4|2 x 4"),
    inputs("one_axis", torch.ones(4, dtype=torch.long), r"\b4\b", r"2, 4|2 x 4"),
    inputs("three_axes", torch.ones(1, 2, 4, dtype=torch.long), r"1, 2, 4", r"2, 4"),
    inputs("all_padding", torch.zeros(2, 4, dtype=torch.long), "mask|padding", "1|token"),
    inputs("a_sentence_of_padding", torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]), "mask|padding", "1|second"),
    inputs("text", "1111", "str", "tensor"),
    inputs("list", [[1, 1, 1, 1], [1, 1, 1, 0]], "list", "tensor"),
    inputs("other_numbers", torch.full((2, 4), 2), "2", "0|1"),
]


@pytest.mark.parametrize(("route", "architecture"), ROUTES)
@pytest.mark.parametrize(("mask", "mentions"), BAD_MASKS)
def test_masks(route: str, architecture: str, mask: Any, mentions: tuple[str, ...]) -> None:
    model = model_of(route, architecture)
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, BATCH, attention_mask=mask), "mask", *mentions)


def option(name: str, options: dict[str, Any], *mentions: str) -> Any:
    return pytest.param(options, mentions, id=name)


BAD_OPTIONS = [
    option("layer_past_the_last", {"layers": [3]}, "layer", "3", "0.*2|3 layers|-3"),
    option("layer_before_the_first", {"layers": [-4]}, "layer", "-4", "0.*2|3 layers|-3"),
    option("one_layer_of_several", {"layers": [0, 99]}, "layer", "99"),
    option("layer_of_text", {"layers": ["last"]}, "layer", "last|str", "int|number"),
    option("layers_of_text", {"layers": "all"}, "layer", "all|str", "int|number"),
    option("layer_of_float", {"layers": [1.0]}, "layer", "1.0|float", "int|number"),
    option("source_past_the_end", {"sources": [5]}, "source|position", "5", "0.*4|5 (tokens|positions)|length"),
    option("source_of_text", {"sources": ["zebra"]}, "source", "zebra", "position"),
    option("destination_past_the_end", {"destinations": [0, 7]}, "dest|position", "7", "0.*4|5 (tok|pos)|length"),
    option("destination_of_float", {"destinations": [0.5]}, "dest|position", "0.5|float", "int|number"),
    option("head_past_the_last", {"heads": [2]}, "head", "2", "0.*1|2 heads"),
    option("head_of_text", {"heads": ["all"]}, "head", "all|str", "int|number"),
    option("head_per_head", {"heads": [9], "per_head": True}, "head", "9", "0.*1|2 heads"),
    option("unknown_distance", {"distance": "cosin"}, "distance", "cosin", "'cosine'", "euclidean"),
    option("far_off_distance", {"distance": "zzz"}, "distance", "zzz", "cosine", "euclidean"),
    option("distance_of_another_type", {"distance": 3}, "distance", "int", "name|callable|function"),
    option("unknown_engine", {"engine": "hook"}, "engine", "'hook'", "'hooks'", "auto"),
    option("engine_of_another_type", {"engine": None}, "engine", "None", "hooks", "auto"),
    option("batch_of_nothing", {"batch_size": 0}, "batch_size", "0", "1|positive"),
    option("batch_of_less_than_nothing", {"batch_size": -2}, "batch_size", "-2", "1|positive"),
    option("batch_of_text", {"batch_size": "all"}, "batch_size", "all|str", "int|number"),
    option("cache_of_another_type", {"cache": "clean"}, "cache", "str", "ActivationCache|run_with_cache"),
    option("cache_of_nothing", {"cache": {}}, "cache", "ActivationCache|run_with_cache|hook"),
    option("mask_for_one_sentence_of_another_length", {"attention_mask": torch.ones(3)}, "mask", "3", "5"),
]


@pytest.mark.parametrize(("route", "architecture"), ROUTES)
@pytest.mark.parametrize(("options", "mentions"), BAD_OPTIONS)
def test_options(route: str, architecture: str, options: dict[str, Any], mentions: tuple[str, ...]) -> None:
    model = model_of(route, architecture)
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, **options), *mentions)


def test_positions_that_exist_in_one_sentence_of_several_only() -> None:
    model = model_of("load_model", "bert")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with left_as_found(model):
        assert_clear_error(
            lambda: tl_vzero.value_zeroing(model, BATCH, attention_mask=mask, sources=[3]), "source|position", "3"
        )


@pytest.mark.parametrize("shape", ["another_length", "another_sentence_batch"])
def test_a_cache_of_another_run(shape: str) -> None:
    model = model_of("load_model", "bert")
    other = torch.tensor([[2, 5, 3]]) if shape == "another_length" else BATCH
    _, cache = model.run_with_cache(other)
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, cache=cache), "cache", "3|2", "4|5")


def test_a_cache_that_lacks_what_is_read() -> None:
    model = model_of("load_model", "bert")
    _, cache = model.run_with_cache(IDS[None], names_filter=["blocks.0.attn.hook_v"])
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, cache=cache), "cache", "hook_|blocks")


BAD_HOOKS = [
    option("layer_past_the_last", {"positions": [1], "layers": [3]}, "layer", "3"),
    option("layer_of_text", {"positions": [1], "layers": ["a"]}, "layer", "a|str", "int|number"),
    option("head_past_the_last", {"positions": [1], "heads": [2]}, "head", "2"),
    option("position_of_text", {"positions": ["dog"]}, "position", "dog|str", "int|number"),
    option("position_of_float", {"positions": [1.5]}, "position", "1.5|float", "int|number"),
    option("positions_of_none", {"positions": None}, "position", "None", "int|number"),
]


@pytest.mark.parametrize(("route", "architecture"), ROUTES)
@pytest.mark.parametrize(("options", "mentions"), BAD_HOOKS)
def test_the_primitive(route: str, architecture: str, options: dict[str, Any], mentions: tuple[str, ...]) -> None:
    model = model_of(route, architecture)
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing_hooks(model, **options), *mentions)


@pytest.mark.parametrize("position", [5, -6, 99])
@pytest.mark.parametrize(("route", "architecture"), ROUTES)
def test_a_position_outside_the_run(route: str, architecture: str, position: int) -> None:
    model = model_of(route, architecture)
    with left_as_found(model):
        assert_clear_error(
            lambda: model.run_with_hooks(
                IDS[None], fwd_hooks=tl_vzero.value_zeroing_hooks(model, positions=[position])
            ),
            "position",
            str(position),
            "5|4",
        )


@pytest.mark.parametrize("method", ["value_zeroin", "zzz"])
def test_an_unknown_method_gets_the_known_ones(method: str) -> None:
    model = model_of("load_model", "bert")
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.score(model, IDS, method=method), "method", method, "'?value_zeroing")


def test_a_method_of_another_type() -> None:
    model = model_of("load_model", "bert")
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.score(model, IDS, method=None), "method", "None", "value_zeroing")


# --- models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        pytest.param(None, "None", id="none"),
        pytest.param("agreement-mini", "str", id="name"),
        pytest.param(nn.Linear(2, 2), "Linear", id="linear_layer"),
        pytest.param(tl_vzero, "module", id="python_module"),
    ],
)
@pytest.mark.parametrize("call", [tl_vzero.value_zeroing, tl_vzero.score], ids=["value_zeroing", "score"])
def test_what_is_no_transformer_lens_model(call: Callable[..., Any], given: Any, name: str) -> None:
    assert_clear_error(lambda: call(given, IDS), name, "TransformerBridge|TransformerLens|load_model")


def test_the_primitive_on_what_is_no_transformer_lens_model() -> None:
    assert_clear_error(
        lambda: tl_vzero.value_zeroing_hooks(nn.Linear(2, 2), positions=[1]), "Linear", "TransformerLens|load_model"
    )


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2])
def test_a_bare_hugging_face_model_is_sent_to_load_model(make: Callable[..., Any]) -> None:
    hf_model = make()
    with left_as_found(hf_model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(hf_model, IDS), type(hf_model).__name__, "load_model")


def hf_mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0)
    ).eval()


@pytest.mark.parametrize("bridged", [False, True], ids=["load_model", "bridge"])
def test_a_model_without_values_to_zero(bridged: bool) -> None:
    hf_model = hf_mamba()
    if bridged:
        model = bridge(hf_model)
        with left_as_found(model):
            assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS), "value|attention")
    else:
        assert_clear_error(lambda: tl_vzero.load_model(hf_model, tokenizer()), "value|attention|Mamba")


def test_a_hooked_root_module_without_values_to_zero() -> None:
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    class NoAttention(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.hook_embed = HookPoint()
            self.setup()

    assert_clear_error(lambda: tl_vzero.value_zeroing(NoAttention(), IDS), "NoAttention|value|attention")


def with_nan(hf_model: Any, name: str) -> Any:
    with torch.no_grad():
        dict(hf_model.named_parameters())[name].view(-1)[0] = float("nan")
    return hf_model


NAN_NAMES = ["bert.encoder.layer.1.attention.self.value.weight", "bert.embeddings.word_embeddings.weight"]


@pytest.mark.parametrize("name", NAN_NAMES)
def test_nan_weights_at_loading(name: str) -> None:
    hf_model = with_nan(hf_bert(), name)
    assert_clear_error(lambda: tl_vzero.load_model(hf_model, tokenizer()), "NaN|not finite|nonfinite")


def test_infinite_weights_at_loading() -> None:
    hf_model = hf_bert()
    with torch.no_grad():
        hf_model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("inf")
    assert_clear_error(lambda: tl_vzero.load_model(hf_model, tokenizer()), "inf|finite|NaN")


@pytest.mark.parametrize("name", NAN_NAMES)
def test_nan_weights_in_the_users_own_model(name: str) -> None:
    model = bridge(with_nan(hf_bert(), name))
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, torch.tensor([0, 5, 3])), "NaN|not finite")


# --- folders, names and files ---------------------------------------------------------------------------


def empty_folder(folder: Path) -> Path:
    return folder


def folder_of_something_else(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no model")
    return folder


def broken_config(folder: Path) -> Path:
    (folder / "config.json").write_text("{")
    return folder


def config_of_no_model_type(folder: Path) -> Path:
    (folder / "config.json").write_text('{"hello": 1}')
    return folder


def config_without_weights(folder: Path) -> Path:
    hf_bert().config.save_pretrained(folder)
    return folder


def broken_weights(folder: Path) -> Path:
    hf_bert().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    return folder


def truncated_weights(folder: Path) -> Path:
    hf_bert().save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def a_file(folder: Path) -> Path:
    (folder / "file.txt").write_text("no model")
    return folder / "file.txt"


def a_missing_folder(folder: Path) -> Path:
    return folder / "missing" / "model"


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize(
    "make",
    [
        empty_folder,
        folder_of_something_else,
        broken_config,
        config_of_no_model_type,
        config_without_weights,
        broken_weights,
        truncated_weights,
        a_file,
        a_missing_folder,
    ],
)
def test_a_folder_that_is_no_model(make: Callable[[Path], Path], as_type: type, tmp_path: Path) -> None:
    given = make(tmp_path)
    with third_party_warnings_ignored():
        assert_clear_error(
            lambda: tl_vzero.load_model(as_type(given)), re.escape(str(given)), "folder|file|config|weights|model"
        )


@pytest.mark.parametrize("given", [None, 5, b"bert", nn.Linear(2, 2), ["bert"]], ids=lambda given: type(given).__name__)
def test_what_load_model_cannot_take(given: Any) -> None:
    assert_clear_error(lambda: tl_vzero.load_model(given), type(given).__name__, "name|folder|model")


@pytest.mark.parametrize("name", ["", "  ", "a b c", "../..//", "agreement mini"], ids=repr)
def test_names_that_cannot_be_hub_names(name: str) -> None:
    assert_clear_error(lambda: tl_vzero.load_model(name), "model|name|folder")


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        option("unknown_device", {"device": "zzz"}, "device", "zzz"),
        option("device_of_another_type", {"device": 3.5}, "device", "3.5|float"),
        option("dtype_of_text", {"dtype": "float31"}, "dtype", "float31|str"),
        option("dtype_of_eight_bits", {"dtype": torch.float8_e4m3fn}, "dtype", "float8", "float32"),
        option("cuda_without_cuda", {"device": "cuda:99"}, "device", "cuda:99", "cannot be used"),
        option("float64_on_mps", {"device": "mps", "dtype": torch.float64}, "mps", "float64", "float32"),
        option("dtype_of_whole_numbers", {"dtype": torch.int64}, "dtype", "int64", "float"),
        option("tokenizer_of_another_type", {"tokenizer": 3}, "tokenizer", "int"),
    ],
)
def test_options_of_load_model(options: dict[str, Any], mentions: tuple[str, ...]) -> None:
    hf_model = hf_bert()
    with left_as_found(hf_model):
        assert_clear_error(lambda: tl_vzero.load_model(hf_model, **options), *mentions)


# --- distances of the user's own ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distance",
    [
        pytest.param(lambda clean, changed: clean - changed, id="keeps_the_features"),
        pytest.param(lambda clean, changed: (clean - changed).sum(), id="one_number"),
        pytest.param(lambda clean, changed: None, id="none"),
    ],
)
def test_a_distance_that_returns_something_else(distance: Callable[[Tensor, Tensor], Any]) -> None:
    model = model_of("load_model", "bert")
    with left_as_found(model):
        assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, distance=distance), "distance")


META, SPARSE = torch.ones(2, dtype=torch.long, device="meta"), torch.eye(2, dtype=torch.long).to_sparse()


class Hostile:
    """What fails at whatever is done with it."""

    def __iter__(self) -> Any:
        raise KeyError("iter")

    def __repr__(self) -> str:
        raise ValueError("repr")


@pytest.mark.parametrize("odd", [META, SPARSE, Hostile()], ids=["meta", "sparse", "hostile"])
@pytest.mark.parametrize("name", ["layers", "sources", "spans", "destinations", "heads", "engine", "per_head"])
def test_an_argument_that_cannot_be_read_is_ours(name: str, odd: Any) -> None:
    model = model_of("load_model", "bert")
    assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, **{name: odd}), name)


@pytest.mark.parametrize("odd", [META, SPARSE], ids=["meta", "sparse"])
def test_ids_that_are_not_here_are_ours(odd: Tensor) -> None:
    model = model_of("load_model", "bert")
    assert_clear_error(lambda: tl_vzero.value_zeroing(model, odd), "inputs")
    assert_clear_error(lambda: tl_vzero.zero_ablation(model, [odd]), "inputs")
    assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, attention_mask=odd), "attention_mask")


@pytest.mark.parametrize("name", ["per_head", "final_norm", "prepend_bos"])
@pytest.mark.parametrize("odd", [None, "no", 1, torch.tensor([]), np.array([])], ids=repr)
def test_what_is_neither_so_nor_not(name: str, odd: Any) -> None:
    model = model_of("load_model", "bert")
    assert_clear_error(lambda: tl_vzero.value_zeroing(model, IDS, **{name: odd}), name, "True or False")
    if name == "per_head":
        assert_clear_error(lambda: tl_vzero.zero_ablation(model, IDS, target=1, per_head=odd), name)
        assert_clear_error(lambda: tl_vzero.score(model, IDS, "attention", per_head=odd), name)


@pytest.mark.parametrize("odd", ["\ud800", META, Hostile(), nn.Linear(2, 2)], ids=["half", "meta", "hostile", "module"])
def test_target_ids_that_cannot_be_read_are_ours(odd: Any) -> None:
    model = model_of("load_model", "bert")
    assert_clear_error(lambda: tl_vzero.zero_ablation(model, IDS, target=1, target_ids=odd), "target_ids")


def test_target_ids_may_be_numpys_or_torchs() -> None:
    model = model_of("load_model", "bert")
    expected = tl_vzero.zero_ablation(model, IDS, target=1, target_ids=(7, 8)).values
    for same in (torch.tensor([7, 8]), np.array([7, 8])):
        assert torch.equal(tl_vzero.zero_ablation(model, IDS, target=1, target_ids=same).values, expected)


def test_a_name_that_cannot_be_hashed_is_unknown() -> None:
    assert_clear_error(lambda: tl_vzero.compare(model_of("load_model", "bert"), IDS, [["alti"]]), "unknown method")


def test_heads_that_do_not_go_into_each_other() -> None:
    lies = hf_bert()
    lies.config.num_attention_heads *= 2
    assert_clear_error(lambda: tl_vzero.load_model(lies), "heads", "config")


@pytest.mark.parametrize("odd", [None, torch.tensor([]), np.array(["a"]), 1.5, [0]], ids=repr)
def test_what_is_no_layer_no_path_and_no_effect(odd: Any) -> None:
    model = model_of("load_model", "bert")
    scores = tl_vzero.value_zeroing(model, IDS)
    effect = tl_vzero.zero_ablation(model, IDS, target=1)
    assert_clear_error(lambda: scores.at_layer(odd), "layer")
    assert_clear_error(lambda: scores.save(odd), "path")
    assert_clear_error(lambda: tl_vzero.Scores.load(odd), "path")
    assert_clear_error(lambda: tl_vzero.attribution_error(odd, effect), "approximate")
    assert_clear_error(lambda: tl_vzero.attribution_error(effect, odd), "exact")
    assert_clear_error(lambda: tl_vzero.plot.text_view(odd), "Scores")
    assert_clear_error(lambda: tl_vzero.agreement(scores, effect, seed="odd"), "seed")
    if odd is not None:
        assert_clear_error(lambda: tl_vzero.plot.text_view(scores.normalized(), layer=odd), "layer")


def test_frames_of_what_is_no_model_and_a_model_as_a_device_are_told_in_short() -> None:
    model = tl_vzero.load_model("agreement-mini")
    with type_checks_off():
        with pytest.raises(InputTypeError, match=r"model is builtins\.NoneType"):
            tl_vzero.frames(None, 0.0, 1.0)
        for option in ("device", "dtype"):
            with pytest.raises(InputTypeError, match=option) as told:
                tl_vzero.load_model("agreement-mini", **{option: model})
            assert len(str(told.value)) < 400
