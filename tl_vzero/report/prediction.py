"""The patching panel in words: what is predicted, which effects there are, and what belongs to each."""

from collections.abc import Sequence
from html import escape

from tl_vzero.effects import Effect, PatchingEffect, attribution_error
from tl_vzero.plot.labels import visible
from tl_vzero.plot.maps import EFFECT_NAMES
from tl_vzero.report.packed import SHOWN_DIGITS
from tl_vzero.report.result import EFFECTS, Report

EFFECT_TEXTS = {
    "zero_ablation": (
        "Zeroing the same values in the running model",
        "Orange: the measured value falls when this source's value vector is zeroed in this layer, so the source "
        "supported the prediction; violet: it rises.",
    ),
    "attribution_patching": (
        "Zeroing the same values, estimated by one backward pass",
        "The measured value is taken as linear in each value vector. Orange: the source supported the prediction; "
        "violet: it spoke against it.",
    ),
    "value_patching": (
        "Patching this sentence's values into the corrupted one",
        "The corrupted sentence runs with one value vector taken from this sentence. Violet: the measured value rises; "
        "orange: it falls.",
    ),
}


def token_html(token: str) -> str:
    """A token as text of the page, whatever it holds and whichever way it is written."""
    return f"<bdi>{escape(visible(token))}</bdi>"


def prediction(report: Report) -> str:
    """The likeliest tokens and what is measured; without a prediction, why there is none."""
    effect = report.effects.get("zero_ablation")
    if effect is None:
        reason = report.missing.get("zero_ablation", "none was measured")
        return f'<p class="notice">No prediction is shown: {escape(reason)}.</p>'
    chips = "\n".join(
        f'<li><span class="word">{token_html(token)}</span> <data value="{p}">{_number(p)}</data></li>'
        for token, p in effect.predicted
    )
    place = f"{token_html(report.value_zeroing.dest_tokens[effect.target])} at position {effect.target}"
    return (
        f'<div class="prediction"><p>Predicted for {place}, with probability:</p><ul>{chips}</ul>'
        f"<p>Measured: {escape(visible(effect.metric))}, {_number(effect.clean)} in the clean run.</p>"
        f"{_chooser(report)}</div>"
    )


def _chooser(report: Report) -> str:
    """The effects to choose from, those that are not there switched off."""
    first = next(name for name in EFFECTS if name in report.effects)
    choices = "\n".join(_choice(name, checked=name == first, off=name not in report.effects) for name in EFFECTS)
    return f'<div class="choice effects" role="radiogroup" aria-label="Effect">{choices}</div>'


def _choice(name: str, *, checked: bool, off: bool) -> str:
    state = " checked" if checked else " disabled" if off else ""
    radio = f'<input type="radio" name="effect" form="controls" value="{name}"{state}>'
    return f"<label>{radio}<span>{EFFECT_NAMES[name]}</span></label>"


def effect_texts(report: Report) -> dict[str, str]:
    """Title, reading and what else belongs to each effect, of which the page shows one; and why others are missing."""
    titles = {name: escape(EFFECT_TEXTS[name][0]) for name in report.effects}
    readings = {name: escape(EFFECT_TEXTS[name][1]) for name in report.effects}
    others = {name: _belonging(report, effect) for name, effect in report.effects.items()}
    missing = "".join(
        f'<p class="how">No {EFFECT_NAMES[name]}: {escape(reason)}.</p>' for name, reason in report.missing.items()
    )
    return {
        "effects_missing": missing,
        "effect_titles": _one_shown("span", titles),
        "effect_readings": _one_shown("span", readings),
        "effect_others": _one_shown("div", others),
    }


def _one_shown(tag: str, by_effect: dict[str, str]) -> str:
    return "".join(f'<{tag} data-effect="{name}" hidden>{html}</{tag}>' for name, html in by_effect.items())


def _belonging(report: Report, effect: Effect) -> str:
    if isinstance(effect, PatchingEffect):
        return _sentence_pair(effect)
    if effect.method == "attribution_patching":
        return _errors(effect, report.effects["zero_ablation"])
    return ""


def _sentence_pair(effect: PatchingEffect) -> str:
    """Both sentences token by token, marked where they differ."""
    ours, theirs = effect.src_tokens, effect.corrupted_tokens
    rows = (("This sentence", ours, theirs, effect.clean), ("Corrupted", theirs, ours, effect.corrupted))
    lines = "".join(
        f"<div><dt>{name}</dt><dd>{_tokens(own, other)}</dd>"
        f"<dd>{escape(visible(effect.metric))}: {_number(metric)}</dd></div>"
        for name, own, other, metric in rows
    )
    return f'<dl class="sentences">{lines}</dl>'


def _tokens(own: Sequence[str], other: Sequence[str]) -> str:
    shown = (
        token_html(token) if token == against else f"<mark>{token_html(token)}</mark>"
        for token, against in zip(own, other, strict=True)
    )
    return " ".join(shown)


def _errors(estimate: Effect, exact: Effect) -> str:
    lines = "".join(
        f'<tr><th scope="row">layer {row["layer"]}</th><td>{_number(row["max_abs"])}</td>'
        f"<td>{_percent(row['relative_rms'])}</td><td>{_rank(row['spearman'])}</td></tr>"
        for row in attribution_error(estimate, exact).to_dict("records")
    )
    return (
        '<div class="scroll"><table><caption>Its error against zero ablation</caption><thead><tr><th scope="col">layer'
        '</th><th scope="col">largest</th><th scope="col">RMS, share of the effect&#39;s</th>'
        f'<th scope="col">rank correlation</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _number(value: float) -> str:
    return f"{value:.{SHOWN_DIGITS}g}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value == value else "–"


def _rank(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"
