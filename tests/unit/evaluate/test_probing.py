"""Minimum description length probing: the code's arithmetic, a plain one-layer program, laws, bad input."""

import json
from math import e, log, log2
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from support.state import type_checks_off
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate import probing
from tl_vzero.evaluate.probing import MODES, ProbingResult, block_ends, fewest_examples, label_lengths, probe_layers

BOTH = ["correct", "paper"]


def alone_length(representations: Tensor, labels: Tensor, **options: Any) -> float:
    """The code length by the representations of one layer, with no other beside it."""
    return probe_layers(representations[:, None], labels, resamples=1, **options).code_length[0]


def noise_with_labels(
    n: int, *, strength: float, features: int = 32, kinds: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Noise in which a few features tell the label; by nothing at strength 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, kinds, (n,), generator=generator)
    representations = torch.randn(n, features, generator=generator)
    representations[:, :kinds] += strength * F.one_hot(labels, kinds)
    return representations, labels


def layered(n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three layers that tell the label by nothing, a little and much; in float64."""
    labels = noise_with_labels(n, strength=0, seed=seed)[1]
    layers = [noise_with_labels(n, strength=strength, seed=seed)[0] for strength in (0.0, 2.0, 8.0)]
    return torch.stack(layers, dim=1).double(), labels


# The code's arithmetic.


def certain(labels: Tensor, kinds: int, size: float) -> Tensor:
    return size * F.one_hot(labels, kinds).double()[None]


def compression_of(logits: Tensor, labels: Tensor, mode: str) -> float:
    """Compression where every example after the first block is predicted by such logits."""
    predicted = logits[:, block_ends(len(labels))[0] :]
    return len(labels) * log2(logits.shape[-1]) / label_lengths(predicted, labels, MODES[mode]).sum().item()


def test_the_range_of_the_public_program() -> None:
    """At chance every label costs log 2 nats; at perfection the second softmax leaves log(1 + 1/e)."""
    labels = torch.arange(2000) % 2
    chance = compression_of(torch.zeros(1, 2000, 2).double(), labels, "paper")
    perfection = compression_of(certain(labels, 2, 1e4), labels, "paper")
    assert chance == pytest.approx(1 / (0.008 + 0.992 * log(2)), abs=1e-12)
    assert perfection == pytest.approx(1 / (0.008 + 0.992 * log(1 + 1 / e)), abs=1e-12)
    assert round(chance, 4) == 1.4376
    assert round(perfection, 3) == 3.137


@pytest.mark.parametrize("kinds", [2, 3, 7])
def test_chance_is_1_and_perfection_costs_the_first_block_only(kinds: int) -> None:
    labels = torch.arange(2000) % kinds
    assert compression_of(torch.zeros(1, 2000, kinds).double(), labels, "correct") == pytest.approx(1, abs=1e-12)
    assert compression_of(certain(labels, kinds, 1e4), labels, "correct") == pytest.approx(1 / 0.008, abs=1e-9)


def test_a_labels_bits_by_hand() -> None:
    """Odds of 3 to 1 for the first class: log2 4/3 bits if it comes, 2 if the other does; one bit with no odds."""
    lengths = label_lengths(torch.tensor([[[log(3), 0.0], [log(3), 0.0]]]), torch.tensor([1, 0, 1]), MODES["correct"])
    assert lengths.tolist() == [pytest.approx([1.0, log2(4 / 3), 2.0])]


def test_block_ends() -> None:
    assert block_ends(2138) == (17, 34, 68, 134, 267, 534, 1069, 2138)
    assert [fewest_examples(MODES[mode]) for mode in BOTH] == [188, 63]


# A plain program for one layer, one module after another.


class PlainProbe:
    """The probe in torch's own modules; what it draws, it draws in the order of the batched one."""

    def __init__(self, features: int, kinds: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        first, norm, last = nn.Linear(features, 128), nn.LayerNorm(128), nn.Linear(128, kinds)
        for linear in (first, last):
            for parameter in (linear.weight, linear.bias):
                bound = linear.in_features**-0.5
                parameter.data = torch.empty_like(parameter).uniform_(-bound, bound, generator=self.generator)
        self.last = last
        self.before = nn.Sequential(first, nn.ReLU(), norm).double()
        self.last.double()

    def parameters(self) -> list[nn.Parameter]:
        return [*self.before.parameters(), *self.last.parameters()]

    def drop(self, x: Tensor, share: float) -> Tensor:
        return x * (torch.rand(x.shape, generator=self.generator) >= share).double() / (1 - share)

    def __call__(self, x: Tensor, *, training: bool = False) -> Tensor:
        if not training:
            return self.last(self.before(x))
        return self.last(self.drop(self.before(self.drop(x, 0.2)), 0.3))


def plain_order(n: int, seed: int) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator), torch.randint(2**62, (7,), generator=generator).tolist()


def batches(n: int) -> list[slice]:
    return [slice(start, min(n, start + 128)) for start in range(0, n, 128)]


def plain_correct(x: Tensor, y: Tensor, kinds: int, seed: int) -> list[float]:
    """Bits per block."""
    order, seeds = plain_order(len(y), seed)
    x, y, ends = x[order], y[order], block_ends(len(y))
    bits = [ends[0] * log2(kinds)]
    for start, end, block_seed in zip(ends[:-1], ends[1:], seeds, strict=True):
        probe = PlainProbe(x.shape[1], kinds, block_seed)
        nn.init.zeros_(probe.last.weight)
        nn.init.zeros_(probe.last.bias)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0, eps=1e-6)
        n_train = start - max(1, round(start / 10))
        held_out, code, waited = [], [], 0
        for epoch in range(16):
            if epoch > 0:
                for batch in batches(n_train):
                    optimizer.zero_grad()
                    F.cross_entropy(probe(x[:n_train][batch], training=True), y[:n_train][batch]).backward()
                    optimizer.step()
            held_out.append(F.cross_entropy(probe(x[n_train:start]), y[n_train:start]).item())
            code.append(F.cross_entropy(probe(x[start:end]), y[start:end], reduction="sum").item() / log(2))
            waited = 0 if held_out[-1] < min(held_out[:-1], default=np.inf) else waited + 1
            if waited == 5:
                break
        bits.append(code[int(np.argmin(held_out))])
    return bits


