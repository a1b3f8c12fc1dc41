"""Rows of long inputs: the same numbers as ever, and nothing that grows with the square of the length."""

from threading import Thread
from typing import Any

import pytest
import torch
from support.architectures import ARCHITECTURES, ON_THIS_LINE
from support.decoder_rows import decoder
from support.models import hf_bert, hf_gpt2, hf_llama, hooked_transformer, loaded, logits_of
from support.state import left_as_found
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tl_vzero
from tl_vzero.methods import apply
from tl_vzero.models import fused

LENGTH = 40  # ten times the window of the tiny models
IDS = torch.randint(4, 50, (LENGTH,), generator=torch.Generator().manual_seed(3))
ROWS = [LENGTH - 1, 7]
LITTLE = 1e-3  # MB, less than a pattern of this length takes
RUN_FUSED = ["BERT", "GPT-2", "GPT-NeoX, Pythia", "Llama", "Mistral", "Qwen 3", "Gemma 2", "Gemma 3", "gpt-oss"]
RUN_FUSED += ["Mixtral", "DeepSeek V3"]
OPTIONS: list[dict[str, Any]] = [
    {"per_head": True, "heads": [1]},
    {"spans": [[1, 2], [30, 4], [39]]},
    {"sources": [0, 39, 8], "distance": "euclidean", "layers": [-1]},
    {"baseline": "mean"},
    {"final_norm": True},
]
METHODS = {
    hf_llama: ("attention", "attention_norm", "attention_norm_res", "alti", "information_flow", "contribution_weights"),
    hf_gpt2: ("alti", "decompx"),
    hf_bert: ("attention_norm_res", "attention_norm_res_ln", "globenc", "alti", "information_flow", "decompx"),
}


def rows_of(model: Any, **options: Any) -> Any:
    return tl_vzero.value_zeroing(model, IDS, destinations=ROWS, **options)


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * float(other.abs().max()))


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For methods, which have no option to say how much."""
    monkeypatch.setattr(apply, "MEMORY_MB", LITTLE)


@pytest.mark.parametrize("name", [name for name in RUN_FUSED if name in ON_THIS_LINE])
def test_rows_are_those_of_the_ordinary_run(name: str) -> None:
    model = loaded(ARCHITECTURES[name].tiny())
    long, ordinary = rows_of(model, memory_mb=LITTLE), rows_of(model)
    assert long.metadata["attention"] == "fused"
    assert "attention" not in ordinary.metadata
    assert (long.dest_positions, long.dest_tokens) == (ordinary.dest_positions, ordinary.dest_tokens)
    assert_near(long.normalized().values, ordinary.normalized().values)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_every_option_holds_for_long_inputs(options: dict[str, Any]) -> None:
    model = loaded(hf_llama())
    long = rows_of(model, memory_mb=LITTLE, **options)
    assert long.metadata["attention"] == "fused"
    assert_near(long.values, rows_of(model, **options).values)


def test_long_and_short_sentences_in_one_call() -> None:
    model = loaded(hf_gpt2())
    sentences = [IDS.tolist(), IDS[:5].tolist(), IDS.roll(3).tolist()]
    limit = 4 * 6 * 6 * 4 / 2**20  # of a sentence of six positions
    long = tl_vzero.value_zeroing(model, sentences, destinations=-1, memory_mb=limit)
    assert [scores.metadata.get("attention") for scores in long] == ["fused", None, "fused"]
    for scores, ids in zip(long, sentences, strict=True):
        assert_near(scores.values, tl_vzero.value_zeroing(model, torch.tensor(ids), destinations=-1).values)


@pytest.mark.parametrize(("make", "method"), [(make, name) for make, names in METHODS.items() for name in names])
@pytest.mark.parametrize("per_head", [False, True])
def test_methods_of_the_clean_run(make: Any, method: str, per_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tl_vzero.METHODS[method].layer
    if per_head and (layer is None or layer.heads is None):
        pytest.skip("the method has no heads")
    options = {"destinations": ROWS} | ({"per_head": True} if per_head else {})
    model = loaded(make())
    ordinary = tl_vzero.score(model, IDS, method, **options)
    monkeypatch.setattr(apply, "MEMORY_MB", LITTLE)
    long = tl_vzero.score(model, IDS, method, **options)
    assert isinstance(long, tl_vzero.Scores)
    assert isinstance(ordinary, tl_vzero.Scores)
    assert long.metadata["attention"] == "fused"
    assert_near(long.values, ordinary.values)


@pytest.mark.parametrize("method", ["random", "attention_rollout"])
def test_a_method_that_needs_every_position_runs_in_the_ordinary_way(method: str, little_memory: None) -> None:
    scores = tl_vzero.score(loaded(hf_llama()), IDS, method, destinations=ROWS)
    assert isinstance(scores, tl_vzero.Scores)
    assert "attention" not in scores.metadata


# --- where it cannot be done --------------------------------------------------------------------------------


def test_a_model_with_an_attention_of_its_own_runs_in_the_ordinary_way(little_memory: None) -> None:
    scores = tl_vzero.score(loaded(ARCHITECTURES["BLOOM"].tiny()), IDS, "attention", destinations=ROWS)
    assert isinstance(scores, tl_vzero.Scores)
    assert "attention" not in scores.metadata
    assert scores.metadata["attention_reason"]


def test_a_class_of_another_library_runs_in_the_ordinary_way() -> None:
    scores = rows_of(hooked_transformer(hf_gpt2()), memory_mb=LITTLE)
    assert scores.metadata["attention_reason"] == "expected a TransformerBridge with one stack of blocks"


def test_hooks_of_the_user_act() -> None:
    model = loaded(hf_llama())
    model.hook_dict["blocks.1.attn.hook_v"].add_hook(lambda value, hook: value * 2)
    scores = rows_of(model, memory_mb=LITTLE)
    assert (scores.metadata["engine"], scores.metadata.get("attention")) == ("hooks", None)


def test_a_bridge_that_does_something_in_between_is_not_passed_over(little_memory: None) -> None:
    model = loaded(hf_llama())
    attention = model.blocks[1].attn
    forward = attention.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output, *rest = forward(*args, **kwargs)
        return (output * 2, *rest)

    attention.__dict__["forward"] = doubled
    scores = tl_vzero.score(model, IDS, "attention", destinations=ROWS)
    assert isinstance(scores, tl_vzero.Scores)
    assert "on a probe" in scores.metadata["attention_reason"]
    assert attention.__dict__["forward"] is doubled


def test_rows_that_do_not_give_what_attention_mixed_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_llama())
    expected = rows_of(model).values
    pattern = fused._Scores.pattern
    monkeypatch.setattr(fused._Scores, "pattern", lambda self, *range_: pattern(self, *range_) * 1.01)
    scores = rows_of(model, memory_mb=LITTLE)
    assert "do not give what its attention mixed" in scores.metadata["attention_reason"]
    torch.testing.assert_close(scores.values, expected)


# --- memory -------------------------------------------------------------------------------------------------

LONG = 512


class NoSquares(TorchDispatchMode):
    """Within, no operation may give a tensor with two axes of positions, or as many numbers as one has."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                squares = sum(size >= LONG for size in result.shape) > 1
                assert not squares and result.numel() < LONG * LONG, f"{function} gives {tuple(result.shape)}"
        return results


