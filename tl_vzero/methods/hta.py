"""Hidden token attribution: how strongly a block's output at a destination varies with its input at a source."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.choices import Positions, chosen, one_of
from tl_vzero.clean import read_by
from tl_vzero.distance import wide_dtype
from tl_vzero.inputs.encoder_decoder import DecoderInputs, encode_for
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.labels import Stage
from tl_vzero.methods.apply import labelled, rows_by_sentence
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.run import NamedHook, eager_attention, quiet, remembering_hooks, run_to
from tl_vzero.models.sites import Sites, sites_of
from tl_vzero.models.turns import takes_turn
from tl_vzero.rollout import normalize_rows
from tl_vzero.scores import Scores

TOKENS_PER_BATCH = 4096  # of all copies of the sentence that share a forward pass
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
    decoder_inputs: DecoderInputs | None = None,
    stack: str | None = None,
    layers: Iterable[int] | int | None = None,
    destinations: Positions = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """Hidden token attribution: sizes of the Jacobian of a block's output by its input, `[layer, dest, src]`.

    `to="embeddings"` differentiates by what the first block reads, through all layers; such a map is not rolled out.
    With stack="cross" it is by what the encoder's last block writes, the block's own input held, or by the encoder's
    embeddings. `times_input` weighs each input feature by its value. Costs a backward pass for each feature of each
    destination.
    Source: Brunner et al. 2020, "On Identifiability in Transformers", section 5.
    """
    one_of("to", to, TO)
    sites = check_contracts(model, stack)
    picked = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    reading: Any = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "prepend_bos": prepend_bos}
    encoded = encode_for(model, sites.stack, inputs, decoder_inputs, **reading)
    rows = rows_by_sentence(encoded, destinations)
    metadata = provenance(model, sites.stack) | {
        "engine": "autograd",
        "options": {"to": to, "times_input": times_input},
    }
    scored: dict[int, Scores] = {}
    to_embeddings = to == "embeddings"
    with quiet(model):
        for sentence in encoded.sentences:
            dests = rows[sentence.row]
            sizes = jacobian_sizes(
                model, sites, sentence, picked, dests, to_embeddings=to_embeddings, times_input=times_input
            ).to(result_dtype(model))
            values = normalize_rows(sizes) if to_embeddings else sizes
            stage: Stage = "rollout" if to_embeddings else "raw"
            scored[sentence.row] = labelled("hta", values, picked, dests, sites, sentence, metadata, stage=stage)
    return encoded.in_order(scored)


def jacobian_sizes(
    model: nn.Module,
    sites: Sites,
    sentence: Sentence,
    layers: Sequence[int],
    destinations: Sequence[int],
    *,
    to_embeddings: bool,
    times_input: bool,
) -> Float[Tensor, "layer dest src"]:
    """Frobenius norms of d y_i / d x_j, i the destinations, j all sources; `times_input` weighs columns of it.

    A batch holds copies of the sentence, and each copy differentiates one feature of one destination; blocks read
    leaves of their own, so that one backward pass serves all layers (to the embeddings, one per layer).
    """
    length = len(sentence.sources)
    copies = max(1, TOKENS_PER_BATCH // max(length, len(sentence)))
    tape = _Tape(model, sites, sentence, layers, copies, to_embeddings)
    device = tape.outputs[0].device
    dest = torch.tensor(destinations, device=device)
    squares = torch.zeros(len(layers), len(dest), length, dtype=wide_dtype(device), device=device)
    for outputs in torch.arange(len(dest) * tape.n_features, device=device).split(tape.copies):
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
        sentence: Sentence,
        layers: Sequence[int],
        copies: int,
        to_embeddings: bool,
    ) -> None:
        self.copies = copies
        self._leaves: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        encoder = sites_of(model, "encoder") if sites.stack == "cross" else sites
        sources = [encoder.inputs[0] if to_embeddings else sites.inputs[layer] for layer in layers]
        by = [encoder.outputs[-1]] * len(layers) if sites.stack == "cross" and not to_embeddings else sources
        self._by_one = by is not sources or to_embeddings
        outputs = [sites.outputs[layer] for layer in layers]
        hooks: list[NamedHook] = [(name, self._leaf(name)) for name in dict.fromkeys([*by, *sources])]
        (ids, beside), last = read_by(model, [sentence] * copies), sites.outputs[max(layers)]
        hooks += remembering_hooks(outputs, self._outputs, lambda _, output: output)  # with its graph
        with torch.enable_grad(), eager_attention(model):
            run_to(model, ids, hooks, last=last, **beside)
        self.inputs = [self._leaves[name] for name in by]
        self.outputs = [self._outputs[name] for name in outputs]
        self.n_features = self.outputs[0].shape[-1]

    def _leaf(self, name: str) -> Any:
        def hook_function(activation: Tensor, *, hook: Any) -> Tensor:
            self._leaves[name] = activation.detach().clone().requires_grad_()
            return self._leaves[name]

        return hook_function

    def gradients(
        self, destinations: Int[Tensor, "copy"], features: Int[Tensor, "copy"]
    ) -> list[Float[Tensor, "copy position feature"]]:
        """Of each layer: copy n's gradient of one feature at one destination."""
        copy = torch.arange(len(destinations), device=destinations.device)
        with torch.enable_grad():
            picked = [output[copy, destinations, features].sum() for output in self.outputs]
        if self._by_one:
            gradients = [torch.autograd.grad(value, self.inputs[0], retain_graph=True)[0] for value in picked]
        else:
            gradients = list(torch.autograd.grad(picked, self.inputs, retain_graph=True))
        return [gradient[: len(destinations)] for gradient in gradients]
