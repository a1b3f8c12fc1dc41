"""Small tokenizers of every kind, made offline: how they mark spaces, cut characters and name their special tokens."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

CORPUS = ["the dogs bark near a hat .", "the dog barks, loudly.", "running it's a C## hat", "Ġorġ Hé 中文 the dogs"] * 3
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
AROUND = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])


def _fast(inner: Tokenizer, **special: Any) -> Any:
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return (
        PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="<mask>", **names)
        if not special
        else (PreTrainedTokenizerFast(tokenizer_object=inner, **names | special))
    )


def _byte_level(*, prefix_space: bool, trim: bool) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=310, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), AROUND])
    return _fast(inner, mask_token=AddedToken("<mask>", lstrip=True, special=True))


def gpt2_like() -> Any:
    return _byte_level(prefix_space=False, trim=False)


def roberta_like() -> Any:
    return _byte_level(prefix_space=False, trim=True)


def roberta_with_prefix_space() -> Any:
    return _byte_level(prefix_space=True, trim=True)


def unigram() -> Any:
    """SentencePiece's Unigram, as T5 and XLM-R have it."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=70, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    inner.post_processor = AROUND
    return _fast(inner)


def _byte_fallback(*, normalizer: bool) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    inner.train_from_iterator(
        [line for line in CORPUS if line.isascii()],
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL + byte_pieces, show_progress=False),
    )
    written = json.loads(inner.to_str())
    written["model"] |= {"byte_fallback": True, "unk_token": "<unk>"}
    written["added_tokens"] = [token for token in written["added_tokens"] if not token["content"].startswith("<0x")]
    if normalizer:
        written["pre_tokenizer"] = None
    inner = Tokenizer.from_str(json.dumps(written))
    if normalizer:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = AROUND
    return _fast(inner)


def sentencepiece_bpe() -> Any:
    return _byte_fallback(normalizer=False)


def llama_like() -> Any:
    """Its normaliser writes the marks, and to the tokenizer the whole text is one word."""
    return _byte_fallback(normalizer=True)


def wordpiece(*, lowercase: bool = True) -> Any:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=110, special_tokens=SPECIAL, show_progress=False)
    )
    inner.post_processor = AROUND
    return _fast(inner)


def cased_wordpiece() -> Any:
    return wordpiece(lowercase=False)


def without_decoder() -> Any:
    """As somebody's own tokenizer may be, which was only made to read."""
    bare = wordpiece()
    bare._tokenizer.decoder = None
    return bare


def bytes_without_decoder() -> Any:
    bare = gpt2_like()
    bare._tokenizer.decoder = None
    return bare


def clip_like() -> Any:
    """A suffix ends a word."""
    inner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.BPEDecoder()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False),
    )
    inner.post_processor = AROUND
    return _fast(inner)


def characters() -> Any:
    """Every character is a token, also a space."""
    letters = sorted(set("".join(CORPUS)) | set("😀,!"))
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*SPECIAL, *letters])}, [], unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    inner.post_processor = AROUND
    return _fast(inner)


def byt5() -> Any:
    return ByT5Tokenizer(extra_ids=0)


def canine() -> Any:
    return CanineTokenizer()


def _with_at_signs(kind: str) -> Any:
    """`run@@ ning`, by Python's own code: such a tokenizer gives no offsets."""
    import transformers

    folder = Path(tempfile.mkdtemp(prefix="tl_vzero_tokenizer_"))
    words = ["the", "dogs", "bark", "run@@", "n@@", "ing", "near", "a", "hat", ".", ",", "loud@@", "ly"]
    (folder / "vocab.txt").write_text("".join(f"{word} 1\n" for word in words))
    merges = [
        "t h",
        "th e</w>",
        "d o",
        "do g",
        "dog s</w>",
        "b a",
        "ba r",
        "bar k</w>",
        "r u",
        "ru n",
        "i n",
        "in g</w>",
    ]
    merges += ["n e", "ne a", "nea r</w>", "h a", "ha t</w>", "l o", "lo u", "lou d", "l y</w>"]
    (folder / "bpe.codes").write_text("#version: 0.2\n" + "".join(f"{merge} 1\n" for merge in merges))
    return getattr(transformers, kind)(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def phobert() -> Any:
    return _with_at_signs("PhobertTokenizer")


def bertweet() -> Any:
    return _with_at_signs("BertweetTokenizer")


FAST: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (
        gpt2_like,
        roberta_like,
        roberta_with_prefix_space,
        unigram,
        sentencepiece_bpe,
        llama_like,
        wordpiece,
        cased_wordpiece,
        without_decoder,
        bytes_without_decoder,
        clip_like,
        characters,
    )
}
SLOW: dict[str, Callable[[], Any]] = {build.__name__: build for build in (byt5, canine, phobert, bertweet)}


@cache
def tokenizer_named(name: str) -> Any:
    return (FAST | SLOW)[name]()
