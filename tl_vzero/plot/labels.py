"""Token text in pictures: everything visible, nothing taken for markup."""

import unicodedata

JOINERS = "\u200c\u200d"
BLANK_LETTERS = "\u034f\u115f\u1160\u2800\u3164\uffa0"
TICK_LENGTH = 16
WORD_START = "▁"


def visible(token: str) -> str:
    r"""Write a token so that all of it can be seen: white space and invisible characters get a sign.

    Plain spaces around a token, and SentencePiece's mark, are dropped, as they only mark where a word starts.
    (Byte-level BPE's mark, Ġ, is a letter of Maltese; tokens are decoded, so that it stands for itself.) Joiners
    inside a token stay, because emoji and many scripts need them.

    >>> visible(" hat"), visible(" "), visible("a\nb"), visible("a\u200b")
    ('hat', '␣', 'a⏎b', 'a‹U+200B›')
    >>> visible("")
    '‹empty›'
    """
    core = token.rstrip(" ").lstrip(f" {WORD_START}")
    if not core:
        return "␣" * len(token) or "‹empty›"
    last = len(core) - 1
    return "".join(_visible_character(c, inside=0 < i < last, first=i == 0) for i, c in enumerate(core))


def _visible_character(character: str, *, inside: bool, first: bool) -> str:
    if character == " " or (character in JOINERS and inside):
        return character
    if character in "\n\t":
        return "⏎" if character == "\n" else "⇥"
    category = unicodedata.category(character)
    if category[0] in "CZ" or character in BLANK_LETTERS:
        return f"‹U+{ord(character):04X}›"
    if category[0] == "M" and first:
        return f"◌{character}"
    return character


def short(text: str, length: int = TICK_LENGTH) -> str:
    """Cut a long text for an axis; the hover label keeps all of it.

    >>> short("internationalisation", 10)
    'internati…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def plotly_text(text: str) -> str:
    """Escape a text for plotly, which reads a subset of HTML, and TeX between dollar signs, in any label.

    A right-to-left text is isolated, so that it cannot reorder the label around it.

    >>> plotly_text("<b>&amp; $x$")
    '&lt;b&gt;&amp;amp; &#36;x&#36;'
    """
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(sign, entity)
    right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)
    return f"\u2068{text}\u2069" if right_to_left else text


def tick_text(token: str) -> str:
    """The label of a token on an axis, for plotly.

    >>> tick_text(" <s>")
    '&lt;s&gt;'
    """
    return plotly_text(short(visible(token)))


def hover_text(token: str, position: int, unit: str = "token") -> str:
    """The label of a token in a hover box, for plotly: its text and its place.

    >>> hover_text(" hat", 5)
    'hat · position 5'
    """
    place = "word" if unit == "word" else "position"
    return f"{plotly_text(visible(token))} · {place} {position}"
