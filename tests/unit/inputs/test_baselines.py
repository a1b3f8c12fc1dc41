"""A baseline at the door: what is refused, and what tells baselines apart."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from support.models import build
from support.paired import READ, stack_options
from support.paired import model_of as paired_model
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ModelError, ScoresError
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.models.changes import weights_hash

IDS = torch.tensor([2, 5, 9, 10, 3])
SHAPE = (3, 2, 8)  # layers, heads, d_head


@cache
def bert() -> Any:
    return build("load_model", "bert")[1]


def values(*shape: int, **options: Any) -> Tensor:
    return torch.ones(*(shape or SHAPE), **options)


def named(vectors: Tensor, name: str = "mean over 2 texts", **metadata: Any) -> BaselineValues:
    return BaselineValues(vectors, name, {"weights_sha256": weights_hash(bert()), **metadata})


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("name", "means", InputError, "baseline 'means'.*zero, mean.*did you mean 'mean'"),
    ("type", None, InputTypeError, "NoneType.*zero, mean.*Tensor"),
    ("list", [[0.0]], InputTypeError, "list.*Tensor"),
    ("integers", values(dtype=torch.int64), InputTypeError, "int64.*real"),
    ("complex", values(dtype=torch.complex64), InputTypeError, "complex64.*real"),
    ("ndim", values(3, 16), InputError, r"\[3, 16\].*\[3, 2, 8\].*\[3, positions, 2, 8\]"),
    ("layers", values(2, 2, 8), InputError, r"\[2, 2, 8\].*\[3, 2, 8\]"),
    ("heads", values(3, 4, 8), InputError, r"\[3, 4, 8\].*heads that values have"),
    ("d_head", values(3, 5, 2, 4), InputError, r"\[3, 5, 2, 4\].*\[3, 2, 8\]"),
    ("length", values(3, 6, 2, 8), InputError, "6 positions.*5"),
    ("NaN", values() * float("nan"), InputError, "NaN"),
    ("infinite", values() / 0, InputError, "infinite"),
    ("another model's", BaselineValues(values(), "any", {"weights_sha256": "0"}), ModelError, "other weights"),
    ("of nowhere", BaselineValues(values(), "any"), ModelError, "other weights"),
]


@pytest.mark.parametrize("engine", ["hooks", "auto"])
@pytest.mark.parametrize(("baseline", "error", "said"), [pytest.param(*rest, id=name) for name, *rest in BAD])
def test_bad_baselines(baseline: Any, error: type[Exception], said: str, engine: str) -> None:
    with type_checks_off(), left_as_found(bert()), pytest.raises(error, match=said):
        tl_vzero.value_zeroing(bert(), IDS, baseline=baseline, engine=engine)
    with type_checks_off(), left_as_found(bert()), pytest.raises(error, match=said):
        bert().run_with_hooks(IDS[None], fwd_hooks=tl_vzero.value_zeroing_hooks(bert(), 1, baseline=baseline))


def test_vectors_of_one_stack_are_none_of_another() -> None:
    model = paired_model("BART")
    of_encoder = BaselineValues(values(), "any", {"weights_sha256": weights_hash(model), "stack": "encoder"})
    tl_vzero.value_zeroing(model, torch.tensor(READ), stack="encoder", baseline=of_encoder)
    with pytest.raises(InputError, match=r"stack='encoder'.*stack='cross'"):
        tl_vzero.value_zeroing(model, torch.tensor(READ), **stack_options("cross"), baseline=of_encoder)


def test_metadata_tell_baselines_apart() -> None:
    def identity(baseline: Any, model: Any = None) -> str:
        scores = tl_vzero.value_zeroing(bert() if model is None else model, IDS, baseline=baseline)
        assert scores.baseline == scores.metadata["options"]["baseline"]
        return str(scores.baseline)

    assert [identity("zero"), identity("mean")] == ["zero", "mean"]
    of_ones = identity(values())
    assert of_ones.startswith("tensor (sha256 ") and identity(values(dtype=torch.float64)) == of_ones
    assert len({of_ones, identity(2 * values()), identity(values(3, 5, 2, 8)), identity(named(values()))}) == 4
    assert identity(named(values())).startswith("mean over 2 texts (sha256 ")


def scored(baseline: Any, **options: Any) -> Any:
    return tl_vzero.value_zeroing(bert(), IDS, baseline=baseline, **options)


def test_names_of_scores_say_the_baseline() -> None:
    zero, mean, texts = scored("zero"), scored("mean"), scored(named(values()))
    assert [scores.label for scores in (zero, mean, texts)] == [
        "Value Zeroing",
        "Value Zeroing, baseline mean",
        "Value Zeroing, baseline mean over 2 texts",
    ]
    assert ", raw, baseline mean, 3 layers" in repr(mean) and "baseline" not in repr(zero)
    assert mean.plot().layout.title.text.startswith("Value Zeroing, baseline mean")
    beside = tl_vzero.plot.method_comparison([zero, mean]).to_json()
    assert '"Value Zeroing"' in beside and '"Value Zeroing, baseline mean"' in beside
    # An older file says nothing of baselines.
    options = {name: value for name, value in zero.metadata["options"].items() if name != "baseline"}
    older = replace(zero, metadata={**zero.metadata, "options": options})
    assert older.baseline == "zero"
    assert (zero - older).method == "value_zeroing - value_zeroing"
    assert (older - mean).method == "value_zeroing (baseline zero) - value_zeroing (baseline mean)"
    assert (older - mean).label == "Value Zeroing (baseline zero) minus Value Zeroing (baseline mean)"
    assert (mean - mean).label.endswith("Value Zeroing, baseline mean")


def test_a_file_keeps_the_baseline(tmp_path: Any) -> None:
    scored("mean").save(tmp_path / "scores")
    assert tl_vzero.Scores.load(tmp_path / "scores").baseline == "mean"


def test_a_mean_over_maps_is_of_one_baseline() -> None:
    with pytest.raises(InputError, match="baseline 'zero' and 'mean'"):
        tl_vzero.mean([scored("zero"), scored("mean")], by="position")
    averaged = tl_vzero.mean([scored("mean")], by="position")
    assert averaged.baseline == "mean" and "baseline mean" in repr(averaged)
    assert "baseline mean" in tl_vzero.plot.mean_map(averaged).layout.title.text


def test_a_joint_rollout_is_of_one_baseline() -> None:
    def maps(**baselines: Any) -> dict[str, Any]:
        return {
            stack: tl_vzero.value_zeroing(
                paired_model("BART"), torch.tensor(READ), **stack_options(stack), baseline=baseline
            )
            for stack, baseline in baselines.items()
        }

    mean = maps(encoder="mean", decoder="mean", cross="mean")
    assert tl_vzero.joint_rollout(**mean).baseline == "mean"
    for stack in mean:
        with pytest.raises(ScoresError, match="baseline"):
            tl_vzero.joint_rollout(**{**mean, **maps(**{stack: "zero"})})
