"""A block's modules and weights in one layout, whatever class the model is of; absent parts are None."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.models.sites import Stack, block_parts, hf_model_of, kind_of

# A block's norm and MLP modules, as functions of rows.

_NORMS = {"norm1": "ln1", "norm1_post": "ln1_post", "norm2": "ln2", "norm2_post": "ln2_post"}
# A decoder's block that reads an encoder, from its cross-attention on, is a block as others are; `norm0` may stand
# between its two attentions.
_DECODER_NORMS = {"norm0": "ln1", "norm1": "ln2", "norm2": "ln3"}
RowFunction = Callable[[Float[Tensor, "row feature"]], Float[Tensor, "row feature"]]


@dataclass(frozen=True, eq=False)
class BlockModules:
    """The modules of a block that read one position at a time."""

    norm1: RowFunction | None = None
    norm1_post: RowFunction | None = None
    norm2: RowFunction | None = None
    norm2_post: RowFunction | None = None
    mlp: RowFunction | None = None
    norm0: RowFunction | None = None


def block_modules(model: nn.Module, layer: int, stack: Stack | None = None) -> BlockModules:
    """Find a block's modules by the names that TransformerLens gives them."""
    parts = block_parts(model, layer, stack)

    def norm(name: str) -> RowFunction | None:
        module = getattr(parts.block, name, None)
        return _on_rows(module) if callable(module) else None

    norms = {field: norm(name) for field, name in norm_names(stack).items()}
    return BlockModules(**norms, mlp=_mlp(getattr(parts.block, "mlp", None)))


def norm_names(stack: Stack | None) -> dict[str, str]:
    """What TransformerLens calls the norms of a block, by their fields here."""
    return _NORMS if stack in (None, "encoder") else _DECODER_NORMS


def _mlp(mlp: Any) -> RowFunction | None:
    if not callable(mlp):
        return None
    if getattr(mlp, "name", "") is None:
        # A bridge without a module of its own for the MLP: two linear maps on the layer, the first with its activation.
        first, second = getattr(mlp.original_component, "intermediate", None), getattr(mlp, "out", None)
        return _on_rows(lambda rows: second(first(rows))) if callable(first) and callable(second) else None
    return _on_rows(mlp)


def _on_rows(module: Callable[[Tensor], Any]) -> RowFunction:
    """A module called on rows as on one long sentence; of several results the first is what it writes."""

    def function(rows: Tensor) -> Tensor:
        written = module(rows.unsqueeze(0))
        first: Tensor = written[0] if isinstance(written, tuple) else written
        return first.reshape(rows.shape)

    return function


# How a block forms its values from what its attention reads.

ValueWeights = tuple[Float[Tensor, "value_head feature d_head"], Float[Tensor, "value_head d_head"]]


def value_weights(model: nn.Module, layer: int, dtype: torch.dtype, stack: Stack | None = None) -> ValueWeights | None:
    """W_V and b_V, the latter 0 where there is none; None where they cannot be read in TransformerLens's layout."""
    attention = block_parts(model, layer, stack).attention
    weight, bias = weight_view(attention, "W_V"), weight_view(attention, "b_V")
    if weight is None or weight.ndim != 3:
        return None
    shape = (weight.shape[0], weight.shape[2])
    if bias is None:
        return weight.to(dtype), torch.zeros(shape, dtype=dtype, device=weight.device)
    if bias.numel() != shape[0] * shape[1]:
        return None
    return weight.to(dtype), bias.to(dtype).reshape(shape)


Activation = Callable[[Tensor], Tensor]

# How far a block's output, computed from its weights, may be from what the block writes (root mean square, relative).
SAME_BLOCK = {torch.float64: 5e-7, torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}

