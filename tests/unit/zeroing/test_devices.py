"""The closed form on a GPU: the numbers of a processor, and a host that waits for no chunk of pairs.

Without a GPU the walk over the pairs is done once more on tensors without numbers (torch's "meta"), where an answer
that must come from the device cannot be had.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from support.models import hf_bert, hf_gpt2, hf_llama, hf_neox, loaded
from support.paired import model_of, stack_options
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import tl_vzero
from tl_vzero.errors import InputError, ModelError
from tl_vzero.zeroing import closed_form, request
from tl_vzero.zeroing.chunks import ROWS_ON_GPU, ROWS_PER_PRODUCT, LostValues, Workspace, Zeroed
from tl_vzero.zeroing.closed_form import _Layer
from tl_vzero.zeroing.request import megabytes

IDS = torch.tensor([2, 5, 9, 10, 3, 7, 7, 4])
WIDE = {"width": 288, "heads": 4}  # from 257 features on it is computed in float32
TF32_ERROR = 1e-3  # of a normalised map, as docs/performance.md has it
PLENTY = 2.0**40  # bytes


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs a GPU, and is skipped where there is none."""
    found = torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(not found, reason="torch finds no CUDA GPU on this machine")(test))


FORMS: dict[str, Callable[..., Any]] = {"BERT": hf_bert, "GPT-2": hf_gpt2, "Llama": hf_llama, "NeoX": hf_neox}
each_form = pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)


