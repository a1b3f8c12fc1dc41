"""Number-agreement sentences from a small English grammar, the cue of each target known by construction.

Each sentence has one target, a word whose form agrees in number with one noun, its cue. Nouns between the two
are attractors; a sentence is conflicting if some attractor has the other number. No word but the cue tells
which number is right: its determiner has one form for both, and so have the verbs of a relative clause whose
subject it is (past or modal).

Held-out combinations
    A *combination* is a pair of lexemes, whatever their number: the cue's with the target's (``be``,
    ``have``, ``do``, the base form of a main verb, ``this`` or ``that`` for determiners, ``self`` for
    reflexives), or the cue's with an attractor's, names included. A fixed hash puts one combination in five
    aside, for all paradigms and both numbers.

    - *train*: no combination of the sentence is put aside, nor is that of any other noun with the verb that
      agrees with it (``the senator admires`` in a relative clause counts as ``senator`` with ``admire``).
    - *held_out*: every combination of the cue, with the target and with each attractor, is put aside.

    So no held-out combination occurs in training, but every noun does, in both numbers, in other ones.
    Two nouns that merely occur together (the cue and an object, say) are not a combination.
"""

import hashlib
from functools import cache
from random import Random
from typing import Literal, get_args

from demos.agreement_mini import lexicon
from demos.agreement_mini.grammar import PARADIGMS, Draft, Paradigm, write
from tl_vzero.data.agreement_mini import AgreementSentence
from tl_vzero.errors import InputError, unknown_name

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT_SHARE = 0.2


def generate(n: int, *, seed: int, split: Split, paradigm: Paradigm | None = None) -> list[AgreementSentence]:
    """Sentences of the grammar, the same for the same arguments on any machine.

    Returns ``n`` sentences that take the paradigms in turn (or are all of the one named). Where a paradigm
    has attractors, every second sentence is conflicting; of the other reflexives, half have no attractor.
    What each ``split`` holds is said at the top of this module.
    Raises InputError, a ValueError, for ``n`` below 1 and for an unknown split or paradigm.

    >>> generate(2, seed=0, split="train", paradigm="subject_verb_pp")[0].conflicting
    True
    >>> [sentence.paradigm for sentence in generate(3, seed=0, split="held_out")]
    ['determiner_noun', 'determiner_noun_adjective', 'subject_verb']
    """
    if n < 1:
        raise InputError(f"n is {n}: expected a number of sentences of at least 1")
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if paradigm is not None and paradigm not in PARADIGMS:
        raise unknown_name("paradigm", paradigm, PARADIGMS)
    chosen = PARADIGMS if paradigm is None else (paradigm,)
    rng = Random(f"{seed} {split} {paradigm}")
    return [_sentence(rng, split, chosen[i % len(chosen)], conflicting=i // len(chosen) % 2 == 0) for i in range(n)]


def vocabulary() -> list[str]:
    """All tokens of a model of these sentences, in the order of their ids.

    Returns the special tokens, then every word form of the grammar and ``.``, alphabetically.

    >>> vocabulary()[:6]
    ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.']
    """
    return [*lexicon.SPECIAL_TOKENS, *lexicon.all_words()]


@cache
def is_held_out(cue: str, other: str) -> bool:
    """Whether the combination of a cue lexeme with a target or attractor lexeme is kept out of training.

    Returns the same answer on any machine: the SHA-256 hash of the two lexemes decides.

    >>> is_held_out("picture", "be")
    False
    """
    digest = hashlib.sha256(f"{cue} {other}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < HELD_OUT_SHARE


def _sentence(rng: Random, split: Split, paradigm: Paradigm, *, conflicting: bool) -> AgreementSentence:
    while not _belongs_to(draft := write(paradigm, rng, conflicting=conflicting), split):
        pass
    return AgreementSentence(
        text=" ".join(draft.words[:-1]) + draft.words[-1],
        target=draft.target,
        good=draft.forms[0],
        bad=draft.forms[1],
        cues=(draft.cue,),
        attractors=tuple(draft.attractors),
        conflicting=draft.conflicting,
        paradigm=paradigm,
    )


def _belongs_to(draft: Draft, split: Split) -> bool:
    if split == "held_out":
        return all(is_held_out(*pair) for pair in draft.cue_pairs)
    return not any(is_held_out(*pair) for pair in draft.cue_pairs + draft.other_pairs)
