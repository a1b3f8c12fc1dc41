"""Which methods are to run, and with which options: checked before any work, the same for all who run several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import Position, one_of, positions_in
from tl_vzero.errors import InputError, InputTypeError, ModelError, PluginError, shown, unknown_name
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.inputs.encoder_decoder import as_given
from tl_vzero.inputs.text import Sentence, padded
from tl_vzero.methods.layer import Layer
from tl_vzero.models.sites import Stack
from tl_vzero.registry import METHODS, LayerMaps, Method, resolved
from tl_vzero.scores import Scores

OF_ALL_METHODS = "attention_mask cache layers prepend_bos progress target target_ids token_type_ids".split()
OTHER_AXES = ["per_head", "spans"]


@dataclass(frozen=True)
class Planned:
    """A method with what it is called with; one that was not `named` is left out where it is undefined."""

    method: Method
    options: Mapping[str, Any] = field(default_factory=dict)
    named: bool = True
    per_head: bool = False
    destinations: tuple[Position, ...] | None = None

    @property
    def name(self) -> str:
        """The method's name in METHODS."""
        return self.method.name

    @property
    def layer(self) -> LayerMaps | None:
        """The functions of a method that reads a layer by itself."""
        return self.method.layer

    def rows_in(self, sentence: Sentence) -> tuple[int, ...]:
        """The destinations of a sentence; raises InputError for positions outside it."""
        return positions_in(sentence.tokens, "destinations", self.destinations)

    def layers_read(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """The layers whose maps the chosen ones need: all below where maps are followed through them."""
        return tuple(range(max(layers) + 1)) if self.layer is not None and self.layer.through else layers

    def map_of(self, layer: Layer, rows: tuple[int, ...]) -> Float[Tensor, "sentence *head dest src"]:
        """The raw map of a layer, or with `per_head` each head's; whole where it is to be followed through layers."""
        assert self.layer is not None
        if self.per_head and self.layer.heads is not None:
            heads: Tensor = resolved(self.layer.heads)(layer, **self.options)
            return heads[..., list(rows), :]
        if self.destinations is not None and self.layer.rows is not None:
            chosen_rows: Tensor = resolved(self.layer.rows)(layer, rows, **self.options)
            return chosen_rows
        whole: Tensor = resolved(self.layer.maps)(layer, **self.options)
        return whole if self.layer.through or self.destinations is None else whole[..., list(rows), :]

    def read(self, sentences: Sequence[Sentence]) -> tuple[Tensor | list[Tensor], dict[str, Tensor]]:
        """Sentences as ids to call the method with, padded, and their mask and segments where it needs them.

        Images and sounds as they are.
        """
        if any(sentence.signal is not None for sentence in sentences):
            return [sentence.read for sentence in sentences], {}
        ids, mask, token_types = padded(sentences)
        beside = {} if bool(mask.all()) else {"attention_mask": mask}
        takes, has_segments = self.method.options, bool(token_types.any())
        if "token_type_ids" in (takes or ()) or (takes is None and has_segments):
            # Also where all are 0: that says that one segment is meant.
            beside["token_type_ids"] = token_types
        elif has_segments:
            raise InputError(
                f"the method {self.name!r} takes no token_type_ids, and a sentence has several segments: leave the "
                "method out, or give sentences of one segment"
            )
        return ids, beside

    def of_stack(self, sentences: Sequence[Sentence], stack: Stack | None) -> dict[str, Any]:
        """What the method takes beside an encoder-decoder's inputs; raises ModelError where it takes no stack."""
        if stack is None:
            return {}
        refusal = self.method.refusal(stack)
        if refusal:
            raise ModelError(refusal)
        if "stack" not in (self.method.options or ("stack",)):
            raise ModelError(f"{self.name} takes no stack, and is for models with one stack of blocks")
        if stack == "encoder" and "target" not in self.method.needs:
            return {"stack": stack}
        return {"stack": stack, "decoder_inputs": [as_given(sentence) for sentence in sentences]}

    def called(self, model: nn.Module, inputs: Any, count: int, **arguments: Any) -> list[Scores]:
        """The method's scores of several sentences, called as a user calls it."""
        scored: Any = self.method(model, inputs, **{**self.options, **arguments})
        fits = isinstance(scored, list) and len(scored) == count
        if not fits or not all(isinstance(scores, Scores) and scores.heads is None for scores in scored):
            raise PluginError(
                f"the method {self.name!r} gave {type(scored).__name__} for {count} sentences: expected a list of one "
                "Scores each, without heads"
            )
        return list(scored)

    def reason(self, error: Exception) -> str:
        """Why the method is left out; raises the error where it was named."""
        if self.named:
            raise error
        return str(error)


def plan_of(
    methods: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    registry: Mapping[str, Method] = METHODS,
) -> list[Planned]:
    """The methods in order, by default all that read the clean run; raises InputError or InputTypeError."""
    names = _checked_names(registry, methods)
    options_of = _checked_options(registry, names, options)
    # Value Zeroing is what the others are compared with: where it is undefined, there is nothing to leave it out of.
    return [
        Planned(registry[name], options_of.get(name, {}), named=methods is not None or name == "value_zeroing")
        for name in names
    ]


def with_baseline(plan: Sequence[Planned], baseline: str | Tensor | BaselineValues) -> list[Planned]:
    """The plan with a baseline for the method that replaces values, where its own options do not say another."""
    if isinstance(baseline, str) and baseline == "zero":
        return list(plan)
    named = {"baseline": baseline}
    return [
        replace(planned, options=named | dict(planned.options)) if planned.name == "value_zeroing" else planned
        for planned in plan
    ]


def _checked_names(registry: Mapping[str, Method], methods: Any) -> list[str]:
    if methods is None:
        return [name for name, method in registry.items() if "clean run" in method.needs]
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise InputTypeError(
            f"methods is {shown(methods)}: expected a list of names, such as ['value_zeroing', 'alti']"
        )
    if not methods:
        raise InputError(
            f"methods is empty: expected some of {', '.join(registry)}, or None for those of the clean run"
        )
    for name in methods:
        one_of("method", name, registry)
    repeated = sorted({name for name in methods if list(methods).count(name) > 1})
    if repeated:
        raise InputError(f"methods holds {', '.join(repeated)} more than once: expected each at most once")
    return list(methods)


def _checked_options(registry: Mapping[str, Method], names: list[str], options: Any) -> dict[str, Mapping[str, Any]]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(of_method, Mapping) for of_method in options.values()):
        raise InputTypeError(
            f"options is {options!r}: expected each method's own by its name, such as {{'hta': {{'to': 'embeddings'}}}}"
        )
    for name, of_method in options.items():
        one_of("method in options", name, names)
        takes = registry[name].options
        for option in of_method:
            if option in OF_ALL_METHODS:
                raise InputError(
                    f"options of {name} hold {option!r}: it is one for all methods; give it to compare itself"
                )
            if option in OTHER_AXES:
                raise InputError(
                    f"options of {name} hold {option!r}: expected none, as methods are compared by one map per layer; "
                    f"call score(model, inputs, {name!r}, {option}=...) for it"
                )
            if takes is not None and option not in takes:
                others = [taken for taken in takes if taken not in OF_ALL_METHODS + OTHER_AXES]
                raise unknown_name(f"option of {name}", option, others)
    return dict(options)
