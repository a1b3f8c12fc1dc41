"""The methods beside Value Zeroing: one entry each."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from tl_vzero.methods.apply import layer_scores
from tl_vzero.methods.attention import attention, attention_flow, attention_heads, attention_rollout, random
from tl_vzero.methods.decompx import LAYER_BY_LAYER, decompx
from tl_vzero.methods.gradients import deep_lift, gradient_x_input, integrated_gradients
from tl_vzero.methods.hta import hta
from tl_vzero.methods.method import VECTORS, LayerMethod, Method, Need
from tl_vzero.methods.norms import (
    alti,
    attention_norm,
    attention_norm_heads,
    attention_norm_res,
    attention_norm_res_ln,
    globenc,
)

ANY = "any block with an attention pattern"
SUMS = "blocks that add attention's output to the residual stream as it is"
POST_NORM = "blocks that end in a norm (BERT and its kin)"
HEADED = "a differentiable model with a trained head"

TARGETED: tuple[Need, ...] = ("gradients", "target", "trained head", "captum")

LAYER_METHODS: Mapping[str, LayerMethod] = MappingProxyType(
    {
        "random": LayerMethod(random, "uniform random scores, what a method must beat", "none", ANY),
        "attention": LayerMethod(
            attention,
            "attention pattern, averaged over heads",
            "Vaswani et al. 2017",
            ANY,
            identity=True,
            heads=attention_heads,
        ),
        "attention_rollout": LayerMethod(
            attention,
            "attention multiplied through the layers",
            "Abnar & Zuidema 2020",
            ANY,
            identity=True,
            through=attention_rollout,
        ),
        "attention_flow": LayerMethod(
            attention,
            "largest flow through attention to the input",
            "Abnar & Zuidema 2020",
            ANY,
            identity=True,
            compared_up_to=32,  # a flow problem for each pair of tokens, each on a graph of all tokens
            through=attention_flow,
        ),
        "attention_norm": LayerMethod(
            attention_norm,
            "size of what attention brings from a source",
            "Kobayashi et al. 2020",
            ANY,
            VECTORS,
            identity=True,
            heads=attention_norm_heads,
        ),
        "attention_norm_res": LayerMethod(
            attention_norm_res,
            "size of what attention and the residual connection bring",
            "Kobayashi et al. 2021",
            SUMS,
            VECTORS,
        ),
        "attention_norm_res_ln": LayerMethod(
            attention_norm_res_ln,
            "size of what a source brings through the first norm",
            "Kobayashi et al. 2021",
            POST_NORM,
            VECTORS,
        ),
        "globenc": LayerMethod(
            globenc,
            "size of what a source brings through both norms",
            "Modarressi et al. 2022",
            POST_NORM,
            VECTORS,
        ),
        "alti": LayerMethod(
            alti,
            "how much nearer a source brings the sum, in the 1-norm",
            "Ferrando et al. 2022",
            SUMS,
            VECTORS,
        ),
    }
)


def _of_layers(name: str, method: LayerMethod) -> Method:
    return Method(
        partial(layer_scores, name, method),
        method.summary,
        method.reference,
        method.defined_for,
        method.needs,
        method.compared_up_to,
        layer=method,
    )


OTHER_METHODS: Mapping[str, Method] = MappingProxyType(
    {
        **{name: _of_layers(name, method) for name, method in LAYER_METHODS.items()},
        "decompx": Method(
            decompx,
            LAYER_BY_LAYER.summary,
            LAYER_BY_LAYER.reference,
            LAYER_BY_LAYER.defined_for,
            LAYER_BY_LAYER.needs,
        ),
        "hta": Method(
            hta,
            "size of the Jacobian of a block's output by its input",
            "Brunner et al. 2020",
            "any differentiable block",
            ("gradients",),
        ),
        "gradient_x_input": Method(
            gradient_x_input,
            "gradient of the target's logit by a block's output, times that output",
            "Shrikumar et al. 2016",
            HEADED,
            TARGETED,
        ),
        "integrated_gradients": Method(
            integrated_gradients,
            "the same gradient integrated from a baseline to the block's output",
            "Sundararajan et al. 2017",
            HEADED,
            TARGETED,
        ),
        "deep_lift": Method(
            deep_lift,
            "the rescale rule at activations Captum knows, gradients elsewhere",
            "Shrikumar et al. 2017",
            HEADED,
            TARGETED,
        ),
    }
)
