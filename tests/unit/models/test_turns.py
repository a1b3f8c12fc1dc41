"""One call at a time on a model, and nothing left of it: threads, calls within calls, Ctrl-C, inference mode."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
import torch
from support.interrupted import Way, interrupt_at, lines_of
from support.models import build, hf_bert, hf_gpt2, hf_neox, tokenizer
from support.state import every_module, hook_counts, torch_hooks
from torch import Tensor, nn

import tl_vzero
from tl_vzero.errors import InputError, ModelError
from tl_vzero.models.run import eager_attention, quiet, temporary_hooks

IDS = torch.tensor([2, 5, 9, 10, 3])
TEXTS = [
    "the authors [MASK] today.",
    "the author near the lamps [MASK] today.",
    "the lamps [MASK].",
    "the author [MASK].",
]
EVERYWHERE = (
    "models/run.py",
    "models/turns.py",
    "models/final_norm.py",
    "clean.py",
    "zeroing/",
    "effects/",
    "methods/",
)
AROUND_A_RUN = ("models/run.py", "models/turns.py", "models/final_norm.py")


@pytest.fixture(scope="module")
def mini() -> Any:
    return tl_vzero.load_model("agreement-mini")


# --- threads ----------------------------------------------------------------------------------------------


def mixed_calls(model: Any) -> list[Callable[[], Tensor]]:
    calls: list[Callable[[], Tensor]] = []
    for text in TEXTS:
        calls += [
            lambda text=text: tl_vzero.value_zeroing(model, text).values,
            lambda text=text: tl_vzero.value_zeroing(model, text, engine="hooks").values,
            lambda text=text: tl_vzero.score(model, text, "attention").values,
            lambda text=text: tl_vzero.score(model, text, "gradient_x_input").values,
            lambda text=text: tl_vzero.zero_ablation(model, text).values,
            lambda text=text: tl_vzero.METHODS["alti"](model, text).values,
        ]
    return calls


def test_hooks_of_another_threads_run_are_refused(mini: Any) -> None:
    """TransformerLens's run_with_hooks takes no turn, and its hooks are on the model for every thread."""
    before = tl_vzero.value_zeroing(mini, TEXTS[0]).values
    with ThreadPoolExecutor(1) as another:
        hooks = another.submit(tl_vzero.value_zeroing_hooks, mini, [1]).result()
        with mini.hooks(fwd_hooks=hooks), pytest.raises(InputError, match=r"another thread.*a model for each"):
            tl_vzero.value_zeroing(mini, TEXTS[0])
        with mini.hooks(fwd_hooks=hooks), pytest.raises(InputError, match="another thread"):
            tl_vzero.attribution_patching(mini, TEXTS[0])
    assert torch.equal(tl_vzero.value_zeroing(mini, TEXTS[0]).values, before)


def test_hooks_that_another_thread_made_to_stay_act(mini: Any) -> None:
    before = tl_vzero.value_zeroing(mini, TEXTS[0]).values
    with ThreadPoolExecutor(1) as another:
        hooks = another.submit(tl_vzero.value_zeroing_hooks, mini, [1], layers=0).result()
    try:
        mini.hook_dict[hooks[0][0]].add_hook(hooks[0][1])
        assert not torch.allclose(tl_vzero.value_zeroing(mini, TEXTS[0]).values, before)
    finally:
        mini.reset_hooks()


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_four_threads_get_the_numbers_of_one(mini: Any, count: int) -> None:
    calls = mixed_calls(mini)
    expected = [call() for call in calls]
    model = tl_vzero.load_model("agreement-mini")  # nothing of it has been checked or cached yet
    fresh = mixed_calls(model)
    order = [(thread * 7 + n) % len(fresh) for thread in range(4) for n in range(count)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: (n, fresh[n]()), order))
    wrong = [n for n, values in results if not torch.allclose(values, expected[n], rtol=1e-4, atol=1e-9)]
    assert not wrong


def test_a_model_that_a_user_runs_by_itself_meanwhile_feels_no_hook_of_ours(mini: Any) -> None:
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        expected = mini(ids)
    outputs: list[Tensor] = []

    def run_by_itself(clean: Tensor, changed: Tensor) -> Tensor:
        def run() -> None:
            with torch.no_grad():
                outputs.append(mini(ids))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return (clean - changed).norm(dim=-1)

    for engine in ("hooks", "closed_form"):
        tl_vzero.value_zeroing(mini, IDS, distance=run_by_itself, engine=engine, layers=[1], sources=[1])
    assert outputs
    assert all(torch.equal(logits, expected) for logits in outputs)


