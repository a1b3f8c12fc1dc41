"""What TransformerLens's own adapters leave out, mended in the models that `load_model` reads (3.9.0, 4.3.0).

A bridge of the user's own stays as it is, and is refused.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion


def mend(adapter: Any, hf_model: Any, folder: str) -> None:
    """Let an adapter read a model, before it puts modules in; `folder` is where it may look for code."""
    config = hf_model.config
    adapter.prepare_loading(folder, {"config": config})
    if type(hf_model).__name__ == "FalconForCausalLM" and config.new_decoder_architecture:
        _mend_falcon(adapter, config)
    if type(hf_model).__name__ == "OpenAIGPTLMHeadModel":
        for block in hf_model.transformer.h:
            block.__class__ = _returning_tuples(type(block))


def _returning_tuples(block_class: Any) -> Any:
    """OpenAI GPT's blocks return lists, and in those a bridge looks for no hidden states."""

    class ReturnsTuple(block_class):  # type: ignore[misc]
        def forward(self, *arguments: Any, **options: Any) -> tuple[Any, ...]:
            return tuple(super().forward(*arguments, **options))

    return ReturnsTuple


# Falcon's new decoder (40B, 180B, Falcon 2): some query heads, their key and their value, then the next such group.


def _mend_falcon(adapter: Any, config: Any) -> None:
    """Take its fused projection apart group by group: the adapter takes it for one key and value of all heads."""
    adapter.cfg.n_key_value_heads = config.num_kv_heads
    parts = adapter.component_mapping["blocks"].submodules
    if config.num_ln_in_parallel_attn == 1:
        parts["ln1"].name = "input_layernorm"

    def split(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        fused = attention.query_key_value
        groups = config.num_kv_heads
        rows = fused.weight.detach().unflatten(0, (groups, -1, attention.head_dim))
        biases = None if fused.bias is None else fused.bias.detach().unflatten(0, (groups, -1, attention.head_dim))
        return (
            _linear(rows[:, :-2], None if biases is None else biases[:, :-2]),
            _linear(rows[:, -2], None if biases is None else biases[:, -2]),
            _linear(rows[:, -1], None if biases is None else biases[:, -1]),
        )

    parts["attn"].split_qkv_matrix = split


def _linear(rows: Float[Tensor, "*heads d_head feature"], biases: Float[Tensor, "*heads d_head"] | None) -> nn.Linear:
    """A linear map of some of a fused map's rows."""
    weight = rows.reshape(-1, rows.shape[-1])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=biases is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if biases is not None:
        linear.bias = nn.Parameter(biases.reshape(-1))
    return linear


# Multi-head latent attention (DeepSeek V2, V3 and kin): its hooks have their heads before their positions.


class _PositionsFirst(BaseTensorConversion):
    """Shows hooks [batch, position, head, d_head] what an attention holds as [batch, head, position, d_head]."""

    def handle_conversion(self, input_value: Tensor, *_: Any) -> Float[Tensor, "batch position head d_head"]:
        """As hooks see it."""
        return input_value.transpose(1, 2)

    def revert(self, input_value: Float[Tensor, "batch position head d_head"], *_: Any) -> Tensor:
        """As the attention holds it."""
        return input_value.transpose(1, 2)


class _HeadsApart(BaseTensorConversion):
    """Shows hooks [batch, position, head, d_head] what an attention holds with its heads side by side."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self._n_heads = n_heads

    def handle_conversion(self, input_value: Tensor, *_: Any) -> Float[Tensor, "batch position head d_head"]:
        """As hooks see it."""
        apart: Tensor = input_value.unflatten(-1, (self._n_heads, -1))
        return apart

    def revert(self, input_value: Float[Tensor, "batch position head d_head"], *_: Any) -> Tensor:
        """As the attention holds it."""
        return input_value.flatten(2)


def put_positions_first(bridge: nn.Module) -> None:
    """Give multi-head latent attention the axes that every other attention's hooks have.

    Its value is what the latent of keys and values is made into for each head. Zeroing it leaves the latent, and with
    it the keys, as they were.
    """
    for block in getattr(bridge, "blocks", ()):
        attention: Any = getattr(block, "attn", None)
        if not hasattr(attention, "hook_kv_latent"):
            continue
        for hook in (attention.hook_q, attention.hook_k, attention.hook_v):
            hook.hook_conversion, hook.pos_dim = _PositionsFirst(), None
        attention.o.hook_in.hook_conversion = _HeadsApart(attention.original_component.num_heads)
