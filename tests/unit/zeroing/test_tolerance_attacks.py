"""Attacks on the law of a tolerance: with the confidence, every share of a row is within its error of the exact one.

First the statistics by themselves, by simulation; then whole calls on models that make it hard.
"""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy.stats import gamma
from support.closed import IDS, shared_model
from support.models import VOCABULARY, hf_bert, hf_gpt2, hf_llama, loaded, randomise
from support.paired import PAIRED, READ, STACKS, stack_options
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.zeroing import chunks, sketch
from tl_vzero.zeroing.request import Tolerance

RISKS = (0.1, 0.01)
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5}  # of a share, between two exact calls

# --- the statistics by themselves -----------------------------------------------------------------------

N_GROUPS, IN_GROUP, FEATURES = 10, 4, 5


def configuration(name: str) -> np.ndarray:
    """Vectors `[group, entry, feature]` whose directions and sizes are as hard as the name says."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N_GROUPS, IN_GROUP, FEATURES))
    aligned = np.broadcast_to(np.eye(FEATURES)[0], vectors.shape)
    return {
        "any": vectors,
        "aligned": aligned,
        "orthogonal": np.broadcast_to(np.eye(FEATURES)[:IN_GROUP], vectors.shape),
        "low rank": vectors * (np.arange(FEATURES) < 2),
        "one dominates": aligned * np.array([1e3, 1.0, 1e-2, 0.0])[:, None],
        "heavy tails": aligned * np.exp(2.5 * rng.normal(size=(N_GROUPS, 1, 1))),
        "one group": aligned * (np.arange(N_GROUPS) == 3)[:, None, None],
        "tiny": 1e-9 * vectors,
        "huge": 1e7 * vectors,
    }[name]


CONFIGURATIONS = (
    "any",
    "aligned",
    "orthogonal",
    "low rank",
    "one dominates",
    "heavy tails",
    "one group",
    "tiny",
    "huge",
)


def no_more_often_than(risk: float, violated: np.ndarray | Tensor) -> bool:
    """Whether a share of rows is at most the risk, up to four standard deviations of what chance does to it."""
    violated = np.asarray(violated)
    return bool(violated.mean() <= risk + 4 * math.sqrt(risk * (1 - risk) / violated.size))


each_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)


def drawn_sizes(vectors: np.ndarray, directions: int, draws: int, seed: int) -> np.ndarray:
    """What random directions of each group show of its vectors' squared sizes, `[draw, group, entry]`."""
    rng = np.random.default_rng(seed)
    shown = np.stack([np.matmul(vectors, rng.normal(size=(N_GROUPS, FEATURES, directions))) for _ in range(draws)])
    return np.square(shown).mean(-1)


@each_configuration
@pytest.mark.parametrize("directions", [8, 24])
def test_sums_and_entries_are_outside_their_ranges_as_seldom_as_the_risk_says(name: str, directions: int) -> None:
    vectors, draws = configuration(name), 1500
    truth = np.square(vectors).sum(-1)
    estimates = drawn_sizes(vectors, directions, draws, seed=directions)
    of_groups = torch.from_numpy(estimates.sum(-1))
    limits = torch.from_numpy(truth.sum(-1)).expand_as(of_groups)  # no others are as tight
    entries = torch.full((draws, 1), float(truth.size), dtype=torch.float64)
    for risk in RISKS:
        low = sketch._sum_at_least(of_groups, directions, risk)
        high = sketch._sum_at_most(of_groups, limits, directions, risk)
        assert no_more_often_than(risk, low > truth.sum() * (1 + 1e-9))
        assert no_more_often_than(risk, high < truth.sum() * (1 - 1e-9))
        least, most = (factor.numpy()[:, :, None] for factor in sketch._entry_factors(directions, entries, risk))
        outside = (estimates < least * truth * (1 - 1e-9)) | (estimates > most * truth * (1 + 1e-9))
        assert no_more_often_than(risk, outside.any((1, 2)))


