"""A tiny random GPT-2 with a tokenizer of its own kind: no special tokens around, a space before a word."""

import atexit
import shutil
import tempfile
from functools import cache

from support.models import VOCABULARY, hf_gpt2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

KEYS = "The keys to the cabinet"
TOKENS = ("The", " keys", " to", " the", " cabinet")


def spaced_words() -> PreTrainedTokenizerFast:
    """Byte-level BPE, whose words of `KEYS` and a few others are one token each."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    corpus = [KEYS, " is", " are"] * 50 + [" table", " door", " lock", " wood", " near", " old"]  # to fill it
    inner.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=[], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@cache
def decoder_folder() -> str:
    """The model saved with its tokenizer; removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="tl_vzero_decoder_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    hf_gpt2(layers=4).save_pretrained(folder)
    spaced_words().save_pretrained(folder)
    return folder
