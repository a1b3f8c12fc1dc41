"""What a comparison is to compute, checked before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tl_vzero.errors import InputError, InputTypeError, shown, unknown_name
from tl_vzero.inputs import Sentence, padded
from tl_vzero.methods.method import Method

BY_COMPARE = ("attention_mask", "cache", "layers", "prepend_bos", "progress", "target", "target_ids", "token_type_ids")
OTHER_AXES = ("per_head", "spans")


@dataclass(frozen=True)
class Planned:
    """A method with its own options; one that was not named is left out where it is undefined."""

    name: str
    method: Method
    named: bool
    options: Mapping[str, Any]

    def read(self, sentences: Sequence[Sentence]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sentences as ids to call the method with, padded, and their mask and segments where it needs them.

        Raises InputError for segments that another package's method does not take.
        """
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


def plan_of(
    known: Mapping[str, Method], methods: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> list[Planned]:
    """The methods in order, by default all that read the clean run; raises InputError or InputTypeError."""
    names = _named(known, methods)
    own = _checked_options(known, names, options)
    # Value Zeroing is what the others are compared with: where it is undefined, there is nothing to leave it out of.
    return [
        Planned(name, known[name], methods is not None or name == "value_zeroing", own.get(name, {})) for name in names
    ]


def _named(known: Mapping[str, Method], methods: Any) -> list[str]:
    if methods is None:
        return [name for name, method in known.items() if "clean run" in method.needs]
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise InputTypeError(
            f"methods is {shown(methods)}: expected a list of names, such as ['value_zeroing', 'alti']"
        )
    if not methods:
        raise InputError(f"methods is empty: expected some of {', '.join(known)}, or None for those of the clean run")
    for name in methods:
        if name not in known:
            raise unknown_name("method", name, known)
    repeated = sorted({name for name in methods if list(methods).count(name) > 1})
    if repeated:
        raise InputError(f"methods holds {', '.join(repeated)} more than once: expected each at most once")
    return list(methods)


def _checked_options(known: Mapping[str, Method], names: list[str], options: Any) -> dict[str, Mapping[str, Any]]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(own, Mapping) for own in options.values()):
        raise InputTypeError(
            f"options is {options!r}: expected each method's own by its name, such as {{'hta': {{'to': 'embeddings'}}}}"
        )
    for name, own in options.items():
        if name not in names:
            raise unknown_name("method in options", name, names)
        for option in own:
            _check_option(name, known[name], option)
    return dict(options)


def _check_option(name: str, method: Method, option: str) -> None:
    if option in BY_COMPARE:
        raise InputError(f"options of {name} hold {option!r}: it is one for all methods; give it to compare itself")
    if option in OTHER_AXES:
        raise InputError(
            f"options of {name} hold {option!r}: expected none, as methods are compared by one map a layer; call "
            f"score(model, inputs, {name!r}, {option}=...) for it"
        )
    takes = method.options
    if takes is not None and option not in takes:
        raise unknown_name(f"option of {name}", option, [each for each in takes if each not in BY_COMPARE + OTHER_AXES])
