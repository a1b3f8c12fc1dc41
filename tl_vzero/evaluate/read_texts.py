"""The sentences of an evaluation as text that the model reads, for `tl-vzero corpus`."""

from typing import Any

from torch import nn

from tl_vzero.data.sentence_text import write_words
from tl_vzero.errors import InputError, TLVZeroError
from tl_vzero.evaluate.laid_out import LaidOut, Layout
from tl_vzero.inputs import encode, warned_before
from tl_vzero.models.facts import facts_of


def read_texts(model: nn.Module, layout: Layout) -> list[str]:
    """The text of each example of a layout: with its target masked, or under the causal protocol what comes before it.

    Raises InputError where a text by itself gives other tokens than the example: the corpus of it would be another.

    >>> import tl_vzero
    >>> from tl_vzero.data.embedded import agreement_examples
    >>> from tl_vzero.evaluate.laid_out import lay_out
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> read_texts(model, lay_out(model, agreement_examples()[2:3]))
    ['her professor [MASK] praising the polite lawyer.']
    """
    tokenizer = facts_of(model).tokenizer
    texts = [_text_of(each, tokenizer) for each in layout.examples]
    differing = [
        each.example.id
        for each, text in zip(layout.examples, texts, strict=True)
        if _ids(model, text) != each.pieces.ids.tolist()
    ]
    if differing:
        raise InputError(
            f"the text of {len(differing)} of {len(texts)} examples gives other tokens by itself than before its "
            f"target, first {differing[0]!r}: expected sentences whose text can stand alone; evaluate without a corpus"
        )
    return texts


def _text_of(each: LaidOut, tokenizer: Any) -> str:
    example = each.example
    if each.own is not None:
        return example.with_target(tokenizer.mask_token)
    written = write_words(example.words)
    return written.text[: written.spans[example.target][0]].rstrip()


def _ids(model: nn.Module, text: str) -> list[int] | None:
    try:
        with warned_before():  # whatever is amiss with a text, the corpus of it notes
            (sentence,) = encode(model, [text]).sentences
    except TLVZeroError:
        return None
    return sentence.ids.tolist()
