"""The page of an encoder-decoder: what it reads and what it writes, three maps, the rollout through both stacks, and
step by step what each written token draws on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.api import joint_rollout, score
from tl_vzero.choices import at_least_one
from tl_vzero.difference import HASHED
from tl_vzero.effects.measure import likeliest, token_name
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError, ScoresError
from tl_vzero.files import to_plain
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.inputs.encoder_decoder import DecoderInputs, encode_for
from tl_vzero.inputs.text import Pair, Sentence, encode, is_pair, warned_before
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import context_length, decoder_start, facts_of
from tl_vzero.models.run import quiet, run_word_logits
from tl_vzero.models.sites import hf_model_of, stacks_of
from tl_vzero.models.turns import takes_turn
from tl_vzero.plot.export import SHARED
from tl_vzero.plot.maps import layer_frame, map_frame, source_axis
from tl_vzero.plot.pages import SHOWN_DIGITS, rendered
from tl_vzero.plot.parts import SQUARE, VALUE_NAMES, hover_box, hover_labels, short, texts_of, visible
from tl_vzero.plot.theme import DARK, LIGHT
from tl_vzero.registry import BUILT_IN, METHODS, SIGNED, label_of
from tl_vzero.report.figures import ALWAYS_DRAWN, NUMBERS_DRAWN, decimal_codes, frame, pack, packed_plotly, theme_data
from tl_vzero.report.page import page_script
from tl_vzero.rollout import normalize_rows
from tl_vzero.scores import Scores
from tl_vzero.targets import check_predicts_words

if TYPE_CHECKING:
    import pandas as pd

ALWAYS = ("value_zeroing", "attention")
ROOM = "its maps of sentences this long have no room on the page: name fewer methods"
SCRIPTS = "numbers choices figures shades".split()
Json = dict[str, Any]


@takes_turn
def generate(model: nn.Module, text: str | Pair, *, max_tokens: int = 48) -> Int[Tensor, "position"]:
    """What an encoder-decoder writes for a text, greedily: at each step the likeliest token.

    Returns ids as `decoder_inputs` takes them: the token that starts the decoder, then what was written, without the
    token that ends it; at most `max_tokens` are written. The configuration's forced first token and its forbidden
    tokens are heeded, beams and penalties are not, so that `transformers` may write something else.
    Raises InputError for a model that is no encoder-decoder or names no token to start with, HeadlessModelError for one
    that predicts no words.

    >>> import tl_vzero
    >>> from tl_vzero.report import generate
    >>> generate(tl_vzero.load_model("agreement-mini"), "the hat [MASK] old.")
    Traceback (most recent call last):
    tl_vzero.errors.InputError: the model is no encoder-decoder: it writes no second sentence
    """
    if not stacks_of(model):
        raise InputError("the model is no encoder-decoder: it writes no second sentence")
    most = at_least_one("max_tokens", max_tokens, "how many tokens are written at most")
    check_predicts_words(model)
    start = decoder_start(model)
    if start is None:
        raise InputError(
            "the model's configuration names no token that starts its decoder (decoder_start_token_id): expected "
            "decoder_inputs, ids with the starting token first"
        )
    sentence = _one(encode(model, text).sentences)
    ends, first, forbidden = _ends(model), _setting(model, "forced_bos_token_id"), _forbidden(model)
    limit = context_length(model)
    written = [start]
    check_contracts(model, "decoder")
    with quiet(model):
        while len(written) <= most and (limit is None or len(written) < limit):
            logits = _logits(model, sentence, torch.tensor(written, device=sentence.ids.device))[-1]
            logits[forbidden] = -torch.inf
            token = int(logits.argmax()) if first is None or len(written) > 1 else int(first)
            if token in ends:
                break
            written.append(token)
    return torch.tensor(written)


def _logits(model: nn.Module, sentence: Sentence, ids: Tensor) -> Float[Tensor, "position vocabulary"]:
    decoder_ids = ids.unsqueeze(0).to(sentence.ids.device)
    return run_word_logits(model, sentence.ids.unsqueeze(0), [], None, decoder_ids)[0].clone()


def _setting(model: nn.Module, name: str) -> Any:
    """What the configuration of generation says, else that of the model; None where neither does."""
    inside = hf_model_of(model)
    configs = [model.cfg] if inside is None else [getattr(inside, "generation_config", None), inside.config]
    return next((value for one in configs if (value := getattr(one, name, None)) is not None), None)


def _ends(model: nn.Module) -> set[int]:
    ends = _setting(model, "eos_token_id")
    ends = getattr(facts_of(model).tokenizer, "eos_token_id", None) if ends is None else ends
    return set() if ends is None else set(ends) if isinstance(ends, list | tuple) else {int(ends)}


def _forbidden(model: nn.Module) -> list[int]:
    """Tokens that are never written, such as the padding with which Marian starts."""
    return [words[0] for words in _setting(model, "bad_words_ids") or () if len(words) == 1]


@dataclass(frozen=True, eq=False)
class StackMaps:
    """The raw maps of one method: of the encoder, of the decoder, and of the decoder on the encoder."""

    encoder: Scores
    decoder: Scores
    cross: Scores

    @cached_property
    def joint(self) -> Scores:
        """The rollout through both stacks, of `joint_rollout`."""
        return joint_rollout(self.encoder, self.decoder, self.cross)

    @cached_property
    def shares(self) -> Float[Tensor, "layer dest both"]:
        """Decoder and cross map side by side, a row of both divided by its one sum."""
        return normalize_rows(torch.cat([self.decoder.values, self.cross.values], dim=-1))


@dataclass(frozen=True)
class Step:
    """What the decoder writes at a position: a token, its probability, and the likeliest ones.

    The token is the one that it reads next; at the last position it is the likeliest, as nothing is read after it.
    Without a head that predicts words there is no probability.
    """

    token: str | None
    probability: float | None = None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Translation:
    """Everything that the page of an encoder-decoder shows about one pair of sentences.

    `methods` are by name, Value Zeroing first; `left_out` says of the others why. A step of `steps` is a position of
    the decoder. `no_prediction` is why nothing is predicted, or "".
    """

    model: str
    text: str
    methods: Mapping[str, StackMaps]
    left_out: Mapping[str, str]
    steps: tuple[Step, ...]
    no_prediction: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def encoder_tokens(self) -> tuple[str, ...]:
        """What the encoder reads."""
        return self.methods["value_zeroing"].cross.src_tokens

    @property
    def decoder_tokens(self) -> tuple[str, ...]:
        """What the decoder reads."""
        return self.methods["value_zeroing"].cross.dest_tokens

    def to_frame(self) -> "pd.DataFrame":
        """What each step draws on, one row per method, layer, step and source: its share, and that of the rollout."""
        import pandas as pd

        sources = [("decoder", i, token) for i, token in enumerate(self.decoder_tokens)]
        sources += [("encoder", i, token) for i, token in enumerate(self.encoder_tokens)]
        tables = []
        for name, maps in self.methods.items():
            axes = [maps.decoder.layers, maps.decoder.dest_positions, range(len(sources))]
            table = pd.MultiIndex.from_product(axes, names=["layer", "step", "src"]).to_frame(index=False)
            table.insert(0, "method", name)
            table["writes"] = [self.steps[step].token for step in table["step"]]
            columns = [sources[source] for source in table.pop("src")]
            table["stack"], table["src"], table["src_token"] = map(list, zip(*columns, strict=True))
            table["share"] = maps.shares.flatten().cpu().numpy()
            table["joint_rollout"] = maps.joint.values.flatten().cpu().numpy()
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def to_dict(self) -> Json:
        """Every number of the page as plain JSON types; by method the raw maps, the shares and the joint rollout."""
        plain = {
            "format": "tl_vzero.translation",
            "format_version": 1,
            "model": self.model,
            "text": self.text,
            "encoder_tokens": self.encoder_tokens,
            "decoder_tokens": self.decoder_tokens,
            "steps": [vars(step) for step in self.steps],
            "no_prediction": self.no_prediction,
            "methods": {
                name: {
                    **{stack: getattr(maps, stack).values.tolist() for stack in ("encoder", "decoder", "cross")},
                    "shares": maps.shares.tolist(),
                    "joint_rollout": maps.joint.values.tolist(),
                    "identity": maps.decoder.identity,
                }
                for name, maps in self.methods.items()
            },
            "left_out": self.left_out,
            "metadata": self.metadata,
        }
        numbers: Json = to_plain(plain)
        return numbers

    def to_html(self, *, shared_plotly: bool = False) -> str:
        """One HTML page that works offline from a file: with plotly.js in it, or shared, as plotly.min.js beside it."""
        return _rendered(self, shared_plotly)


@takes_turn
def make_translation(
    model: nn.Module,
    text: str | Pair,
    decoder_inputs: DecoderInputs,
    *,
    methods: Sequence[str] | None = None,
    baseline: str | Tensor | BaselineValues = "zero",
    progress: bool = False,
) -> Translation:
    """Compute the page of an encoder-decoder; `make_report(decoder_inputs=)` says what its arguments are."""
    if not isinstance(text, str) and not is_pair(text):
        raise InputTypeError(f"text is {type(text).__name__}: a report is on one sentence, a string, or a pair (a, b)")
    if not isinstance(baseline, str):
        raise InputTypeError("baseline holds vectors, and they are of one stack: expected zero or mean for all three")
    named = () if methods is None else tuple(methods)
    for name in named:
        if name not in METHODS or METHODS[name].signed:
            score(model, text, name)  # raises for what is no method
            raise InputError(f"a report shows shares, and {name}'s scores have signs: use score for it")
    sentence = _one(encode_for(model, "decoder", text, decoder_inputs).sentences)
    computed: dict[str, StackMaps] = {}
    left_out: dict[str, str] = {}
    quick = [name for name, method in BUILT_IN.items() if method.reported_up_to != 0 and "clean run" in method.needs]
    with warned_before():
        for name in dict.fromkeys((*ALWAYS[:1], *(named or quick), *ALWAYS[1:])):
            options = {"baseline": baseline, "progress": progress} if name == "value_zeroing" else {}
            if METHODS[name].signed:
                left_out[name] = SIGNED
                continue
            try:
                computed[name] = _maps(model, text, name, decoder_inputs, options)
            except (InputError, ModelError, ScoresError) as error:
                if name in (*named, *ALWAYS):
                    raise
                left_out[name] = str(error)
        steps, no_prediction = _steps(model, sentence)
    metadata = dict(computed["value_zeroing"].cross.metadata)
    assert sentence.encoder is not None
    return Translation(
        model=str(metadata.get("model", type(model).__name__)),
        text=str(sentence.encoder.text),
        methods=computed,
        left_out=left_out,
        steps=steps,
        no_prediction=no_prediction,
        metadata=metadata,
    )


def _one(sentences: Sequence[Sentence]) -> Sentence:
    if len(sentences) != 1:
        raise InputError(f"{len(sentences)} sentences given: expected one, a string or a pair (a, b)")
    return sentences[0]


def _maps(model: nn.Module, text: str | Pair, method: str, decoder_inputs: DecoderInputs, options: Json) -> StackMaps:
    def of(stack: str) -> Scores:
        read = {} if stack == "encoder" else {"decoder_inputs": decoder_inputs}
        scores = score(model, text, method, stack=stack, **read, **options)
        assert isinstance(scores, Scores)
        return scores

    # Cross first, as it is what most methods are undefined for; `joint` is computed here so that it raises here.
    maps = StackMaps(cross=of("cross"), encoder=of("encoder"), decoder=of("decoder"))
    _ = maps.joint
    return maps


def _steps(model: nn.Module, sentence: Sentence) -> tuple[tuple[Step, ...], str]:
    """What is written at each position of the decoder, and why nothing is predicted, or ""."""
    following = [*sentence.ids.tolist()[1:], None]
    written = [*texts_of(sentence.tokens)[1:], None]
    try:
        check_predicts_words(model)
    except HeadlessModelError as error:
        return tuple(Step(token) for token in written), str(error)
    assert sentence.encoder is not None
    with quiet(model):
        logits = _logits(model, sentence.encoder, sentence.ids)
    steps = []
    for row, token_id, token in zip(logits, following, written, strict=True):
        token_id = int(row.argmax()) if token_id is None else token_id
        probability = row.cpu().double().softmax(dim=-1)[token_id].item()
        steps.append(Step(token or visible(token_name(model, token_id)), probability, likeliest(model, row)))
    return tuple(steps), ""


# The page.


def _rendered(translation: Translation, shared_plotly: bool) -> str:
    """Tokens and names are text wherever they appear, never markup; numbers have the 4 digits that are shown."""
    drawn, absent = _drawn(translation)
    first = translation.methods["value_zeroing"]
    return rendered(
        "report/translation.html",
        title=f"{short(visible(translation.text), 60)} · {translation.model} · tl_vzero",
        translation=translation,
        n_layers=(len(first.encoder.layers), len(first.decoder.layers)),
        baseline=first.decoder.baseline.partition(HASHED)[0],
        notes=list(dict.fromkeys(note for maps in (first.encoder, first.cross) for note in _notes(maps))),
        absent={label_of(name): reason for name, reason in absent.items()},
        summary=_summary(translation),
        data=_page_data(translation, drawn),
        maps=pack(decimal_codes([values for maps in drawn.values() for values in _numbers(maps)])),
        scripts=[SHARED] if shared_plotly else [],
        packed_plotly=None if shared_plotly else packed_plotly(),
        program=page_script("translation", SCRIPTS),
    )


def _notes(scores: Scores) -> Sequence[str]:
    return [str(note) for note in scores.metadata.get("warnings", ())]


def _numbers(maps: StackMaps) -> tuple[Tensor, Tensor, Tensor]:
    return maps.encoder.normalized().values, maps.shares, maps.joint.values


def _drawn(translation: Translation) -> tuple[dict[str, StackMaps], dict[str, str]]:
    """The methods that the page has room for, the first ones in any case, and why each of the others is not there."""
    drawn: dict[str, StackMaps] = {}
    absent, room = dict(translation.left_out), NUMBERS_DRAWN
    for name in sorted(translation.methods, key=lambda name: name not in ALWAYS):
        size = sum(values.numel() for values in _numbers(translation.methods[name]))
        if len(drawn) >= ALWAYS_DRAWN - 1 and size > room:
            absent[name] = ROOM
            continue
        room -= size
        drawn[name] = translation.methods[name]
    return drawn, absent


def _page_data(translation: Translation, drawn: Mapping[str, StackMaps]) -> Json:
    first = translation.methods["value_zeroing"]
    layers, joint = first.decoder.layers, first.joint
    figures = {"encoder": first.encoder, "decoder": first.decoder, "cross": first.cross, "joint": joint}
    return {
        "layers": layers,
        "encoderLayers": first.encoder.layers,
        "read": _sentence(first.encoder),
        "written": _sentence(first.decoder),
        "steps": [
            vars(step)
            | {"likeliest": [[visible(token), float(f"{p:.{SHOWN_DIGITS}g}")] for token, p in step.likeliest]}
            for step in translation.steps
        ],
        "methods": [
            {
                "name": name,
                "label": maps.decoder.label,
                "identity": maps.decoder.identity,
                "about": f"{METHODS[name].summary} ({METHODS[name].reference})",
            }
            for name, maps in drawn.items()
        ],
        "figures": {name: _stretched(frame(map_frame(scores)), name) for name, scores in figures.items()},
        "hover": {
            stack: [f"{label} of the {stack}" for label in _hover(getattr(first, stack))]
            for stack in ("encoder", "decoder")
        },
        "step": frame(layer_frame(layers, source_axis(joint))),
        "scaleNames": {"layer": VALUE_NAMES["normalized"], "rollout": VALUE_NAMES["rollout"]},
        "hoverBox": hover_box("@"),
        "themes": {theme.name: theme_data(theme) for theme in (LIGHT, DARK)},
    }


def _stretched(figure: Json, name: str) -> Json:
    """A frame whose cells need not be square where rows and columns are not as many."""
    if name in ("cross", "joint"):
        for axis, keys in (("xaxis", ("constrain", "constraintoward")), ("yaxis", SQUARE.keys() - {"autorange"})):
            figure["layout"][axis] = {key: of for key, of in figure["layout"][axis].items() if key not in keys}
    return figure


def _hover(scores: Scores) -> list[str]:
    return hover_labels(scores.dest_tokens, scores.dest_positions, scores.unit, scores.unknown_dests)


def _sentence(scores: Scores) -> Json:
    """The tokens of a sentence, which of them continue a word, and which are unknown."""
    words = scores.word_ids or (None,) * scores.n_positions
    joins = [at > 0 and word is not None and word == words[at - 1] for at, word in enumerate(words)]
    return {"names": texts_of(scores.dest_tokens), "joins": joins, "unknown": scores.unknown_dests}


def _summary(translation: Translation) -> list[Json]:
    """One line per step, of the joint rollout at the last layer: what comes from the encoder, and most from where."""
    joint = translation.methods["value_zeroing"].joint
    names = {
        stack: (first, texts_of(tokens))
        for stack, first, tokens in (
            ("encoder", joint.metadata["encoder_from"], translation.encoder_tokens),
            ("decoder", 0, translation.decoder_tokens),
        )
    }
    lines = []
    for step, row in zip(translation.steps, joint.values[-1].cpu().double(), strict=True):
        line: Json = {"token": step.token}
        for stack, (first, tokens) in names.items():
            part = row[first : first + len(tokens)]
            line[stack] = (part.sum().item(), tokens[int(part.argmax())], part.max().item())
        lines.append(line)
    return lines