# --- calls from inside a call -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize(
    "inner",
    [
        lambda model: tl_vzero.value_zeroing(model, IDS),
        lambda model: tl_vzero.METHODS["attention"](model, IDS),
        lambda model: tl_vzero.value_zeroing_hooks(model, positions=[1]),
        lambda model: tl_vzero.zero_ablation(model, IDS, target=1),
    ],
)
def test_a_call_from_inside_a_distance_is_refused(mini: Any, engine: str, inner: Callable[[Any], Any]) -> None:
    def distance(clean: Tensor, changed: Tensor) -> Tensor:
        inner(mini)
        return (clean - changed).norm(dim=-1)

    with pytest.raises(InputError, match="in the middle of a run"):
        tl_vzero.value_zeroing(mini, IDS, distance=distance, engine=engine)
    assert tl_vzero.value_zeroing(mini, IDS).values.isfinite().all()


def test_a_call_on_another_model_from_inside_a_distance_is_fine(mini: Any) -> None:
    other = tl_vzero.load_model("agreement-mini")

    def distance(clean: Tensor, changed: Tensor) -> Tensor:
        assert tl_vzero.value_zeroing(other, IDS).values.isfinite().all()
        return (clean - changed).norm(dim=-1)

    expected = tl_vzero.value_zeroing(mini, IDS, distance="euclidean", layers=[0]).values
    values = tl_vzero.value_zeroing(mini, IDS, distance=distance, layers=[0]).values
    assert torch.allclose(values, expected, rtol=1e-4)


# --- what fails in a model ----------------------------------------------------------------------------------


def test_an_error_inside_a_model_is_reported_with_its_cause() -> None:
    _, model = build("load_model", "gpt2")
    model.original_model.transformer.h[1].mlp.forward = lambda hidden: hidden.no_such_attribute
    with pytest.raises(ModelError, match="no_such_attribute") as caught:
        tl_vzero.value_zeroing(model, IDS)
    assert isinstance(caught.value.__cause__, AttributeError)


# --- Ctrl-C -------------------------------------------------------------------------------------------------


def jobs(model: Any) -> dict[str, Callable[[], object]]:
    return {
        "auto": lambda: tl_vzero.value_zeroing(model, IDS),
        "hooks": lambda: tl_vzero.value_zeroing(model, IDS, engine="hooks", batch_size=3),
        "final norm": lambda: tl_vzero.value_zeroing(model, IDS, final_norm=True, layers=[-1], sources=[1]),
        "zero ablation": lambda: tl_vzero.zero_ablation(model, IDS, target=4),
        "attribution": lambda: tl_vzero.attribution_patching(model, IDS, target=4),
        "value patching": lambda: tl_vzero.value_patching(model, IDS, torch.tensor([2, 6, 9, 10, 3]), target=4),
        "hta": lambda: tl_vzero.score(model, IDS, "hta"),
        "deep_lift": lambda: tl_vzero.score(model, IDS, "deep_lift", target=4),
        "decompx": lambda: tl_vzero.score(model, IDS, "decompx"),
    }


def state(model: Any) -> dict[str, Any]:
    modules = every_module(model)
    return {
        "hooks": hook_counts(model),
        "torch hooks": {
            name: {at: len(hooks) for at, hooks in by_kind.items()} for name, by_kind in torch_hooks(model).items()
        },
        "training": {name: module.training for name, module in modules.items()},
        "attention": {
            name: getattr(getattr(module, "config", None), "_attn_implementation", None)
            for name, module in modules.items()
        },
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "handler": signal.getsignal(signal.SIGINT),
    }


def broken_by(job: Callable[[], object], model: Any, files: tuple[str, ...], way: Way) -> list[str | None]:
    """Interrupt a job at every line it reaches; the lines at which that left a trace or raised nothing."""
    job()
    before, broken = state(model), []
    for count in lines_of(job, files):
        line, interrupted = interrupt_at(job, files, count, way)
        if not interrupted or state(model) != before:
            broken.append(line)
    return broken


@pytest.fixture
def training_model() -> Iterator[Any]:
    """A model in training mode with fused attention, so that there is something to put back."""
    _, model = build("load_model", "gpt2")
    model.train()
    model.original_model.set_attn_implementation("sdpa")
    yield model
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("name", "way"), [("hooks", "signal"), ("final norm", "raised")])
def test_an_interrupt_at_any_line_around_a_run_leaves_no_trace(training_model: Any, name: str, way: Way) -> None:
    assert broken_by(jobs(training_model)[name], training_model, AROUND_A_RUN, way) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("name", list(jobs(None)))