@pytest.mark.parametrize(
    ("name", "changes"),
    [("Llama", {}), ("Mistral", {"sliding_window": 16}), ("Gemma2", {"sliding_window": 16, "head_dim": 8})],
)
@pytest.mark.parametrize("method", ["value_zeroing", "attention", "attention_norm_res", "information_flow"])
def test_nothing_grows_with_the_square_of_the_length(
    name: str, changes: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "Gemma2" and method not in ("value_zeroing", "attention"):
        pytest.skip("undefined: a norm stands behind attention")
    monkeypatch.setattr(apply, "MEMORY_MB", 0.5)
    monkeypatch.setattr(fused, "NUMBERS_AT_A_TIME", 2**13)
    model = loaded(decoder(name, max_position_embeddings=LONG, **changes)())
    ids = torch.randint(4, 50, (LONG,), generator=torch.Generator().manual_seed(3))
    memory = {"memory_mb": 0.5} if method == "value_zeroing" else {}
    with NoSquares():
        scores = tl_vzero.score(model, ids, method, destinations=-1, **memory)
    assert isinstance(scores, tl_vzero.Scores)
    assert scores.metadata["attention"] == "fused"


# --- the model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2, hf_llama])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_stopped_leaves_the_model_as_it_was(
    make: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(make())
    rows_of(model, memory_mb=LITTLE)
    output = fused._output

    def stopped(scores: Any, value: Tensor) -> Tensor:
        if scores.mask.length == LENGTH:  # no probe
            raise error("stopped")
        return output(scores, value)

    monkeypatch.setattr(fused, "_output", stopped)
    with left_as_found(model):
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                rows_of(model, memory_mb=LITTLE)
        else:
            assert "stopped" in rows_of(model, memory_mb=LITTLE).metadata["attention_reason"]


def test_another_thread_runs_the_model_as_ever() -> None:
    model = loaded(hf_llama())
    expected, seen = logits_of(model, IDS[None]), []
    with fused.fused_attention(model, ROWS):
        thread = Thread(target=lambda: seen.append(logits_of(model, IDS[None])))
        thread.start()
        thread.join()
    torch.testing.assert_close(seen[0], expected)