class _NothingMade(TorchFunctionMode):
    """Refuses tensors made of the host's numbers on a device: a copy that the host waits for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type != "cpu"
        if made or (func is Tensor.new_tensor and args[0].device.type != "cpu"):
            raise AssertionError(f"{func.__name__} copies to the device")
        return func(*args, **kwargs)


class _NothingMixed(TorchDispatchMode):
    """Refuses operations on two devices, and copies between them that the host waits for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices = {tensor.device.type for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            devices.add(torch.device(kwargs.get("device") or next(iter(devices))).type)
        if len(devices) > 1:
            raise AssertionError(f"{func} is on {sorted(devices)}")
        return func(*args, **kwargs)


@contextmanager
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within, every walk over pairs is done on meta too; gives the routes of these walks."""
    walk, walked = _Layer._measure_changes, []

    def on_meta(tensor: Tensor, memo: Any) -> Tensor:
        return tensor.to("meta")

    def watched(self: Any, pairs: Any, columns: Any, outputs: Tensor, distances: Tensor) -> None:
        with monkeypatch.context() as copying:
            copying.setattr(Tensor, "__deepcopy__", on_meta)
            there = copy.deepcopy(pairs, {id(kept): kept for kept in (pairs.zeroed.left, pairs.weights.activation)})
        with _NothingMade(), _NothingMixed():
            walk(self, there, columns, outputs.to("meta", non_blocking=True), distances.to("meta", non_blocking=True))
        walked.append(pairs.route)
        walk(self, pairs, columns, outputs, distances)

    monkeypatch.setattr(_Layer, "_measure_changes", watched)
    yield walked


@each_form
def test_the_host_asks_the_device_nothing_while_it_walks_over_pairs(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in ({}, WIDE):
        model = loaded(build(layers=1, **shape))
        expected = tl_vzero.value_zeroing(model, IDS, engine="closed_form").values
        with without_numbers(monkeypatch) as walked:
            scores = tl_vzero.value_zeroing(model, [IDS, IDS[:5]], engine="closed_form", memory_mb=0.3)
        assert walked
        assert torch.allclose(scores[0].values, expected, rtol=1e-3)


def test_nor_does_a_decoder_that_reads_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_numbers(monkeypatch) as walked:
        tl_vzero.value_zeroing(model_of("BART"), IDS, engine="closed_form", **stack_options("decoder"))
    assert set(walked) == {"direct"}


def test_what_asks_the_device_is_found() -> None:
    """The check itself: each of these would make the host wait for a GPU."""
    device = torch.empty(3, device="meta")
    for asks in (
        lambda: bool((device > 0).any()),
        lambda: device[device > 0],
        lambda: device[torch.tensor([0, 1])],
        lambda: device + torch.ones(3),
        lambda: torch.ones(3).to("meta"),
        lambda: torch.tensor([1.0], device="meta"),
        lambda: device.new_tensor(1.0),
    ):
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), _NothingMade(), _NothingMixed():
            asks()


# How much memory, and which precision.


def test_the_memory_by_default_is_a_part_of_what_a_gpu_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    megabyte, device = 2**20, torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000 * megabyte, 8000 * megabyte))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2000 * megabyte)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000 * megabyte)
    assert megabytes(None, device) == 1024  # a quarter of 6000 is 1500
    assert megabytes(300.0, device) == 300
    assert megabytes(None, torch.device("cpu")) == megabytes(None, torch.device("mps")) == 256


def test_a_gpu_takes_longer_products_and_as_many_as_its_memory_allows() -> None:
    def largest(device: str, max_bytes: float) -> int:
        w_o = torch.empty(2, 4, 8, device=device)
        return LostValues(Zeroed([0, 1], w_o, [], _never_called, Workspace(max_bytes)), w_o, 100, 100).max_rows

    assert largest("cpu", PLENTY) == ROWS_PER_PRODUCT
    assert largest("meta", PLENTY) == ROWS_ON_GPU
    assert largest("meta", 800.0 * 10_000) == 10_000


def _never_called(*_: object) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "tf32"}, "float32 on cpu: expected .* CUDA GPU from Ampere on; leave precision out"),
        ({"precision": "tf16"}, "tf16.*tf32"),
        ({"precision": "tf32", "engine": "hooks"}, "closed form"),
    ],
)
def test_a_precision_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tl_vzero.value_zeroing(loaded(hf_bert()), IDS, **options)


@pytest.mark.parametrize("fails", [False, True])
def test_tf32_is_on_for_the_pairs_alone_and_put_back(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = loaded(hf_bert(layers=1)), []
    walk = _Layer._measure_changes

    def watched(*args: Any) -> None:
        seen.append(matmul.fp32_precision)
        if fails:
            raise RuntimeError("stopped")
        walk(*args)

    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the older setting, which says no more than whether it is on")
    before, recognise = matmul.fp32_precision, closed_form.recognise

    def recognised(*args: Any) -> Any:
        assert matmul.fp32_precision == before
        return recognise(*args)

    monkeypatch.setattr(request, "_has_tf32", lambda device: True)
    monkeypatch.setattr(closed_form, "recognise", recognised)
    plain = tl_vzero.value_zeroing(model, IDS, engine="closed_form")
    assert "precision" not in plain.metadata["options"]
    monkeypatch.setattr(_Layer, "_measure_changes", watched)
    with pytest.raises(ModelError, match="stopped") if fails else nullcontext():
        scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form", precision="tf32")
        assert scores.metadata["options"]["precision"] == "tf32"
        assert torch.equal(scores.values, plain.values)  # on a processor it changes nothing
    assert seen == ["tf32"]
    assert matmul.fp32_precision == before


def test_modules_are_not_rounded_as_a_difference_is_taken_of_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=1, vocab_size=60)
    config.hidden_act = "mish"  # an activation without a formula here
    model = loaded(BertForMaskedLM(config).eval())
    monkeypatch.setattr(request, "_has_tf32", lambda device: True)
    monkeypatch.setattr(closed_form, "tf32_products", _never_called)
    scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form", precision="tf32")
    assert scores.metadata["routes"] == ["modules"]


# On a GPU.


def on_both(build: Callable[..., Any], dtype: torch.dtype = torch.float32, **shape: Any) -> tuple[Any, Any]:
    """One model on the processor and on the GPU."""
    here, there = (tl_vzero.load_model(build(**shape), device=device, dtype=dtype) for device in ("cpu", "cuda"))
    return here, there


def apart(scores: Any, expected: Any) -> float:
    """The largest difference of normalised maps."""
    both = (one.normalized().values.cpu().double() for one in (scores, expected))
    return float((next(both) - next(both)).abs().max())


@on_a_gpu
@each_form
def test_a_gpu_gives_the_maps_of_a_processor(build: Callable[..., Any]) -> None:
    for shape in ({}, WIDE):
        here, there = on_both(build, **shape)
        expected = tl_vzero.value_zeroing(here, IDS, engine="closed_form")
        for engine in ("closed_form", "hooks"):
            scores = tl_vzero.value_zeroing(there, IDS, engine=engine)
            assert scores.metadata["engine"] == engine
            assert apart(scores, expected) <= 1e-5
        batch = tl_vzero.value_zeroing(there, [IDS, IDS[:5]], engine="closed_form", per_head=True)
        one = tl_vzero.value_zeroing(here, IDS, engine="closed_form", per_head=True)
        assert apart(batch[0], one) <= 1e-5


@on_a_gpu
@pytest.mark.parametrize("method", [name for name in tl_vzero.METHODS if name != "value_zeroing"])
def test_methods_on_a_gpu_give_the_maps_of_a_processor(method: str) -> None:
    here, there = on_both(hf_bert)
    try:
        expected = tl_vzero.score(here, IDS, method=method)
    except tl_vzero.TLVZeroError as error:
        pytest.skip(f"not of this model: {error}")
    scores = tl_vzero.score(there, IDS, method=method)
    assert torch.allclose(scores.values.cpu().double(), expected.values.double(), rtol=1e-4, atol=1e-5)


@on_a_gpu
@each_form
def test_no_chunk_makes_the_host_wait_for_a_gpu(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    walk = _Layer._measure_changes

    def watched(*args: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            walk(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(_Layer, "_measure_changes", watched)
    _, there = on_both(build, **WIDE)
    scores = tl_vzero.value_zeroing(there, torch.arange(40) % 60, engine="closed_form", memory_mb=2.0)
    assert scores.metadata["engine"] == "closed_form"


@on_a_gpu
@each_form
def test_tf32_stays_within_its_documented_error(build: Callable[..., Any]) -> None:
    _, there = on_both(build, **WIDE)
    ids = torch.arange(60) % 60
    exact = tl_vzero.value_zeroing(there, ids, engine="closed_form")
    rounded = tl_vzero.value_zeroing(there, ids, engine="closed_form", precision="tf32")
    assert 0 < apart(rounded, exact) <= TF32_ERROR
    again = tl_vzero.value_zeroing(there, ids, engine="closed_form")
    assert torch.equal(again.values, exact.values)


@on_a_gpu
def test_a_long_input_on_a_gpu() -> None:
    config = GPT2Config(n_embd=768, n_layer=1, n_head=12, vocab_size=60, n_positions=2048)
    torch.manual_seed(0)
    hf_model = GPT2LMHeadModel(config).eval()
    here, there = (tl_vzero.load_model(hf_model, device=device) for device in ("cpu", "cuda"))
    ids = torch.arange(2048) % 60
    whole = tl_vzero.value_zeroing(there, ids, engine="closed_form")
    few = [5, 1024, 2047]
    rows = tl_vzero.value_zeroing(here, ids, engine="closed_form", destinations=few)
    assert (whole.normalized().values[:, few].cpu() - rows.normalized().values).abs().max() <= 1e-5
