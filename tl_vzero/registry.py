"""The methods, described once: whoever lists, labels, compares or runs a method reads its entry here.

An entry names its function by address and loads it when the method runs: reading the table imports nothing heavy.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tl_vzero.errors import MethodNameWarning, ModelError, PluginError

if TYPE_CHECKING:
    from torch import nn

    from tl_vzero.inputs.media import Signals
    from tl_vzero.inputs.text import Text
    from tl_vzero.scores import Scores

Need = Literal["clean run", "weights", "gradients", "target", "trained head", "captum"]
Function = Callable[..., Any] | str  # or its address, "package.module:name"

SIGNED = "its scores have signs and are no shares: name it to have them, with the option size=True for their sizes"


def resolved(function: Function) -> Callable[..., Any]:
    """A function, imported where it is an address."""
    return resolve_name(function) if isinstance(function, str) else function


@dataclass(frozen=True)
class LayerMaps:
    """The functions of a method that reads its maps off one layer of the clean run (`tl_vzero.methods.layer.Layer`).

    `maps` turns a Layer into the raw map `[sentence, dest, src]`, `heads` into every head's `[sentence, head, dest,
    src]`, and `rows` into those of some destinations, where they cost less than the whole. `through` follows the maps
    of all layers, `[layer, position, position]`, to some destinations, `[layer, dest, position]`. `cut` says that they
    also read a Layer that holds some destinations alone, as that of a long input does: its row i is not position i, and
    `Layer.itself` says where each destination stands among the sources.
    """

    maps: Function
    heads: Function | None = None
    rows: Function | None = None
    through: Function | None = None
    cut: bool = False


@dataclass(frozen=True)
class Method:
    """A context-mixing method: call it like `value_zeroing`; `reference` is its paper, `label` its name in pictures.

    `function` is called like `value_zeroing`, or is LayerMaps. `needs` is what the method reads: one that reads the
    clean run takes `cache=` and is part of a comparison without being named, one that reads a target takes `target=`
    and `target_ids=`. `identity` is its rollout rule: whether half of each token stays where it is. `signed` scores
    are no shares: the method takes `size=True` to leave signs out. `slow` says why an evaluation leaves it out unless
    it is named. Where the cost grows fast, `compared_up_to` and `reported_up_to` are the longest sentences, in tokens,
    of which a comparison and a report have it unnamed; 0 for none. `refused_stacks` says of an encoder-decoder's stack
    why the method is undefined for it.
    """

    function: Function | LayerMaps
    summary: str
    reference: str
    defined_for: str
    needs: tuple[Need, ...] = ()
    label: str = ""
    identity: bool = False
    signed: bool = False
    slow: str = ""
    compared_up_to: int | None = None
    reported_up_to: int | None = None
    refused_stacks: Mapping[str, str] = field(default_factory=dict, hash=False)
    name: str = ""  # the key in METHODS

    def __call__(self, model: "nn.Module", inputs: "Text | Signals", **options: Any) -> "Scores | list[Scores]":
        """The scores of the inputs, in the shape that every method shares."""
        from tl_vzero.models.turns import takes_turn

        stack = options.get("stack")
        if isinstance(stack, str) and self.refusal(stack):
            raise ModelError(self.refusal(stack))
        if self.layer is not None:
            options["method"] = self
        scores: Scores | list[Scores] = takes_turn(self._called)(model, inputs, **options)
        return scores

    @property
    def unasked(self) -> str:
        """Why an evaluation leaves it out unless it is named or has options of its own, or ""."""
        return self.slow or (SIGNED if self.signed else "")

    def refusal(self, stack: str | None) -> str:
        """What is said where the method is undefined for a stack of an encoder-decoder, or ""."""
        reason = self.refused_stacks.get(str(stack))
        return f"{self.name} is undefined for stack={stack!r}: {reason}" if reason else ""

    @cached_property
    def _called(self) -> Callable[..., Any]:
        if isinstance(self.function, LayerMaps):
            return resolved("tl_vzero.methods.apply:layer_scores")
        return resolved(self.function)

    @property
    def layer(self) -> LayerMaps | None:
        """Its functions of one layer, of a method that may share each layer of a run with others."""
        return self.function if isinstance(self.function, LayerMaps) else None

    @property
    def options(self) -> tuple[str, ...] | None:
        """The names of the options it takes, of LayerMaps its own alone; None where its function takes any."""
        if self.layer is not None:
            return tuple(signature(resolved(self.layer.maps)).parameters)[1:]
        try:
            parameters = signature(self._called).parameters
        except (TypeError, ValueError):  # a function of C may have no signature
            return None
        if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return None
        return tuple(parameters)[2:]


# Methods of other packages, by entry point.

GROUP = "tl_vzero.methods"


class Methods(Mapping[str, Method]):
    """The package's own methods, then those of installed packages, by name.

    An entry point names a `Method`, or a function that is called like `value_zeroing`. Entry points are read at first
    use, and a package is imported when its method is taken. A name that is taken already stays with who has it, and
    a MethodNameWarning says so.
    """

    def __init__(self, built_in: Mapping[str, Method]) -> None:
        self._built_in = dict(built_in)
        self._loaded: dict[str, Method] = {}

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=GROUP):
            if point.name in self._built_in or point.name in points:
                holder = _package_of(points[point.name]) if point.name in points else "tl_vzero"
                warnings.warn(
                    f"the package {_package_of(point)} brings a method {point.name!r}, a name that {holder} has: it is "
                    f"left out; rename it in the entry points ({GROUP}) of {_package_of(point)}",
                    MethodNameWarning,
                    stacklevel=2,
                )
            else:
                points[point.name] = point
        return points

    def __getitem__(self, name: str) -> Method:
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._loaded:
            self._loaded[name] = replace(_method_at(self._points[name]), name=name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from self._points

    def __len__(self) -> int:
        return len(self._built_in) + len(self._points)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._built_in or name in self._points)


def _package_of(point: EntryPoint) -> str:
    return point.value if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _method_at(point: EntryPoint) -> Method:
    """A package's method; one that cannot be loaded says so when it is used, so that the others still work."""
    package = _package_of(point)
    try:
        method = point.load()
    except Exception as error:
        return _unusable(point, f"{point.value} cannot be loaded ({type(error).__name__}: {error})", error)
    if isinstance(method, Method):
        return method
    if not callable(method):
        return _unusable(point, f"{point.value} is {type(method).__name__}: expected a Method or a function", None)
    summary = (method.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return Method(method, summary or "no description", f"the package {package}", "what its package says")


def _unusable(point: EntryPoint, reason: str, cause: Exception | None) -> Method:
    package = _package_of(point)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise PluginError(
            f"the method {point.name!r} of the package {package} cannot be used: {reason}; update or uninstall the "
            "package"
        ) from cause

    return Method(refuse, f"cannot be used: {reason}", f"the package {package}", "nothing")


# The table.

ANY = "any block with an attention pattern"
SUMS = "blocks that add attention's output to the residual stream as it is"
POST_NORM = "blocks that end in a norm (BERT and its kin)"
LOGIT_SUMS = (
    "models whose logits, of words or classes, are sums of what blocks write, through a last norm (GPT-2, Llama)"
)
UNGATED = "blocks that end in a norm (BERT and its kin), or begin with norms and have no gated MLP (GPT-2)"
HEADED = "a differentiable model with a trained head"

JOINS_TWO = {
    "cross": "it follows maps from layer to layer, and a cross map joins two sequences; take attention itself, and "
    "joint_rollout for both stacks"
}
SUMMED_IN_ONE = {"encoder": "an encoder predicts no words"} | dict.fromkeys(
    ("decoder", "cross"), "logits are followed through models with one stack of blocks so far"
)

PATTERN: tuple[Need, ...] = ("clean run",)
VECTORS: tuple[Need, ...] = ("clean run", "weights")
TARGETED: tuple[Need, ...] = ("gradients", "target", "trained head", "captum")

_ENTRIES = {
    "value_zeroing": Method(
        "tl_vzero.api:value_zeroing",
        "distance of each block output when one source's value is zeroed, or replaced by the baseline",
        "Mohebbi et al. 2023",
        "any block with values to zero",
        PATTERN,
        label="Value Zeroing",
    ),
    "random": Method(
        LayerMaps("tl_vzero.methods.attention:random"),
        "uniform random scores, what a method must beat",
        "none",
        ANY,
        PATTERN,
        reported_up_to=0,  # a picture of chance says nothing
    ),
    "attention": Method(
        LayerMaps("tl_vzero.methods.attention:attention", heads="tl_vzero.methods.attention:attention_heads", cut=True),
        "attention pattern, averaged over heads",
        "Vaswani et al. 2017",
        ANY,
        PATTERN,
        label="Raw attention",
        identity=True,
    ),
    "attention_rollout": Method(
        LayerMaps("tl_vzero.methods.attention:attention", through="tl_vzero.methods.attention:attention_rollout"),
        "attention multiplied through the layers",
        "Abnar & Zuidema 2020",
        ANY,
        PATTERN,
        identity=True,
        refused_stacks=JOINS_TWO,
    ),
    "attention_flow": Method(
        LayerMaps("tl_vzero.methods.attention:attention", through="tl_vzero.methods.attention:attention_flow"),
        "largest flow through attention to the input",
        "Abnar & Zuidema 2020",
        ANY,
        PATTERN,
        identity=True,
        compared_up_to=32,  # a flow problem for each pair of tokens, each on a graph of all tokens
        reported_up_to=0,
        refused_stacks=JOINS_TWO,
    ),
    "attention_norm": Method(
        LayerMaps(
            "tl_vzero.methods.norms:attention_norm", heads="tl_vzero.methods.norms:attention_norm_heads", cut=True
        ),
        "size of what attention brings from a source",
        "Kobayashi et al. 2020",
        ANY,
        VECTORS,
        identity=True,
    ),
    "attention_norm_res": Method(
        LayerMaps("tl_vzero.methods.norms:attention_norm_res", cut=True),
        "size of what attention and the residual connection bring",
        "Kobayashi et al. 2021",
        SUMS,
        VECTORS,
        label="Attention norm, residual",
    ),
    "attention_norm_res_ln": Method(
        LayerMaps("tl_vzero.methods.norms:attention_norm_res_ln", cut=True),
        "size of what a source brings through the first norm",
        "Kobayashi et al. 2021",
        POST_NORM,
        VECTORS,
        label="Attention norm, residual, LN",
    ),
    "globenc": Method(
        LayerMaps("tl_vzero.methods.norms:globenc", cut=True),
        "size of what a source brings through both norms",
        "Modarressi et al. 2022",
        POST_NORM,
        VECTORS,
        label="GlobEnc",
    ),
    "alti": Method(
        LayerMaps("tl_vzero.methods.norms:alti", cut=True),
        "how much nearer a source brings the sum, in the 1-norm",
        "Ferrando et al. 2022",
        SUMS,
        VECTORS,
        label="ALTI",
    ),
    "information_flow": Method(
        LayerMaps(
            "tl_vzero.methods.norms:information_flow",
            heads="tl_vzero.methods.norms:information_flow_heads",
            rows="tl_vzero.methods.norms:information_flow_rows",
            cut=True,
        ),
        "how much nearer each head's part of a source brings the sum",
        "Ferrando & Voita 2024",
        SUMS,
        VECTORS,
    ),
    "contribution_weights": Method(
        LayerMaps(
            "tl_vzero.methods.norms:contribution_weights",
            heads="tl_vzero.methods.norms:contribution_weights_heads",
            cut=True,
        ),
        "how far a source's part goes along attention's output, signed",
        "Cunningham & Muca Cirone 2026",
        ANY,
        VECTORS,
        identity=True,
        signed=True,
        reported_up_to=0,
    ),
    "decompx": Method(
        "tl_vzero.methods.decompx:decompx",
        "size of a source's vector in the decomposed block output",
        "Modarressi et al. 2023",
        UNGATED,
        VECTORS,
        label="DecompX",
        reported_up_to=64,  # two products of the MLP's size for each pair of tokens
    ),
    "decompx_logit": Method(
        "tl_vzero.methods.logits:decompx_logit",
        "a source's part of the target's logit, through all blocks from a layer on and the head, signed",
        "Modarressi et al. 2023",
        UNGATED,
        ("weights", "target", "trained head"),
        label="DecompX of the logit",
        signed=True,
        refused_stacks=SUMMED_IN_ONE,
    ),
    "logit_contributions": Method(
        "tl_vzero.methods.logits:logit_contributions",
        "what attention adds to the target's logit from a source, signed",
        "Ferrando et al. 2023",
        LOGIT_SUMS,
        ("weights", "target", "trained head"),
        signed=True,
        refused_stacks=SUMMED_IN_ONE,
    ),
    "alti_logit": Method(
        "tl_vzero.methods.logits:alti_logit",
        "the same followed to the input tokens by ALTI's rollout, signed",
        "Ferrando et al. 2023",
        LOGIT_SUMS,
        ("weights", "target", "trained head"),
        label="ALTI-Logit",
        signed=True,
        refused_stacks=SUMMED_IN_ONE,
    ),
    "hta": Method(
        "tl_vzero.methods.hta:hta",
        "size of the Jacobian of a block's output by its input",
        "Brunner et al. 2020",
        "any differentiable block",
        ("gradients",),
        label="HTA",
        slow="it costs a backward pass for each feature of each target: name it among methods to have it",
    ),
    "gradient_x_input": Method(
        "tl_vzero.methods.gradients:gradient_x_input",
        "gradient of the target's logit by a block's output, times that output",
        "Shrikumar et al. 2016",
        HEADED,
        TARGETED,
        label="Gradient × input",
    ),
    "integrated_gradients": Method(
        "tl_vzero.methods.gradients:integrated_gradients",
        "the same gradient integrated from a baseline to the block's output",
        "Sundararajan et al. 2017",
        HEADED,
        TARGETED,
        label="Integrated gradients",
        slow="it costs passes of 50 copies of the sentence and more a layer: name it to have it",
    ),
    "deep_lift": Method(
        "tl_vzero.methods.gradients:deep_lift",
        "the rescale rule at activations Captum knows, gradients elsewhere",
        "Shrikumar et al. 2017",
        HEADED,
        TARGETED,
        label="DeepLIFT",
        slow="it costs twice what gradient_x_input does, and equals it in models without ReLU and its kin: name it",
    ),
}
BUILT_IN: Mapping[str, Method] = MappingProxyType(
    {
        name: replace(method, name=name, label=method.label or name.replace("_", " ").capitalize())
        for name, method in _ENTRIES.items()
    }
)
METHODS: Mapping[str, Method] = Methods(BUILT_IN)


def label_of(method: str) -> str:
    """A method's registered name as people write it.

    >>> label_of("alti"), label_of("my_own_method"), label_of("alti (hat) - alti (hats)")
    ('ALTI', 'My own method', 'ALTI (hat) minus ALTI (hats)')
    """
    # A difference has two, and behind a name in brackets what it is of.
    parts = (side.partition(" (") for side in method.split(" - "))
    return " minus ".join(
        (BUILT_IN[n].label if n in BUILT_IN else n.replace("_", " ").capitalize()) + bracket + of
        for n, bracket, of in parts
    )
