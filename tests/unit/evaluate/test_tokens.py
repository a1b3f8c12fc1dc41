"""Word-level examples laid onto WordPiece and byte-level BPE, against the tokenizers' own word ids."""

import pytest
from support.golden import minilm_folder
from support.state import type_checks_off
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.blimp import FIVE
from tl_vzero.data.examples import Example, ExampleSet, FilterReport, Stage
from tl_vzero.errors import InputError
from tl_vzero.evaluate.sentences import keep_one_piece_targets, pieces_of

WORDS = ("The", "grandmothers", "of", "Kayla", "are", "not", "moping", ".")


def example(**changes) -> Example:
    fields = {"id": "e-0", "paradigm": "darn", "words": WORDS, "target": 4, "good": "are", "bad": "is"}
    return Example(**fields | {"cue": (1,), "attractor": (3,), "cue_source": "template"} | changes)


def set_of(*examples: Example) -> ExampleSet:
    return ExampleSet(examples, FilterReport((Stage("read", {"darn": len(examples)}),)))


@pytest.fixture(scope="module")
def wordpiece():
    return AutoTokenizer.from_pretrained(minilm_folder())


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A RoBERTa-like tokenizer: spaces belong to the word that follows, its mask takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" The of are is not are is"] * 50, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    from tokenizers import AddedToken

    fast.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    return fast


def test_wordpiece_positions(wordpiece) -> None:
    pieces = pieces_of(example(), wordpiece)
    assert pieces.tokens == tuple("[CLS] the grandmother ##s of kayla [MASK] not mo ##ping . [SEP]".split())
    cue, attractor = (pieces.positions(words, "first") for words in (example().cue, example().attractor))
    assert (pieces.target, cue, attractor) == (6, (2,), (5,))
    assert pieces.word_ids == (None, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, None)
    assert pieces.special == (True, *[False] * 10, True)
    assert wordpiece.convert_ids_to_tokens([pieces.good_id, pieces.bad_id]) == ["are", "is"]


def test_all_pieces_of_a_cue(wordpiece) -> None:
    assert pieces_of(example(), wordpiece).positions(example().cue, "all") == (2, 3)


def test_an_example_without_a_wrong_form(wordpiece) -> None:
    assert pieces_of(example(bad=None), wordpiece).bad_id is None


def test_word_ids_are_those_of_a_tokenizer_given_words(wordpiece) -> None:
    """The slow reference: words one by one, which WordPiece cuts as it does in running text."""
    for example in keep_one_piece_targets(agreement_examples(), wordpiece)[:50]:
        pieces = pieces_of(example, wordpiece)
        words = list(example.words_with("[MASK]"))
        encoding = wordpiece(words, is_split_into_words=True)
        assert pieces.ids.tolist() == encoding["input_ids"]
        assert list(pieces.word_ids) == encoding.word_ids()


def test_byte_level_pieces(byte_level) -> None:
    pieces = pieces_of(example(), byte_level)
    by_word = {}
    for token, word in zip(pieces.tokens, pieces.word_ids, strict=True):
        by_word.setdefault(word, []).append(token)
    assert by_word.pop(None) == ["<s>", "</s>"]
    assert by_word.pop(4) == ["<mask>"]
    assert {word: "".join(tokens).removeprefix("Ġ") for word, tokens in by_word.items()} == {
        index: word for index, word in enumerate(WORDS) if index != 4
    }
    assert pieces.tokens[pieces.target] == "<mask>"
    assert byte_level.convert_ids_to_tokens([pieces.good_id, pieces.bad_id]) == ["Ġare", "Ġis"]


def test_a_target_in_pieces(wordpiece) -> None:
    split = example(words=(*WORDS[:4], "aggravate", *WORDS[5:]), good="aggravate", bad="aggravates")
    with pytest.raises(InputError, match=r"e-0: 'aggravate' is 3 tokens: ag ##gra ##vate; expected one token"):
        pieces_of(split, wordpiece)
    fitting_set = keep_one_piece_targets(set_of(example(), split), wordpiece)
    assert list(fitting_set) == [example()]
    assert [(skipped.id, skipped.stage) for skipped in fitting_set.report.skipped] == [("e-0", "target is one token")]


def test_a_wrong_form_in_pieces(wordpiece) -> None:
    split = example(words=(*WORDS[:4], "listen", *WORDS[5:]), good="listen", bad="listens")
    with pytest.raises(InputError, match="'listens' is 2 tokens"):
        pieces_of(split, wordpiece)


def test_a_target_outside_the_vocabulary() -> None:
    from importlib.resources import files

    mini = AutoTokenizer.from_pretrained(str(files("tl_vzero") / "assets" / "agreement-mini"))
    unknown = example(words=(*WORDS[:4], "mope", *WORDS[5:]), good="mope", bad="mopes")
    with pytest.raises(InputError, match="'mope' is not in the vocabulary"):
        pieces_of(unknown, mini)
    with pytest.raises(InputError, match="no example is left"):
        keep_one_piece_targets(set_of(unknown), mini)


def test_a_second_mask_in_the_sentence(wordpiece) -> None:
    with pytest.raises(InputError, match="2 mask tokens"):
        pieces_of(example(words=("The", "dogs", "[MASK]", "Kayla", "are", "."), attractor=()), wordpiece)


def test_tokenizers_that_cannot_be_used(byte_level) -> None:
    causal = PreTrainedTokenizerFast(tokenizer_object=byte_level.backend_tokenizer, eos_token="</s>")
    with pytest.raises(InputError, match=r"no mask token.*next token"):
        pieces_of(example(), causal)
    with pytest.raises(InputError, match="without character offsets"):
        keep_one_piece_targets(set_of(example()), object())


def test_unknown_choice_of_pieces(wordpiece) -> None:
    with type_checks_off(), pytest.raises(InputError, match="did you mean 'first'"):
        pieces_of(example(), wordpiece).positions([1], "frist")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitting(blimp, wordpiece) -> ExampleSet:
    return keep_one_piece_targets(blimp, wordpiece)


def chance_by_hand(examples: ExampleSet, wordpiece) -> float:
    """What a random score gives the cue on average: one over the count of tokens, [CLS] and [SEP] included."""
    lengths = [len(wordpiece.tokenize(example.with_target("[MASK]"))) + 2 for example in examples]
    return sum(len(example.cue) / length for example, length in zip(examples, lengths, strict=True)) / len(examples)


def test_blimp_under_the_vocabulary_of_bert_base_uncased(fitting: ExampleSet, wordpiece) -> None:
    counts = fitting.counts()
    assert counts == dict(zip(FIVE, (1000, 1000, 1000, 885, 839), strict=True))
    chance = sum(len(example.cue) / len(pieces_of(example, wordpiece).ids) for example in fitting) / len(fitting)
    assert chance == pytest.approx(chance_by_hand(fitting, wordpiece)) == pytest.approx(0.1103, abs=5e-5)
