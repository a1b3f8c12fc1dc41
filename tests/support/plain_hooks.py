"""Value Zeroing by its definition, in float64, on a plain Hugging Face model. Nothing here comes from tl_vzero.

For each layer, one run of the whole model on as many copies of the sentence as there are sources: in each copy a torch
forward hook on the module that computes this layer's values zeroes one source's; its block's output is compared with
the one of a clean run. Only that one layer is touched, so its block reads its clean input.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What stands in for a layer's values, [position, column], given the layer and the clean values of the heads zeroed.
Baseline = Callable[[int, Tensor], Tensor]

# The columns of the projection's output that are values, [value head, column]; None where all are, head by head.
Columns = Callable[[Any], Tensor]


class StaysWide(TorchFunctionMode):
    """Within, whoever asks for float32 gets float64: Hugging Face's norms and softmax fall back to float32."""

    def __enter__(self) -> Any:
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(torch.float32)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            return args[0].double()
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*wide, **named)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; numbers index a list of modules."""
    return model.get_submodule(path)


def cosine_distance(clean: Tensor, changed: Tensor) -> Tensor:
    """1 - cos as half the squared distance of the unit vectors, which does not cancel."""
    unit = clean / clean.norm(dim=-1, keepdim=True)
    return 0.5 * (unit - changed / changed.norm(dim=-1, keepdim=True)).square().sum(-1)


def first_tensor(output: Any) -> Tensor:
    """What a module computes, where it returns more beside it."""
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def _outputs_recorded(blocks: Sequence[nn.Module], outputs: list[Tensor]) -> Iterator[None]:
    with ExitStack() as hooks:
        for block in blocks:
            handle = block.register_forward_hook(lambda module, inputs, output: outputs.append(first_tensor(output)))
            hooks.callback(handle.remove)
        yield


@contextmanager
def _values_zeroed(
    projection: nn.Module,
    copies: Sequence[Sequence[int]],
    columns: Tensor | None,
    baseline: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Within, each copy of the sentence in a batch has the values of some positions of its own zeroed."""

    def zero(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        chosen = torch.arange(output.shape[-1]) if columns is None else columns
        output = output.clone()
        rows = output.flatten(1, -2)  # a view: of a latent for all heads there is an axis of length one between
        put_in = baseline(rows[0][:, chosen])
        for copy_rows, positions in zip(rows, copies, strict=True):
            for position in positions:
                copy_rows[position, chosen] = put_in[position]
        return output

    handle = projection.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def wide_copy(hf_model: nn.Module) -> Any:
    """A copy in float64, with an attention that knows every architecture's masks and caps, and plain experts."""
    wide = copy.deepcopy(hf_model).double().eval()
    wide.set_attn_implementation("eager")
    wide.set_experts_implementation("eager")  # the grouped product of a mixture of experts has no float64
    return wide


@torch.no_grad()
def plain_value_zeroing(
    hf_model: nn.Module,
    ids: Sequence[int],
    *,
    blocks: str,
    value: str,
    columns: Columns | None = None,
    heads: Sequence[int] | None = None,
    spans: Sequence[Sequence[int]] | None = None,
    run: Callable[[Any, Tensor], object] | None = None,
    baseline: Baseline = lambda layer, values: torch.zeros_like(values),
) -> Tensor:
    """Raw maps `[layer, dest, src]` in float64; a column is of one source, or of a span of them.

    `blocks` is the path to the list of blocks, `value` the path within a block to the module that computes values,
    `heads` the value heads that are zeroed (default: all), `run` what calls the model on the ids, one copy at a time.
    """
    wide = wide_copy(hf_model)
    layers = list(module_at(wide, blocks))  # type: ignore[call-overload]
    inputs = torch.tensor([list(ids)])
    call = run or (lambda model, ids: model(input_ids=ids))
    chosen = _chosen_columns(wide.config, columns, heads)

    def outputs(inputs: Tensor) -> list[Tensor]:
        recorded: list[Tensor] = []
        with StaysWide(), _outputs_recorded(layers, recorded):
            call(wide, inputs)
        assert len(recorded) == len(layers) and all(output.dtype == torch.float64 for output in recorded)
        return recorded

    zeroed = [list(span) for span in spans or [[source] for source in range(len(ids))]]
    batches = [zeroed] if run is None else [[span] for span in zeroed]
    clean, maps = outputs(inputs), []
    for layer, block in enumerate(layers):
        columns_of_map = []
        for batch in batches:
            with _values_zeroed(module_at(block, value), batch, chosen, partial(baseline, layer)):
                changed = outputs(inputs.expand(len(batch), -1))[layer]
            columns_of_map.append(cosine_distance(clean[layer], changed))
        maps.append(torch.cat(columns_of_map).T)
    return torch.stack(maps)


def _chosen_columns(config: Any, columns: Columns | None, heads: Sequence[int] | None) -> Tensor | None:
    if columns is None and heads is None:
        return None
    by_head = value_columns(config) if columns is None else columns(config)
    return (by_head if heads is None else by_head[list(heads)]).flatten()


def value_columns(config: Any) -> Tensor:
    """The columns of a projection that computes nothing but values, head after head."""
    count, d_head = value_heads(config), head_width(config)
    return torch.arange(count * d_head).view(count, d_head)


def value_heads(config: Any) -> int:
    """How many value heads a configuration asks for."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def head_width(config: Any) -> int:
    """The number of features of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