def test_an_interrupt_at_any_line_leaves_no_trace(training_model: Any, name: str, way: Way) -> None:
    assert broken_by(jobs(training_model)[name], training_model, EVERYWHERE, way) == []


def test_after_an_interrupt_other_threads_go_on(training_model: Any) -> None:
    job = jobs(training_model)["hooks"]
    job()
    points = lines_of(job, AROUND_A_RUN)
    for count in points[:: max(1, len(points) // 12)]:
        interrupt_at(job, AROUND_A_RUN, count, "signal")
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()


def test_a_users_handler_of_ctrl_c_is_called_and_stays(training_model: Any) -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda signal_number, frame: came.append(signal_number))
    handler = signal.getsignal(signal.SIGINT)
    job = jobs(training_model)["hooks"]
    job()
    points = lines_of(job, AROUND_A_RUN)
    for count in points[::5]:
        interrupt_at(job, AROUND_A_RUN, count, "signal")
    assert len(came) == len(points[::5])
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("context", [quiet, eager_attention, lambda model: temporary_hooks(model, [])])
def test_an_error_within_a_turn_is_the_users_to_see(training_model: Any, context: Any) -> None:
    before = state(training_model)
    with pytest.raises(ZeroDivisionError), context(training_model):
        _ = 1 / 0
    assert state(training_model) == before


# --- inference mode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_a_model_is_loaded_outside_of_the_callers_modes(mode: Callable[[], Any]) -> None:
    """TransformerLens splits NeoX's fused weights into parts of its own, which are made at loading."""
    hf_model = hf_neox()
    with mode():
        model = tl_vzero.load_model(hf_model)
    estimate = tl_vzero.attribution_patching(model, IDS, target=3, target_ids=5).values
    expected = tl_vzero.attribution_patching(tl_vzero.load_model(hf_model), IDS, target=3, target_ids=5).values
    assert torch.equal(estimate, expected)


CALLS = ["value_zeroing", "alti", "decompx", "hta", "gradient_x_input", "integrated_gradients", "deep_lift"]


@pytest.mark.parametrize("method", CALLS)
def test_a_first_call_in_inference_mode_does_not_spoil_later_ones(method: str) -> None:
    def scored(model: nn.Module) -> Tensor:
        options = {"target": 4} if "grad" in method or method == "deep_lift" else {}
        return tl_vzero.score(model, IDS.clone(), method, **options).values

    expected = scored(tl_vzero.load_model("agreement-mini"))
    model = tl_vzero.load_model("agreement-mini")
    with torch.inference_mode():
        inside = scored(model)
        assert torch.is_inference_mode_enabled()
    for values in (inside, scored(model), scored(model)):
        assert torch.equal(values, expected)
        assert not values.is_inference()


def test_a_model_read_in_inference_mode_has_gradients_later() -> None:
    with torch.inference_mode():
        model = tl_vzero.load_model("agreement-mini")
    expected = tl_vzero.score(tl_vzero.load_model("agreement-mini"), IDS, "gradient_x_input", target=4).values
    assert torch.equal(tl_vzero.score(model, IDS, "gradient_x_input", target=4).values, expected)


def test_an_effect_in_inference_mode_is_of_use_outside() -> None:
    model = tl_vzero.load_model("agreement-mini")
    with torch.inference_mode():
        effect = tl_vzero.zero_ablation(model, IDS, target=4)
    assert not effect.values.is_inference()


@pytest.mark.parametrize("builder", [hf_bert, hf_gpt2])
def test_a_model_loaded_in_inference_mode_gives_the_same(builder: Callable[[], Any]) -> None:
    hf_model = builder()
    expected = tl_vzero.value_zeroing(tl_vzero.load_model(hf_model, tokenizer()), IDS).values
    with torch.inference_mode():
        model = tl_vzero.load_model(builder(), tokenizer())
        inside = tl_vzero.value_zeroing(model, IDS).values
    assert torch.equal(inside, expected)
    assert torch.equal(tl_vzero.value_zeroing(model, IDS).values, expected)
    # Weights that were made in inference mode have no gradients, ever.
    with pytest.raises(ModelError, match="nference"):
        tl_vzero.score(model, IDS, "gradient_x_input", target=4)
