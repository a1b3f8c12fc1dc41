"""Results of evaluations with made-up numbers, for what draws, judges and writes them."""

from collections.abc import Mapping, Sequence

from tl_vzero.data.own_file import CueCheck, CueCount, Disagreement
from tl_vzero.evaluate.cue_alignment import MEASURES, Alignment, CueAlignment
from tl_vzero.evaluate.faithfulness import BlankOut, Faithfulness
from tl_vzero.evaluate.knockout_agreement import KnockoutAgreement, KnockoutCorrelation
from tl_vzero.evaluate.mass import PLACES, Mass, Share
from tl_vzero.evaluate.planted import PlantedTruth, Recovered
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.evaluate.protocol import Controls, Reproduction
from tl_vzero.evaluate.removal import Removed, RunTime, TokenRemoval
from tl_vzero.evaluate.training import HeadChange, TrainingChanges
from tl_vzero.statistics import Estimate


def estimate(mean: float, half: float = 0.01, n: int = 50) -> Estimate:
    return Estimate(mean, mean - half, mean + half, n)


def alignment(
    means: Mapping[str, Sequence[float]],
    *,
    chance: float = 0.1,
    shuffled: float = 0.05,
    published: Mapping[str, Sequence[float]] | None = None,
) -> CueAlignment:
    """The given means by method and layer in every measure, and the same for the paradigm "one" and for "all"."""
    cells = tuple(
        Alignment(
            method,
            layer,
            paradigm,
            measure,
            estimate(mean),
            estimate(shuffled),
            chance,
            published[method][layer] if published and paradigm == "all" and measure == "dot" else None,
        )
        for method, layers in means.items()
        for layer, mean in enumerate(layers)
        for paradigm in ("one", "all")
        for measure in MEASURES
    )
    return CueAlignment(cells, {"hta": "it was <b>not</b> asked for"}, (), {"model": "made up"})


def mass(shares: Mapping[str, Sequence[float]]) -> Mass:
    """The given shares (cue, attractor, special, target, rest) by method, in two layers."""
    rows = tuple(
        Share(method, layer, paradigm, place, estimate(share), 50)
        for method, by_place in shares.items()
        for layer in (0, 1)
        for paradigm in ("one", "all")
        for place, share in zip(PLACES, by_place, strict=True)
    )
    return Mass(rows, dict.fromkeys(shares, 0), {}, (), {})


def training(changes: Mapping[str, float]) -> TrainingChanges:
    """The given change of the cue's share by checkpoint, the same for two heads in each of two layers."""
    rows = tuple(
        HeadChange(
            checkpoint,
            "same input",
            "all",
            layer,
            head,
            "cue",
            0.4,
            0.4 + by,
            estimate(by),
            p=0.5,
            q=0.5,
            changed=False,
        )
        for checkpoint, by in changes.items()
        for layer in (0, 1)
        for head in (0, 1)
    )
    return TrainingChanges(rows, (), (), {})


def probing(compression: Sequence[float], mode: str = "correct") -> ProbingResult:
    return ProbingResult(
        mode=mode,  # type: ignore[arg-type]
        layers=tuple(range(-1, len(compression) - 1)),
        compression=tuple(compression),
        low=tuple(value - 0.1 for value in compression),
        high=tuple(value + 0.1 for value in compression),
        code_length=tuple(200 / value for value in compression),
        block_lengths=tuple((200 / value,) for value in compression),
        block_sizes=(200,),
        n=200,
        classes=2,
        seed=0,
        confidence=0.95,
    )


def faithfulness(rhos: Mapping[str, float | None]) -> Faithfulness:
    conventions = {"replacement": "mask", "change": "signed", "over": "vocabulary", "special_tokens": False}
    return Faithfulness(
        correlations=tuple(
            BlankOut(method, paradigm, 3, True, None if rho is None else estimate(rho), 0, None)
            for method, rho in rhos.items()
            for paradigm in ("one", "all")
        ),
        curves=(),
        p_clean=0.5,
        left_out={},
        skipped=(),
        settings={"conventions": conventions},
    )


