"""Probing the target's representation for its grammatical number, layer by layer."""

from torch import nn

from tl_vzero.evaluate.laid_out import Layout
from tl_vzero.evaluate.probing import ModeName, ProbingResult, probe_layers
from tl_vzero.evaluate.representations import layer_numbers, number_labels, representations, with_number


def probe_number(
    model: nn.Module, layout: Layout, *, mode: ModeName = "correct", seed: int = 0, progress: bool = False
) -> ProbingResult:
    """Compression of singular or plural by each layer's representation at the target; layer -1 is the embeddings.

    Examples that show no number are left out: the result's `n` counts the others. Raises InputError as `probe_layers`
    and `with_number` do, and leaves the model as it was.
    Source: Mohebbi et al. 2023, section 6.

    >>> import tl_vzero
    >>> from tl_vzero.data.embedded import agreement_examples
    >>> from tl_vzero.evaluate.laid_out import lay_out
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> found = probe_number(model, lay_out(model, agreement_examples()[:200]))
    >>> found.compression[-1] > found.compression[0]
    True
    """
    numbered = with_number(layout)
    read = representations(model, numbered, progress=progress)
    return probe_layers(
        read,
        number_labels(numbered.examples),
        mode=mode,
        layers=layer_numbers(read.shape[1] - 1),
        seed=seed,
        progress=progress,
    )
