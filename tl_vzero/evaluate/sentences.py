"""The sentences of an evaluation: BLiMP, a file of the user's own, or the embedded ones; filtered for one model."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tl_vzero.choices import positive
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.blimp import read_blimp
from tl_vzero.data.examples import ExampleSet, Stage
from tl_vzero.data.own_file import read_examples
from tl_vzero.data.tokens import keep_one_piece_targets
from tl_vzero.errors import InputError
from tl_vzero.evaluate.tokenized import PROTOCOLS, Protocol
from tl_vzero.models.facts import facts_of

CHOSEN = "chosen by limit"
EMBEDDED = "the embedded agreement sentences"
HUB = "hub"


@dataclass(frozen=True)
class Sentences:
    """The examples of one source that a model can be asked about, and what the source is, in words."""

    source: str
    examples: ExampleSet


def sentences_for(
    model: nn.Module,
    *,
    blimp: str | Path | None = None,
    file: str | Path | None = None,
    cues: str = "given",
    protocol: Protocol = "masked",
    limit: int | None = None,
    seed: int = 0,
) -> Sentences:
    """The examples of BLiMP in a folder, of a CSV or JSONL file, or the embedded ones, as far as a model can take them.

    `blimp="hub"` fetches BLiMP. `cues` are those "given" in the file, or found by a parse, "spacy".
    Under the masked protocol targets have to be one token each. `limit` keeps so many, spread over the paradigms and
    drawn by `seed`. The report of the examples counts what is left at each filter.

    Raises InputError for both a folder and a file, for `cues` without a file, or a bad limit, and what the readers and
    `keep_one_piece_targets` raise.

    >>> import tl_vzero
    >>> sentences_for(tl_vzero.load_model("agreement-mini"), limit=12).examples.report.to_frame().loc["all"].to_dict()
    {'read': 500, 'target is one token': 500, 'chosen by limit': 12}
    """
    if blimp is not None and file is not None:
        raise InputError(f"given both BLiMP's folder {blimp} and the file {file}: expected one source of sentences")
    if file is None and cues != "given":
        raise InputError(f"cues={cues!r} without a file: expected sentences of your own; others have their cues")
    positive("limit", limit)
    if blimp is not None:
        read, source = read_blimp(None if str(blimp) == HUB else blimp), "BLiMP"
    elif file is not None:
        read, source = read_examples(file, cues=cues), Path(file).name
    else:
        read, source = agreement_examples(), EMBEDDED
    tokenizer = facts_of(model).tokenizer
    # What no masked protocol can be made with, the layout tells of better than a filter.
    masked = protocol in PROTOCOLS and protocol == "masked" and getattr(tokenizer, "mask_token", None) is not None
    kept = keep_one_piece_targets(read, tokenizer) if masked else read
    return Sentences(source, kept if limit is None else limited(kept, limit, seed))


def limited(examples: ExampleSet, limit: int, seed: int) -> ExampleSet:
    """So many examples, drawn by a hash of seed and id, in turn from each paradigm; their order stays.

    >>> list(limited(agreement_examples(), 6, 0).counts().values())
    [1, 1, 1, 1, 1, 1]
    """
    paradigms = list(examples.counts())
    drawn = sorted(examples, key=lambda each: hashlib.sha256(f"{seed} {each.id}".encode()).hexdigest())
    seen: Counter[str] = Counter()
    turns = []
    for each in drawn:
        turns.append((seen[each.paradigm], paradigms.index(each.paradigm), each.id))
        seen[each.paradigm] += 1
    chosen = {name for _, _, name in sorted(turns)[:limit]}
    kept = tuple(each for each in examples if each.id in chosen)
    counts = Counter(each.paradigm for each in kept)
    stage = Stage(CHOSEN, {paradigm: counts[paradigm] for paradigm in examples.report.stages[0].counts})
    return replace(examples, examples=kept, report=examples.report.after(stage, ()))