def plain_paper(x: Tensor, y: Tensor, kinds: int, seed: int) -> list[float]:
    """The public program: fifteen epochs with the rate at 0 after one, and the epoch that codes the block best."""
    order, seeds = plain_order(len(y), seed)
    x, y, ends = x[order], y[order], block_ends(len(y))
    code_length = [ends[0] * log2(kinds)]
    for start, end, block_seed in zip(ends[:-1], ends[1:], seeds, strict=True):
        probe = PlainProbe(x.shape[1], kinds, block_seed)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0, eps=1e-6)
        steps = len(batches(start))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, steps=steps: max(0, 1 - step / steps))
        nats = []
        for _ in range(15):
            for batch in batches(start):
                optimizer.zero_grad()
                probabilities = probe(x[:start][batch], training=True).softmax(-1)
                nn.CrossEntropyLoss()(probabilities, y[:start][batch]).backward()
                optimizer.step()
                schedule.step()
            nats.append(F.cross_entropy(probe(x[start:end]).softmax(-1), y[start:end], reduction="sum").item())
        code_length.append(min(nats))
    return code_length


@pytest.mark.parametrize(("mode", "plain"), [("correct", plain_correct), ("paper", plain_paper)])
def test_all_layers_at_once_are_a_plain_program_layer_by_layer(mode: Any, plain: Any) -> None:
    representations, labels = layered()
    result = probe_layers(representations, labels, mode=mode, seed=4)
    for layer, lengths in enumerate(result.block_lengths):
        expected = plain(representations[:, layer], labels, kinds=2, seed=4)
        assert lengths == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", BOTH)
def test_a_layer_is_coded_as_if_alone(mode: Any) -> None:
    representations, labels = layered()
    together = probe_layers(representations, labels, mode=mode).code_length
    alone = [alone_length(representations[:, layer], labels, mode=mode) for layer in range(3)]
    assert together == pytest.approx(alone, rel=1e-6)