def knockout(rhos: Mapping[str, Sequence[float | None]]) -> KnockoutAgreement:
    return KnockoutAgreement(
        correlations=tuple(
            KnockoutCorrelation(method, paradigm, layer, None if rho is None else estimate(rho), 0, 3, True)
            for method, of_layers in rhos.items()
            for paradigm in ("one", "all")
            for layer, rho in enumerate(of_layers)
        ),
        left_out={},
        skipped=(),
        settings={"change": "signed"},
    )


def removal(p_forms: Mapping[str, float | None]) -> TokenRemoval:
    """The given p(right form) by method with half of the tokens left out, from 0.9 of whole sentences."""
    rows = tuple(
        Removed(method, paradigm, 2, True, share, share / 2, *[None if p is None else estimate(p)] * 4, undefined=0)
        for method, half in p_forms.items()
        for paradigm in ("one", "all")
        for share, p in ((0.0, 0.9), (0.5, half))
    )
    return TokenRemoval(rows, (RunTime(9, 3, 32, 0.8, 0.7, 0.9, 11),), {}, (), {"layer": 2})


def planted(ap: Mapping[str, float]) -> PlantedTruth:
    """The given average precision by method in one trap; of the method globenc there is none."""
    rows = tuple(
        Recovered("sink", "bert", "trap", 1, method, "", estimate(mean), estimate(mean)) for method, mean in ap.items()
    )
    checks = {"sink, BERT": {"accuracy": 1.0, "changed by a flow": 0.987, "changed by none": 0.012}}
    left_out = {"sink, BERT": {"globenc": "<b>no norm</b>"}}
    return PlantedTruth(rows, checks, {}, left_out, {"methods": [*ap, "globenc"], "n_inputs": 8, "seed": 0})


def reproduction(**changed: object) -> Reproduction:
    parts: dict[str, object] = {
        "metadata": {
            "model": "<img src=x onerror=hit()>",
            "fine_tuned": False,
            "sentences": "</script>{{data}}",
            "evaluated": "all",
            "evaluated_n": 50,
            "evaluated_counts": {"one": 50},
            "filters": [{"name": "read", "kept": {"one": 60}}],
            "halves": {"train": 25, "test": 25},
            "split_seed": 0,
            "seed": 0,
            "versions": {"torch": "2"},
        },
        "accuracy": estimate(0.9),
        "alignment": alignment({"value_zeroing": [0.3] * 3, "attention": [0.05] * 3, "random": [0.1] * 3}),
        "cue_check": CueCheck(
            (CueCount("one", 50, 40, 8, 2), CueCount("all", 50, 40, 8, 2)),
            (Disagreement("one-1", "one", "a <b> c", "a", "c"),),
        ),
        "mass": mass({"value_zeroing": (0.4, 0.1, 0.1, 0.2, 0.2), "attention": (0.1, 0.1, 0.6, 0.1, 0.1)}),
        "mass_with_attractor": mass({"value_zeroing": (0.4, 0.1, 0.1, 0.2, 0.2)}),
        "probing": probing([1.0, 1.1, 1.5, 2.0]),
        "probing_paper": probing([1.4, 1.5, 1.6, 2.0], "paper"),
        "links": (),
        "faithfulness": faithfulness({"value_zeroing": 0.4, "attention": 0.1}),
        "knockout": knockout({"value_zeroing": [0.4, 0.2, None], "attention": [-0.1, 0.0, 0.1]}),
        "removal": removal({"value_zeroing": 0.8, "random": 0.7}),
        "controls": Controls(
            alignment({"value_zeroing": [0.1] * 3}),
            probing([1.0, 1.0, 1.0, 1.0]),
            alignment({"value_zeroing, cosine": [0.1, 0.2, 0.3], "value_zeroing, euclidean": [0.1, 0.2, 0.3]}),
        ),
        "published_compression": (),
        "missing": {},
    }
    return Reproduction(**{**parts, **changed})  # type: ignore[arg-type]