@pytest.mark.parametrize("directions", sketch.CHOICES)
def test_what_bounds_sums_from_below_is_one_on_average_at_most(directions: int) -> None:
    """By integration; C is convex, so that no sum of several numbers with one mean does worse."""
    bend = directions / 2 * (1 - math.sqrt(2 / directions))

    def log_c(y: np.ndarray) -> np.ndarray:
        before, slope = np.minimum(y, bend), 1 - 2 * bend / directions
        return before - before**2 / directions + np.log1p(slope * np.maximum(y - bend, 0))

    y = np.linspace(0, 4 * bend, 4001)
    assert (np.diff(np.exp(log_c(y) - log_c(y[-1:])), 2) >= -1e-12).all()
    r = np.linspace(1e-6, 8, 100_001)
    density = gamma.pdf(r, directions / 2, scale=2 / directions)
    for mean in np.geomspace(1e-3, 1e4, 60):
        assert np.trapezoid(density * np.exp(log_c(mean * r) - mean), r) <= 1 + 1e-9


def simulated(sizes: np.ndarray, rows: int, seed: int, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    """The truth, what directions show of it, and groups, all `[row, src]`: in a group vectors are nearly parallel."""
    rng, width = np.random.default_rng(seed), len(sizes)
    group = np.arange(width) // 4
    shared = rng.normal(size=(rows, group.max() + 1, directions))[:, group]
    alone = rng.normal(size=(rows, width, directions))
    estimates = sizes * np.square(np.sqrt(0.9) * shared + np.sqrt(0.1) * alone).mean(-1)
    truth = np.broadcast_to(sizes, estimates.shape).copy()
    return torch.from_numpy(truth), torch.from_numpy(estimates), torch.from_numpy(group).expand(rows, width)


SIZES = {
    "even": np.full(40, 1e-3),
    "steep": np.geomspace(1e-8, 1.0, 40),
    "large": np.full(40, 5.0),
    "some beyond all bounds": np.concatenate([[1e4, 3e3], np.full(38, 0.3)]),
    "many beyond all bounds": np.concatenate([np.full(20, 1e5), np.full(20, 1e-2)]),
    "one beyond all bounds": np.concatenate([[1e4], np.full(39, 0.01)]),
    "one alone": np.concatenate([[1.0], np.zeros(39)]),
    "tiny": np.full(40, 1e-20),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("directions", "share"), [(24, 0.9), (24, 0.05), (24, 0.01), (104, 0.05)])
def test_simulated_rows_keep_to_the_law_whatever_is_made_exact(name: str, directions: int, share: float) -> None:
    truth, estimates, group = simulated(SIZES[name], 1000, 3, directions)
    values = 1 - 1 / (1 + truth).sqrt()
    values = torch.where(truth < 1e-6, truth / 2, values)
    shares = values / values.sum(-1, keepdim=True)
    for confidence in (0.9, 0.99):
        everything = torch.ones_like(truth, dtype=torch.bool)
        # What is computed for another reason, whatever directions show of it.
        cancelled = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.2
        guesses = sketch.Guesses(
            directions,
            Tolerance(share, confidence, 0),
            everything,
            cancelled,
            torch.where(cancelled, values, 0.0),
            *(estimates.clone() for _ in range(3)),
            group,
        )
        guessed, error = guesses.bounded()
        while (far := guesses.too_far(error)).any():
            guesses.values[far] = values[far]
            guesses.exact |= far
            guessed, error = guesses.bounded()
        assert error.max() <= share
        off = (guessed / guessed.sum(-1, keepdim=True) - shares).abs() > error + 1e-12
        assert no_more_often_than(1 - confidence, off.any(-1))


def test_a_changed_divisor_is_between_the_ends_of_its_way() -> None:
    """Also where what the norm adds to the variance is most of it, and where the change takes all of the clean row."""
    generator, features, eps = torch.Generator().manual_seed(0), 12, 1.0
    clean = torch.randn(400, features, generator=generator, dtype=torch.float64)
    times = torch.linspace(-1, 3, 400, dtype=torch.float64).unsqueeze(-1)
    change = times * clean + 0.1 * torch.randn(400, features, generator=generator, dtype=torch.float64)
    deviation = (clean.square().mean(-1) + eps).sqrt()
    last = SimpleNamespace(norm=SimpleNamespace(eps=eps), deviation=deviation)
    layer = SimpleNamespace(last=last, outputs=clean, wide=torch.float64, least=0.02, most=6.0)
    shown = change @ torch.randn(features, sketch.DIRECTIONS_OF_SIZE, generator=generator, dtype=torch.float64)
    ways, _ = sketch.Sketch._ways(layer, torch.arange(400), shown, (change * clean).sum(-1))  # type: ignore[arg-type]
    truth = 1 / ((clean - change).square().mean(-1) + eps).sqrt()
    for scale, of_clean, of_rest in ways:
        torch.testing.assert_close(of_clean, 1 / deviation - scale, atol=1e-12, rtol=0)
        assert (of_rest == 1).all()
    largest, _, smallest = (scale for scale, *_ in ways)
    assert (smallest - 1e-12 <= truth).all() and (truth <= largest + 1e-12).all()


# --- whole calls ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _guesses_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketch narrow models too, with few pairs in a chunk and few groups."""
    monkeypatch.setattr(sketch, "NARROWEST", 1)
    monkeypatch.setattr(sketch, "LARGEST_COST", math.inf)
    monkeypatch.setattr(sketch, "COST_OF_DIRECTION", 0.0)
    monkeypatch.setattr(sketch, "MOST_GROUPS", 5)
    monkeypatch.setattr(chunks, "ROWS_PER_PRODUCT", 17)


def of_rows(maps: Tensor) -> Tensor:
    """Shares of each row; nothing where a row is empty."""
    return torch.nan_to_num(maps.double() / maps.double().sum(-1, keepdim=True), nan=0.0)


def outside(exact: Any, guessed: Any, rounding: float) -> Tensor:
    """The rows, of all axes, with an entry that is farther off than its error says."""
    assert exact.error is None and guessed.error is not None
    assert guessed.error.shape == guessed.values.shape == exact.values.shape
    assert (guessed.error >= 0).all() and torch.isfinite(guessed.error).all()
    assert guessed.error.max() <= guessed.metadata["options"]["tolerance"]
    difference = (of_rows(exact.values) - guessed.normalized().values.double()).abs()
    return (difference > guessed.error + rounding).any(-1).flatten()


def both(model: Any, inputs: Any, seeds: int = 1, at_least: float = 0.2, **options: Any) -> tuple[Tensor, float]:
    """The rows outside of their errors over all seeds, and the share of entries that were guessed."""
    of_call = {name: options.pop(name) for name in ("tolerance", "confidence") if name in options}
    exact = tl_vzero.value_zeroing(model, inputs, engine="closed_form", **options)
    rounding = ROUNDING[torch.float64 if _first(exact).values.dtype == torch.float64 else torch.float32]
    rows, shares = [], []
    for seed in range(seeds):
        guessed = tl_vzero.value_zeroing(model, inputs, engine="closed_form", seed=seed, **of_call, **options)
        for one, other in zip(_listed(exact), _listed(guessed), strict=True):
            rows.append(outside(one, other, rounding))
            off = (other.values - one.values).abs() > 1e-3 * one.values
            shares.append(int(off.sum()) / max(1, int((one.values > 0).sum())))
    share = sum(shares) / len(shares)
    assert share >= at_least
    return torch.cat(rows), share


def _listed(scores: Any) -> list[Any]:
    return scores if isinstance(scores, list) else [scores]


def _first(scores: Any) -> Any:
    return _listed(scores)[0]


KINDS = ("bert", "gpt2", "llama", "gemma2")
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "per head": {"per_head": True, "layers": [-1, 0]},
    "spans": {"spans": [[0, 3], [1], [2, 4, 7], [5, 6]], "destinations": [1, -1, 4]},
    "mean": {"baseline": "mean", "heads": [1]},
    "parts": {"sources": [0, 3, 4, 8, -1], "destinations": [-1]},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_keeps_to_its_errors(kind: str, name: str) -> None:
    rows, _ = both(shared_model(kind), IDS, tolerance=0.95, **OPTIONS[name])
    assert not rows.any()


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_of_several_lengths_keep_to_their_errors(kind: str) -> None:
    rows, _ = both(shared_model(kind), [IDS, IDS[:1], IDS[:4], IDS[3:]], tolerance=0.9)
    assert len(rows) == 3 * (11 + 1 + 4 + 8) and not rows.any()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", [pytest.param("T5", marks=pytest.mark.slow), "BART"])
def test_encoder_decoders_keep_to_their_errors(name: str, stack: str) -> None:
    model = loaded(copy.deepcopy(PAIRED[name].tiny()).double())
    rows, _ = both(model, torch.tensor(READ), tolerance=0.95, **stack_options(stack))
    assert not rows.any()


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("tolerance", [0.95, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_outside_their_errors_as_seldom_as_the_confidence_says(
    kind: str, tolerance: float, confidence: float
) -> None:
    options: dict[str, Any] = {"tolerance": tolerance, "confidence": confidence, "at_least": 0.0}
    rows, share = both(shared_model(kind), IDS, seeds=60, **options)
    assert share > 0.02 and rows.double().mean() < 1 - confidence


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_rows_of_encoder_decoders_are_outside_as_seldom(stack: str) -> None:
    model = loaded(copy.deepcopy(PAIRED["BART"].tiny()).double())
    rows, _ = both(model, torch.tensor(READ), seeds=60, tolerance=0.95, confidence=0.9, **stack_options(stack))
    assert rows.double().mean() < 0.1


# --- models that make it hard ---------------------------------------------------------------------------

LENGTH = 144


def wide(kind: str, width: int) -> Any:
    """One or two blocks, wider than the closed form computes in float64."""
    shape = {"vocab_size": VOCABULARY, "pad_token_id": 0}
    if kind == "bert":
        config = BertConfig(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=5,
            intermediate_size=width,
            max_position_embeddings=256,
            **shape,
        )
        return randomise(BertForMaskedLM(config), 0)
    return randomise(
        GPT2LMHeadModel(
            GPT2Config(n_embd=width, n_layer=2, n_head=5, n_inner=width, n_positions=256, **shape | {"bos_token_id": 2})
        ),
        0,
    )


def _weights(model: Any, *parts: str) -> list[Tensor]:
    """The weights whose names hold one of the parts."""
    weights = [weight for name, weight in model.named_parameters() if any(part in name for part in parts)]
    assert weights
    return weights


NORMS = ("output.LayerNorm.weight", "ln_2.weight")
NORM_BIASES = ("output.LayerNorm.bias", "ln_2.bias")
QUERIES = ("query.weight", "c_attn.weight")
VALUES = ("self.value", "attn.c_proj.weight")
OUT = ("layer.0.output.dense", "layer.1.output.dense", "mlp.c_proj")


def sink(model: Any) -> None:
    """One position's embedding leads everything, and attention is sharp."""
    for weight in _weights(model, *QUERIES):
        weight.mul_(4.0)


def uniform(model: Any) -> None:
    for weight in _weights(model, *QUERIES):
        weight.mul_(1e-6)


def outlier(model: Any) -> None:
    for weight in _weights(model, *NORMS):
        weight[3] = 1000.0


def outlier_feature(model: Any) -> None:
    for weight in _weights(model, "word_embeddings.weight", "wte.weight"):
        weight[:, 5] *= 300.0


def biased(model: Any) -> None:
    """What every output shares is far larger than what tells them apart."""
    for weight in _weights(model, *NORM_BIASES):
        weight.mul_(300.0)


def faint(model: Any) -> None:
    for weight in _weights(model, *VALUES):
        weight.mul_(1e-4)


def loud(model: Any) -> None:
    for weight in _weights(model, *VALUES):
        weight.mul_(300.0)


def mlp_alone(model: Any) -> None:
    for weight in _weights(model, *OUT):
        weight.mul_(100.0)


def little_varied(model: Any) -> None:
    """What norms read is about as small as what they add to its variance."""
    for weight in _weights(model, *NORMS, *NORM_BIASES, "embeddings", "wte", "wpe", *VALUES, *OUT):
        weight.mul_(1e-3)


def far_from_scale_free(model: Any) -> None:
    """Half of what norms divide by is what they add to the variance; what attention loses is large."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 3.0
    model.config.layer_norm_eps = model.config.layer_norm_epsilon = 3.0
    for weight in _weights(model, "self.value", "attn.c_proj.weight", *OUT):
        weight.mul_(3.0)


def plain(model: Any) -> None:
    del model


HARD: tuple[Callable[[Any], None], ...] = (
    plain,
    sink,
    uniform,
    outlier,
    outlier_feature,
    biased,
    faint,
    loud,
    mlp_alone,
    little_varied,
    far_from_scale_free,
)


def made_hard(kind: str, change: Callable[[Any], None], width: int, dtype: torch.dtype = torch.float32) -> Any:
    hf_model = wide(kind, width)
    with torch.no_grad():
        change(hf_model)
    return tl_vzero.load_model(hf_model, dtype=dtype)


def ids_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("change", HARD, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_hard_models_keep_to_their_errors(kind: str, change: Callable[[Any], None]) -> None:
    model = made_hard(kind, change, 20, torch.float64)
    rows, _ = both(model, ids_of(16), seeds=2, at_least=0.01, tolerance=0.95)
    assert not rows.any()


@pytest.mark.slow
@pytest.mark.parametrize("change", HARD, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_hard_models_in_float32_keep_to_their_errors(
    kind: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all 10,000 rows of these models."""
    monkeypatch.setattr(chunks, "ROWS_PER_PRODUCT", 600)
    monkeypatch.setattr(sketch, "MOST_GROUPS", 128)
    model = made_hard(kind, change, 320)
    for text, tolerance in enumerate((0.5, 0.03)):
        rows, _ = both(model, ids_of(LENGTH, text), at_least=0.0, tolerance=tolerance)
        assert not rows.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_to_its_errors(dtype: torch.dtype) -> None:
    model = tl_vzero.load_model(wide("gpt2", 20), dtype=dtype)
    rows, _ = both(model, ids_of(16), tolerance=0.95)
    assert not rows.any()


@pytest.mark.parametrize("kind", KINDS)
def test_ties_keep_to_their_errors(kind: str) -> None:
    rows, _ = both(shared_model(kind), torch.full((14,), 7), tolerance=0.9)
    assert not rows.any()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-4, 1e8])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_small_and_large_changes_keep_to_their_errors(kind: str, size: float) -> None:
    def scaled(model: Any) -> None:
        for weight in _weights(model, *VALUES):
            weight.mul_(size)

    for dtype, width in ((torch.float64, 20), (torch.float32, 260)):
        model = made_hard(kind, scaled, width, dtype)
        rows, _ = both(model, ids_of(9), at_least=0.0, tolerance=0.95)
        assert not rows.any()


@pytest.mark.parametrize("size", [0.0, 1e-10, 1e-5])
def test_rows_without_a_large_value_keep_to_their_errors(size: float) -> None:
    """Values are one feature, tiny in all tokens but one, which is no source."""
    for width, dtype in ((16, torch.float64), (320, torch.float32)):
        hf_model = hf_llama(width=width, layers=1)
        with torch.no_grad():
            hf_model.model.embed_tokens.weight[:, 5] = size
            hf_model.model.embed_tokens.weight[7, 5] = 1.0
            hf_model.model.layers[0].self_attn.v_proj.weight[:, torch.arange(width) != 5] = 0.0
        ids = torch.tensor([7, 12, 30, 31, 40, 8, 9, 22, 51, 10, 13])
        model = tl_vzero.load_model(hf_model, dtype=dtype)
        rows, _ = both(model, ids, at_least=0.0, tolerance=0.95, sources=range(1, 11))
        assert not rows.any()


def test_outputs_that_are_zero_keep_to_their_errors() -> None:
    hf_model = hf_llama(width=16)
    with torch.no_grad():
        hf_model.model.embed_tokens.weight[7] = 0.0
    model = tl_vzero.load_model(hf_model, dtype=torch.float64)
    rows, _ = both(model, torch.tensor([7, 7, 30, 31, 7, 8, 40, 22]), tolerance=0.95)
    assert not rows.any()


def test_values_that_vanish_leave_empty_rows() -> None:
    def valueless(model: Any) -> None:
        for weight in _weights(model, "layer.1.attention.self.value"):
            weight.zero_()

    model = made_hard("bert", valueless, 20, torch.float64)
    guessed = tl_vzero.value_zeroing(model, ids_of(9), tolerance=0.9)
    assert guessed.empty_rows == tuple((1, dest) for dest in range(9))
    assert (guessed.error[1] == 0).all()


# --- doors and promises ---------------------------------------------------------------------------------


def _own_distance(clean: Tensor, changed: Tensor) -> Tensor:
    return (clean - changed).abs().amax(-1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *[({"tolerance": wrong}, InputError) for wrong in (0, 1, 0.0, 1.0, -0.1, 2, math.nan, math.inf)],
        *[({"tolerance": wrong}, InputTypeError) for wrong in (True, "0.01", [0.01], 1j)],
        *[({"confidence": wrong}, InputError) for wrong in (0, 1, 1.0, -1, math.nan)],
        *[({"confidence": wrong}, InputTypeError) for wrong in (True, None, "0.9")],
        *[({"seed": wrong}, InputError) for wrong in (-1, 2**63)],
        *[({"seed": wrong}, InputTypeError) for wrong in (1.0, True, "1", None)],
        *[({"distance": wrong}, InputError) for wrong in ("euclidean", _own_distance, "nearest")],
        ({"engine": "hooks"}, InputError),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises((error, TypeCheckError)):
        tl_vzero.value_zeroing(shared_model("gpt2"), IDS, **{"tolerance": 0.1} | options)


def test_a_layer_behind_the_final_norm_is_exact() -> None:
    model = shared_model("gpt2")
    exact = tl_vzero.value_zeroing(model, IDS, final_norm=True)
    guessed = tl_vzero.value_zeroing(model, IDS, final_norm=True, tolerance=0.9)
    assert torch.equal(exact.values[-1], guessed.values[-1]) and (guessed.error[-1] == 0).all()
    assert (guessed.error[:-1] > 0).any() and not outside(exact, guessed, 1e-9).any()


def test_a_model_with_hooks_is_exact() -> None:
    model = tl_vzero.load_model(hf_gpt2(), dtype=torch.float64)
    exact = tl_vzero.value_zeroing(model, IDS, engine="hooks")
    model.add_hook("blocks.1.attn.hook_v", lambda value, hook: value)
    guessed = tl_vzero.value_zeroing(model, IDS, tolerance=0.9)
    assert guessed.metadata["engine"] == "hooks" and (guessed.error == 0).all()
    assert (exact.values - guessed.values).abs().max() <= 1e-12


def test_a_seed_always_says_the_same_and_the_model_and_the_random_state_stay() -> None:
    model = tl_vzero.load_model(hf_bert(), dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    options: dict[str, Any] = {"tolerance": 0.9, "seed": 5}
    first = tl_vzero.value_zeroing(model, IDS, **options)
    tl_vzero.value_zeroing(model, IDS[:5], tolerance=0.5)
    tl_vzero.value_zeroing(model, IDS)
    again = tl_vzero.value_zeroing(model, IDS, **options)
    assert torch.equal(first.values, again.values) and torch.equal(first.error, again.error)
    assert not torch.equal(first.values, tl_vzero.value_zeroing(model, IDS, **options | {"seed": 6}).values)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