ROWS_IN_CACHE = 256  # of an MLP's width: so many stay in a processor's cache between the steps of an activation
TWICE_ROOT = 2.0 * math.sqrt(2.0 / math.pi)  # tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm, or RMSNorm where not `centred`."""

    weight: Float[Tensor, "feature"]
    bias: Float[Tensor, "feature"] | None
    eps: float
    centred: bool

    def centre(self, z: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows feature"]:
        """Subtract the mean over features; RMSNorm does not."""
        return z - z.mean(dim=-1, keepdim=True) if self.centred else z

    def deviation(self, centred: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows"]:
        """What the norm divides by, of rows that are centred already."""
        return (centred.square().mean(dim=-1) + self.eps).sqrt()

    def __call__(self, z: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows feature"]:
        centred = self.centre(z)
        scaled = self.weight * (centred / self.deviation(centred).unsqueeze(-1))
        return scaled if self.bias is None else scaled + self.bias


@dataclass(frozen=True, eq=False)
class OtherAttention:
    """Of a decoder's two attentions the one whose values are not zeroed: how it forms queries, and what it writes."""

    w_q: Float[Tensor, "head feature d_head"]
    b_q: Float[Tensor, "head d_head"]
    w_o: Float[Tensor, "head d_head feature"]
    b_o: Float[Tensor, "feature"]


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """What the closed form needs of a block, in the dtype it computes in.

    `w_o` is of the attention whose values are zeroed; the norms of a decoder's block are those from `other`, or it, on:
    `norm0` is what may stand between its attentions.
    """

    w_o: Float[Tensor, "head d_head feature"]
    b_o: Float[Tensor, "feature"]
    w_in: Float[Tensor, "feature d_mlp"] | None
    b_in: Float[Tensor, "d_mlp"] | None
    w_gate: Float[Tensor, "feature d_mlp"] | None
    b_gate: Float[Tensor, "d_mlp"] | None
    w_out: Float[Tensor, "d_mlp feature"] | None
    b_out: Float[Tensor, "feature"] | None
    activation: Activation | None
    norm1: Norm | None
    norm2: Norm | None
    norm1_post: Norm | None = None
    norm2_post: Norm | None = None
    norm0: Norm | None = None
    other: OtherAttention | None = None


def _gelu_tanh(x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return cast(Tensor, torch.ops.aten.gelu_(x, approximate="tanh"))
    # 0.5 (1 + tanh(z)) is sigmoid(2z), and x sigmoid(s x) is silu(s x) / s: of these torch's silu is the fast one.
    constant = x.new_tensor(TWICE_ROOT)
    for rows in x.split(ROWS_IN_CACHE):
        slope = torch.addcmul(constant, rows, rows, value=TWICE_ROOT * 0.044715)
        F.silu(rows.mul_(slope), inplace=True).div_(slope)
    return x


# Each may overwrite its argument. gelu_new and its kin are one function, the tanh form.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: F.silu(x.mul_(1.702), inplace=True).div_(1.702),
    "relu": torch.relu_,
    "silu": lambda x: F.silu(x, inplace=True),
    "swish": lambda x: F.silu(x, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, inplace=True),
    "relu2": lambda x: torch.relu_(x).square_(),
    "tanh": torch.tanh_,
    "solu": lambda x: x * x.softmax(dim=-1),
}


def block_weights(model: nn.Module, layer: int, dtype: torch.dtype, stack: Stack | None = None) -> BlockWeights | None:
    """Read a block's weights afresh, so that an edited weight is never missed; None where parts are unlike.

    `value` is the value hook of the attention meant, where a model has several stacks. Whether the weights explain the
    block is for the closed form to check against what the block does.
    """
    inside = block_parts(model, layer, stack)
    block, mlp = inside.block, getattr(inside.block, "mlp", None)
    writes = _writes(inside.attention, dtype)
    if writes is None:
        return None
    w_o, b_o = writes
    parts: dict[str, Any] = {name.lower(): _tensor(mlp, name, dtype, 2) for name in ("W_in", "W_gate", "W_out")}
    if not _is_one_mlp(w_o.shape[-1], **parts):
        parts = dict.fromkeys(parts)
    parts |= {name: _tensor(mlp, name, dtype) for name in ("b_in", "b_gate", "b_out")}
    parts |= {field: norm_of(model, block, name, dtype) for field, name in norm_names(stack).items()}
    if kind_of(model) == "HookedTransformer" and parts["w_gate"] is not None and parts["b_in"] is not None:
        # Its gated MLP adds b_in after the gate, so that it is a part of what the MLP writes of itself.
        written = parts["b_in"] @ parts["w_out"]
        parts |= {"b_in": None, "b_out": written if parts["b_out"] is None else written + parts["b_out"]}
    return BlockWeights(
        w_o=w_o,
        b_o=b_o,
        activation=ACTIVATIONS.get(_activation_name(model)),
        other=None if inside.other is None else _other(inside.other, dtype),
        **parts,
    )


def _writes(attention: object, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """W_O and b_O, the latter 0 where there is none; None where they cannot be read in TransformerLens's layout."""
    w_o, b_o = _tensor(attention, "W_O", dtype, 3), _tensor(attention, "b_O", dtype)
    if w_o is None:
        return None
    return w_o, w_o.new_zeros(w_o.shape[-1]) if b_o is None else b_o


def _other(attention: object, dtype: torch.dtype) -> OtherAttention | None:
    w_q, b_q, writes = _tensor(attention, "W_Q", dtype, 3), _tensor(attention, "b_Q", dtype), _writes(attention, dtype)
    if w_q is None or writes is None:
        return None
    shape = w_q.shape[0], w_q.shape[2]
    return OtherAttention(w_q, w_q.new_zeros(shape) if b_q is None else b_q.reshape(shape), *writes)


def _activation_name(model: nn.Module) -> str:
    # TransformerLens takes a gated T5's for relu.
    config = getattr(hf_model_of(model), "config", None)
    return str(getattr(config, "dense_act_fn", None) or getattr(model.cfg, "act_fn", None))


def _is_one_mlp(feature: int, w_in: Tensor | None, w_gate: Tensor | None, w_out: Tensor | None) -> bool:
    """Whether what W_in and the gate give is what W_out reads: not where a W_in holds the gate too."""
    if w_in is None or w_out is None:
        return False
    d_mlp = w_out.shape[0]
    return w_out.shape[1] == feature and all(w.shape == (feature, d_mlp) for w in (w_in, w_gate) if w is not None)


def weight_view(module: object, name: str) -> Tensor | None:
    """A weight in TransformerLens's layout; None where a module lacks it or it cannot be read so."""
    try:
        weight = getattr(module, name, None)
    except Exception:  # a bridge refuses what is not there, odd weights, heads of several sizes: in errors of its own
        return None
    return weight.detach() if isinstance(weight, Tensor) else None


def _tensor(module: object, name: str, dtype: torch.dtype, n_dims: int | None = None) -> Tensor | None:
    """A weight in a dtype; None also for one of another number of dimensions."""
    weight = weight_view(module, name)
    return None if weight is None or n_dims not in (None, weight.ndim) else weight.to(dtype)


def norm_of(model: nn.Module, parent: object, name: str, dtype: torch.dtype) -> Norm | None:
    """The norm of that name on a block or a model; None where there is none with a weight.

    Whether it does what the module does is for the caller to check.
    """
    module = getattr(parent, name, None)
    weight = _tensor(module, "w", dtype)
    if weight is None:
        return None
    config: Any = model.cfg
    # Gemma stores its norm weights minus 1.
    offset = 1.0 if getattr(config, "rmsnorm_uses_offset", False) else 0.0
    bias = _tensor(module, "b", dtype)
    named = f"{getattr(config, 'normalization_type', '')} {type(module).__name__}"
    is_rms = getattr(config, "uses_rms_norm", False) or "RMS" in named
    return Norm(weight + offset, bias, float(config.eps), centred=not is_rms)
