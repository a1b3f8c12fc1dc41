"""The methods that read their maps off the clean run, layer by layer: one line each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from tl_vzero.methods.attention import attention, attention_flow, attention_heads, attention_rollout
from tl_vzero.methods.chance import random
from tl_vzero.methods.decomposition import (
    alti,
    attention_norm,
    attention_norm_heads,
    attention_norm_res,
    attention_norm_res_ln,
    globenc,
)
from tl_vzero.methods.layer import Layer

ANY = "any block with an attention pattern"
SUMS = "blocks that add attention's output to the residual stream as it is"
POST_NORM = "blocks that end in a norm (BERT and its kin)"


@dataclass(frozen=True)
class LayerMethod:
    """A method: `maps` gives a Layer's raw map, `heads` each head's. `through` follows maps through the layers.

    `identity` is its rollout rule: whether half of each token stays where it is.
    """

    maps: Callable[..., Tensor]
    summary: str
    reference: str
    defined_for: str
    identity: bool = False
    heads: Callable[[Layer], Tensor] | None = None
    through: Callable[[Tensor], Tensor] | None = None


RANDOM = LayerMethod(random, "uniform random scores, what a method must beat", "none", ANY)

LAYER_METHODS: Mapping[str, LayerMethod] = MappingProxyType(
    {
        "attention": LayerMethod(
            attention, "attention pattern, averaged over heads", "Vaswani et al. 2017", ANY, True, attention_heads
        ),
        "attention_rollout": LayerMethod(
            attention, "attention multiplied through the layers", "Abnar & Zuidema 2020", ANY, through=attention_rollout
        ),
        "attention_flow": LayerMethod(
            attention,
            "largest flow through attention to the input",
            "Abnar & Zuidema 2020",
            ANY,
            through=attention_flow,
        ),
        "attention_norm": LayerMethod(
            attention_norm,
            "size of what attention brings from a source",
            "Kobayashi et al. 2020",
            ANY,
            True,
            attention_norm_heads,
        ),
        "attention_norm_res": LayerMethod(
            attention_norm_res,
            "size of what attention and the residual connection bring",
            "Kobayashi et al. 2021",
            SUMS,
        ),
        "attention_norm_res_ln": LayerMethod(
            attention_norm_res_ln,
            "size of what a source brings through the first norm",
            "Kobayashi et al. 2021",
            POST_NORM,
        ),
        "globenc": LayerMethod(
            globenc, "size of what a source brings through both norms", "Modarressi et al. 2022", POST_NORM
        ),
        "alti": LayerMethod(
            alti, "how much nearer a source brings the sum, in the 1-norm", "Ferrando et al. 2022", SUMS
        ),
    }
)
