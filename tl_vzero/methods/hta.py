"""Hidden token attribution: how strongly a block's output at a destination varies with its input at a source."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.choices import chosen, one_of
from tl_vzero.clean import ids_of, token_types_of
from tl_vzero.distance import wide_dtype
from tl_vzero.inputs.text import Ids, Text, encode
from tl_vzero.methods.apply import labelled, rows_by_sentence
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.run import NamedHook, eager_attention, quiet, run_to
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.rollout import normalize_rows
from tl_vzero.scores import Scores

TOKENS_A_BATCH = 4096

TO = ("layer", "embeddings")


@takes_turn
def hta(
    model: nn.Module,
    inputs: Text,
    *,
    to: str = "layer",
    times_input: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Iterable[int] | int | None = None,
    destinations: Iterable[int] | int | None = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """Hidden token attribution: sizes of the Jacobian of a block's output by its input, `[layer, dest, src]`.

    `to="embeddings"` differentiates by what the first block reads, through all layers; such a map is not rolled out.
    `times_input` weighs each input feature by its value. Costs a backward pass for each feature of each destination.
    Source: Brunner et al. 2020, "On Identifiability in Transformers", section 5.
    """
    one_of("to", to, TO)
    sites = check_contracts(model)
    picked = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode(
        model, inputs, attention_mask=attention_mask, token_type_ids=token_type_ids, prepend_bos=prepend_bos
    )
    rows = rows_by_sentence(encoded, destinations)
    metadata = provenance(model) | {"engine": "autograd", "options": {"to": to, "times_input": times_input}}
    scored: dict[int, Scores] = {}
    with quiet(model):
        for sentence in encoded.sentences:
            (ids,) = ids_of(model, [sentence])
            own = rows[sentence.row]
            sizes = jacobian_sizes(
                model,
                sites,
                ids,
                picked,
                own,
                to_embeddings=to == "embeddings",
                times_input=times_input,
                token_types=token_types_of(model, [sentence]),
            ).to(result_dtype(model))
            through = to == "embeddings"
            values = normalize_rows(sizes) if through else sizes
            scored[sentence.row] = labelled(
                "hta", values, picked, own, sites, sentence, metadata, stage="rollout" if through else "raw"
            )
    return encoded.in_order(scored)


def jacobian_sizes(
    model: nn.Module,
    sites: Sites,
    ids: Int[Tensor, "position"],
    layers: Sequence[int],
    destinations: Sequence[int],
    *,
    to_embeddings: bool,
    times_input: bool,
    token_types: Int[Tensor, "1 position"] | None = None,
) -> Float[Tensor, "layer dest src"]:
    """Frobenius norms of d y_i / d x_j: of each block by itself, or of all blocks down to the first one's input.

    i are the destinations, j all positions; `token_types` are the sentence's segments.
    With `times_input`, of the Jacobian with each column times its input feature. Source: Brunner et al. 2020.

    A batch holds copies of the sentence, and each copy differentiates one feature of one destination; blocks read
    leaves of their own, so that one backward pass serves all layers (to the embeddings, one a layer).
    """
    length = len(ids)
    tape = _Tape(
        model,
        sites,
        ids,
        layers,
        copies=max(1, TOKENS_A_BATCH // length),
        to_embeddings=to_embeddings,
        token_types=token_types,
    )
    dest = torch.tensor(destinations, device=ids.device)
    squares = torch.zeros(len(layers), len(dest), length, dtype=wide_dtype(ids.device), device=ids.device)
    for outputs in torch.arange(len(dest) * tape.n_features, device=ids.device).split(tape.copies):
        rows, features = outputs // tape.n_features, outputs % tape.n_features
        for index, gradient in enumerate(tape.gradients(dest[rows], features)):
            weighed = gradient * tape.inputs[index][: len(outputs)].detach() if times_input else gradient
            sizes = weighed.to(squares.dtype).square().sum(dim=-1)
            squares[index].index_add_(0, rows, sizes)
    return squares.sqrt()


class _Tape:
    """One forward pass of copies of a sentence with the inputs to differentiate by and the outputs to differentiate."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        ids: Tensor,
        layers: Sequence[int],
        *,
        copies: int,
        to_embeddings: bool,
        token_types: Tensor | None,
    ) -> None:
        self.copies, self.to_embeddings = copies, to_embeddings
        self._leaves: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        sources = [sites.inputs[0] if to_embeddings else sites.inputs[layer] for layer in layers]
        outputs = [sites.outputs[layer] for layer in layers]
        hooks: list[NamedHook] = [(name, self._leaf(name)) for name in dict.fromkeys(sources)]
        hooks += [(name, self._keep(name)) for name in outputs]
        with torch.enable_grad(), eager_attention(model):
            run_to(
                model,
                ids.expand(copies, -1),
                hooks,
                last=sites.outputs[max(layers)],
                token_types=None if token_types is None else token_types.expand(copies, -1),
            )
        self.inputs = [self._leaves[name] for name in sources]
        self.outputs = [self._outputs[name] for name in outputs]
        self.n_features = self.outputs[0].shape[-1]

    def _leaf(self, name: str) -> Any:
        def hook_function(activation: Tensor, *, hook: Any) -> Tensor:
            self._leaves[name] = activation.detach().clone().requires_grad_()
            return self._leaves[name]

        return hook_function

    def _keep(self, name: str) -> Any:
        def hook_function(activation: Tensor, *, hook: Any) -> None:
            self._outputs[name] = activation

        return hook_function

    def gradients(
        self, destinations: Int[Tensor, "copy"], features: Int[Tensor, "copy"]
    ) -> list[Float[Tensor, "copy position feature"]]:
        """Of each layer: copy n's gradient of one feature at one destination."""
        copy = torch.arange(len(destinations), device=destinations.device)
        with torch.enable_grad():
            picked = [output[copy, destinations, features].sum() for output in self.outputs]
        if self.to_embeddings:
            gradients = [torch.autograd.grad(each, self.inputs[0], retain_graph=True)[0] for each in picked]
        else:
            gradients = list(torch.autograd.grad(picked, self.inputs, retain_graph=True))
        return [gradient[: len(destinations)] for gradient in gradients]