def test_a_layer_out_of_patience_stays_with_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the training goes on for the sake of others, in which it might do better after all."""
    monkeypatch.setattr(probing.Correct, "patience", 1)
    representations, labels = layered()
    together = probe_layers(representations, labels).code_length
    alone = [alone_length(representations[:, layer], labels) for layer in range(3)]
    assert together == pytest.approx(alone, rel=1e-6)


# Laws.


def test_labels_are_not_compressed_by_noise() -> None:
    """Twelve layers of noise: the mean over them is 1 but for the little that probes lose on noise."""
    labels = noise_with_labels(1000, strength=0)[1]
    noise = torch.randn(1000, 12, 64, generator=torch.Generator().manual_seed(8))
    compression = probe_layers(noise, labels).compression
    mean, error = np.mean(compression), stats.sem(compression)
    assert 0.97 < mean < 1 + 2 * error
    assert max(compression) < 1.02


def test_labels_are_compressed_much_by_a_strong_signal() -> None:
    assert probe_layers(*with_one_layer(noise_with_labels(1000, strength=40))).compression[0] > 10


def with_one_layer(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return data[0][:, None], data[1]


@pytest.mark.parametrize("mode", BOTH)
def test_a_stronger_signal_compresses_more(mode: Any) -> None:
    compression = probe_layers(*layered(2000), mode=mode).compression
    assert compression[0] < compression[1] < compression[2]


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("kinds", [2, 5])
def test_blocks_add_up_and_the_first_is_coded_uniformly(mode: Any, kinds: int) -> None:
    representations, labels = noise_with_labels(1000, strength=3, kinds=kinds)
    result = probe_layers(representations[:, None].expand(-1, 2, -1), labels, mode=mode)
    assert result.block_sizes == (8, 8, 16, 30, 63, 125, 250, 500)
    assert sum(result.block_sizes) == result.n == 1000
    assert result.uniform_length == pytest.approx(1000 * log2(kinds))
    for lengths, total, compression in zip(result.block_lengths, result.code_length, result.compression, strict=True):
        assert lengths[0] == pytest.approx(8 * log2(kinds))
        assert sum(lengths) == pytest.approx(total)
        assert compression == pytest.approx(result.uniform_length / total)
    assert result.classes == kinds


def test_the_order_of_features_does_not_matter() -> None:
    """The probe's start is drawn for a feature's place, so results differ by what another seed would change."""
    representations, labels = noise_with_labels(400, strength=4)
    of_seeds = [alone_length(representations, labels, seed=seed) for seed in range(4)]
    shuffled = representations[:, torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    of_shuffled = [alone_length(shuffled, labels, seed=seed) for seed in range(4)]
    spread = np.std(of_seeds, ddof=1)
    assert abs(np.mean(of_seeds) - np.mean(of_shuffled)) < 2 * spread


def test_what_labels_are_called_does_not_matter() -> None:
    representations, labels = noise_with_labels(300, strength=3)
    assert alone_length(representations, labels) == alone_length(representations, labels * 9 - 4)


def test_the_coded_block_does_not_choose_its_own_probes() -> None:
    """What comes later in the order has no part in what a block costs."""
    representations, labels = noise_with_labels(400, strength=3)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    last = order[block_ends(400)[-2] :]
    changed = labels.clone()
    changed[last] = 1 - changed[last]
    one, other = (
        probe_layers(representations[:, None], coded_labels).block_lengths[0] for coded_labels in (labels, changed)
    )
    assert one[:-1] == other[:-1]
    assert one[-1] < other[-1]


@pytest.mark.parametrize("mode", BOTH)
def test_a_seed_gives_one_answer_and_another_seed_another(mode: Any) -> None:
    data = with_one_layer(noise_with_labels(300, strength=2))
    assert probe_layers(*data, mode=mode, seed=3) == probe_layers(*data, mode=mode, seed=3)
    assert probe_layers(*data, mode=mode, seed=3) != probe_layers(*data, mode=mode, seed=4)


def test_the_interval_is_a_bootstrap_over_the_examples_that_probes_code() -> None:
    representations, labels = with_one_layer(noise_with_labels(1000, strength=3))
    result = probe_layers(representations, labels, confidence=0.9, seed=1)
    lengths = probing._lengths(representations, labels, 2, MODES["correct"], 1, False)[0].numpy()
    interval = stats.bootstrap(
        (lengths[8:],),
        lambda sample: 1000 / (8 + sample.sum()),
        vectorized=False,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert (result.low[0], result.high[0]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert result.low[0] < result.compression[0] < result.high[0]


# What it takes and gives.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    representations, labels = with_one_layer(noise_with_labels(300, strength=3))
    half = representations.to(dtype)
    assert probe_layers(half, labels) == probe_layers(half.float(), labels)


def test_the_callers_state_is_left_alone() -> None:
    representations, labels = with_one_layer(noise_with_labels(200, strength=3))
    expected = probe_layers(representations, labels)
    before, copy = torch.get_rng_state(), representations.clone()
    with torch.no_grad():
        assert probe_layers(representations, labels) == expected
    with torch.inference_mode():
        assert probe_layers(representations.clone(), labels.clone()) == expected
    tracked = representations.clone().requires_grad_()
    assert probe_layers(tracked, labels) == expected
    assert tracked.grad is None
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(representations, copy)


def test_a_table_and_plain_json() -> None:
    representations, labels = layered(200)
    result = probe_layers(representations, labels, layers=[1, 2, 12], seed=5)
    table = result.to_frame()
    assert list(table.columns) == ["mode", "layer", "compression", "low", "high", "code_length", "n"]
    assert table["layer"].tolist() == [1, 2, 12]
    record = json.loads(json.dumps(result.to_dict()))
    assert record["compression"] == list(result.compression)
    assert (record["n"], record["classes"], record["seed"], record["mode"]) == (200, 2, 5, "correct")
    assert isinstance(result, ProbingResult)


@pytest.mark.parametrize("mode", BOTH)
def test_progress_is_shown_when_asked_for(mode: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = with_one_layer(noise_with_labels(200, strength=3))
    probe_layers(*data, mode=mode)
    assert capsys.readouterr().err == ""
    probe_layers(*data, mode=mode, progress=True)
    assert "probing" in capsys.readouterr().err


X, Y = torch.zeros(200, 2, 4), torch.arange(200) % 2
BROKEN = X.clone()
BROKEN[7, 1, 2], BROKEN[30, 0, 0] = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: probe_layers(X[:187], Y[:187]), InputError, "given 187 examples: expected at least 188"),
        (lambda: probe_layers(X[:62], Y[:62], mode="paper"), InputError, "given 62 examples: expected at least 63"),
        (lambda: probe_layers(X[:0], Y[:0]), InputError, "given 0 examples"),
        (lambda: probe_layers(X, Y * 0 + 3), InputError, "all labels are 3: expected two classes"),
        (lambda: probe_layers(BROKEN, Y), InputError, r"of 2 examples \(the first is 7\) hold NaN"),
        (lambda: probe_layers(X + 1e20, Y), InputError, r"beyond 1e\+15"),
        (lambda: probe_layers(X[:, 0], Y), InputError, r"shape \[200, 4\]: expected \[example, layer, feature\]"),
        (lambda: probe_layers(X[:, :0], Y), InputError, r"shape \[200, 0, 4\]"),
        (lambda: probe_layers(X, Y[:9]), InputError, r"labels have shape \[9\]: expected one for each of 200"),
        (lambda: probe_layers(X, Y[:, None]), InputError, r"labels have shape \[200, 1\]"),
        (lambda: probe_layers(X.numpy(), Y), InputTypeError, "representations is ndarray: expected a tensor"),
        (lambda: probe_layers(X.long(), Y), InputTypeError, "tensor of torch.int64: expected a tensor, floating"),
        (lambda: probe_layers(X, Y.float()), InputTypeError, "labels is a tensor of torch.float32"),
        (lambda: probe_layers(X, Y.bool()), InputTypeError, "labels is a tensor of torch.bool"),
        (lambda: probe_layers(X, Y.tolist()), InputTypeError, "labels is list"),
        (lambda: probe_layers(X, Y, mode="papre"), InputError, "did you mean 'paper'"),
        (lambda: probe_layers(X, Y, mode=None), InputError, "unknown mode None"),
        (lambda: probe_layers(X, Y, layers=[1]), InputError, r"layers is \[1\]: expected a number of its own .* 2"),
        (lambda: probe_layers(X, Y, layers=[1, 1]), InputError, "a number of its own"),
        (lambda: probe_layers(X, Y, seed=-1), InputError, "seed is -1: expected 0 or more"),
        (lambda: probe_layers(X, Y, seed=0.5), InputTypeError, "seed is float: expected an integer"),
        (lambda: probe_layers(X, Y, confidence=2), InputError, "such as 0.95"),
        (lambda: probe_layers(X, Y, resamples=0), InputError, "resamples is 0"),
    ],
)
def test_bad_input_is_refused_before_any_probe_is_trained(
    call: Any, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("a probe was trained")

    monkeypatch.setattr(probing, "_train_one_epoch", trained)
    with type_checks_off(), pytest.raises(error, match=says):
        call()
