"""Two choices about the sentences that bring BLiMP to the paper's numbers; neither is made unless asked for.

Mohebbi et al. (2023) report 4,276 examples under bert-base-uncased, and random scores of .12 to .13 for the cue. With
the filter on targets alone there are 4,724, and the expectation of a random score, the mean of 1/T, is .110. If cue
words have to be one token too, 4,273 are left; without the closing full stop the expectation is then .126. So the
paper seems to have made both choices. That is inferred from the counts, it is not stated.
"""

from dataclasses import replace
from typing import Any

from tl_vzero.data.examples import CLOSING_MARKS, Example, ExampleSet
from tl_vzero.data.tokens import pieces_of

ONE_PIECE_CUE = "cue is one token"


def keep_one_piece_cues(examples: ExampleSet, tokenizer: Any) -> ExampleSet:
    """The examples whose cue words are one token each; the others are listed in the report.

    Raises InputError as `pieces_of` does: first keep targets of one token.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> len(keep_one_piece_cues(agreement_examples(), tl_vzero.load_model("agreement-mini").tokenizer))
    500
    """
    return examples.filtered(ONE_PIECE_CUE, lambda example: _why_not_one_piece(example, tokenizer))


def _why_not_one_piece(example: Example, tokenizer: Any) -> str | None:
    pieces = pieces_of(example, tokenizer, which="all")
    if len(pieces.cue) == len(example.cue):
        return None
    cut = " ".join(pieces.tokens[position] for position in pieces.cue)
    return f"the cue {' '.join(example.words[index] for index in example.cue)!r} is {len(pieces.cue)} tokens: {cut}"


def without_closing_mark(examples: ExampleSet) -> ExampleSet:
    """The same examples without the punctuation that ends their sentences.

    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> without_closing_mark(agreement_examples())[2].text
    'her professor is praising the polite lawyer'
    """
    return replace(examples, examples=tuple(_without_mark(example) for example in examples))


def _without_mark(example: Example) -> Example:
    return example if example.words[-1].strip(CLOSING_MARKS) else replace(example, words=example.words[:-1])
