"""Tiny models with random biases and norm weights, and every TransformerLens class that can hold them."""

import atexit
import copy
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# On matrices this small a second thread only waits, and on a busy machine it waits twenty times as long.
torch.set_num_threads(1)

VOCABULARY = 60
CONTEXT = 64
WORDS = ["the", "hat", "of", "some", "dog", "##s", "bark", "##ing", "a", "marcus", ".", "is", "are", "near"]


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every bias and every norm weight a random value, so that none of them can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif weight.ndim <= 1:
                weight.copy_(1 + 0.3 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[-1] ** 0.5)
    return model.eval()


def hf_bert(
    seed: int = 0,
    *,
    layers: int = 3,
    heads: int = 2,
    width: int = 16,
    dropout: float = 0.0,
    kind: type = BertForMaskedLM,
) -> Any:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=0,
    )
    return randomise(kind(config), seed)


def hf_bert_headless(seed: int = 0, **options: Any) -> Any:
    return hf_bert(seed, kind=BertModel, **options)


def hf_gpt2(
    seed: int = 0,
    *,
    layers: int = 3,
    heads: int = 2,
    width: int = 16,
    dropout: float = 0.0,
    kind: type = GPT2LMHeadModel,
) -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=CONTEXT,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=2,
        eos_token_id=2,
    )
    return randomise(kind(config), seed)


def hf_gpt2_headless(seed: int = 0, **options: Any) -> Any:
    return hf_gpt2(seed, kind=GPT2Model, **options)


def hf_llama(seed: int = 0, *, layers: int = 3, heads: int = 4, kv_heads: int = 2, width: int = 16) -> Any:
    """A Llama with grouped queries: each value head serves several query heads."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    return randomise(LlamaForCausalLM(config), seed)


def hf_neox(seed: int = 0, *, layers: int = 3, heads: int = 2, width: int = 16) -> Any:
    """A GPT-NeoX: attention and MLP side by side, rotary positions."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=2,
        eos_token_id=3,
        use_parallel_residual=True,
    )
    return randomise(GPTNeoXForCausalLM(config), seed)


HF_BUILDERS: dict[str, Callable[..., Any]] = {
    "bert": hf_bert,
    "gpt2": hf_gpt2,
    "llama": hf_llama,
    "neox": hf_neox,
}


@cache
def tokenizer_folder() -> str:
    """A folder with a saved WordPiece tokenizer of 60 words; kept until the process ends."""
    folder = tempfile.mkdtemp(prefix="tl_vzero_tokenizer_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    unsaved_tokenizer().save_pretrained(folder)
    return folder


def unsaved_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    filler = [f"word{i}" for i in range(VOCABULARY - len(special) - len(WORDS))]
    vocabulary = {word: token_id for token_id, word in enumerate([*special, *WORDS, *filler])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=CONTEXT,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as a user has it: loaded from the folder in which it was saved."""
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder())


def legacy(name: str) -> Any:
    """A class of TransformerLens that only 3.x has; skips the test elsewhere."""
    import transformer_lens

    try:
        return getattr(transformer_lens, name)
    except (ImportError, AttributeError):
        pytest.skip(f"TransformerLens {version('transformer-lens')} has no {name}")


@contextmanager
def third_party_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hooked_encoder(hf_model: Any, with_tokenizer: bool = True) -> Any:
    """A HookedEncoder with the weights of a Hugging Face BERT (heads that it lacks are left random)."""
    encoder_class = legacy("HookedEncoder")
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_bert_weights

    config, source = hf_model.config, _with_every_bert_head(hf_model)
    hooked_config = HookedTransformerConfig(
        d_model=config.hidden_size,
        d_head=config.hidden_size // config.num_attention_heads,
        n_heads=config.num_attention_heads,
        n_layers=config.num_hidden_layers,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        act_fn="gelu",
        eps=config.layer_norm_eps,
        attention_dir="bidirectional",
        model_name="bert",
        original_architecture="BertForMaskedLM",
        device="cpu",
        seed=0,
        dtype=hf_model.dtype,
    )
    with third_party_warnings_ignored():
        hooked = encoder_class(hooked_config, tokenizer=tokenizer() if with_tokenizer else None)
    hooked.load_state_dict(convert_bert_weights(source, hooked_config), strict=False)
    return hooked.to(hf_model.dtype).eval()


def _with_every_bert_head(hf_model: Any) -> Any:
    """The same BERT as a BertForPreTraining, the class that TransformerLens's conversion reads."""
    whole = randomise(BertForPreTraining(hf_model.config), seed=99)
    if isinstance(hf_model, BertModel):
        whole.bert.load_state_dict(hf_model.state_dict())
    else:
        whole.load_state_dict(hf_model.state_dict(), strict=False)
    return whole


def hooked_transformer(hf_model: Any, with_tokenizer: bool = True, **processing: bool) -> Any:
    """A HookedTransformer with the weights of a Hugging Face GPT-2, unprocessed unless asked."""
    transformer_class = legacy("HookedTransformer")
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = hf_model.config
    hooked_config = HookedTransformerConfig(
        d_model=config.n_embd,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        n_layers=config.n_layer,
        d_mlp=4 * config.n_embd,
        d_vocab=config.vocab_size,
        n_ctx=config.n_positions,
        act_fn="gelu_new",
        eps=config.layer_norm_epsilon,
        attention_dir="causal",
        normalization_type="LN",
        model_name="gpt2",
        original_architecture="GPT2LMHeadModel",
        default_prepend_bos=False,
        device="cpu",
        seed=0,
        dtype=hf_model.dtype,
    )
    with third_party_warnings_ignored():
        hooked = transformer_class(
            hooked_config, tokenizer=tokenizer() if with_tokenizer else None, default_padding_side="right"
        )
        unprocessed = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
        hooked.load_and_process_state_dict(
            convert_gpt2_weights(hf_model, hooked_config), **{**unprocessed, **processing}
        )
    return hooked.to(hf_model.dtype).eval()


def bridge(hf_model: Any) -> Any:
    """A TransformerBridge of the user's own making, around a copy of a model with a head."""
    from transformer_lens.model_bridge import TransformerBridge

    inner = copy.deepcopy(hf_model)
    inner.config.architectures = [type(inner).__name__]
    with third_party_warnings_ignored():
        return TransformerBridge.boot_transformers(
            "local", hf_model=inner, tokenizer=tokenizer(), device="cpu", dtype=inner.dtype
        ).eval()


def loaded(hf_model: Any) -> Any:
    """The same model by tl_vzero.load_model."""
    import tl_vzero

    return tl_vzero.load_model(copy.deepcopy(hf_model), tokenizer())


# Which class may hold which architecture: (how the model is made, architecture) -> builder.
ROUTES: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("HookedEncoder", "bert"): hooked_encoder,
    ("HookedTransformer", "gpt2"): hooked_transformer,
    **{("TransformerBridge", architecture): bridge for architecture in HF_BUILDERS},
    **{("load_model", architecture): loaded for architecture in HF_BUILDERS},
}
EVERY_ROUTE = [pytest.param(*route, id="-".join(route)) for route in ROUTES]
# A user's own bridge is of the class that load_model gives: most tests have one of BERT, and none of the others.
MOST_ROUTES = [route for route in EVERY_ROUTE if route.values[0] != "TransformerBridge" or route.values[1] == "bert"]


def build(route: str, architecture: str, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """(Hugging Face model, the same weights in a TransformerLens class)."""
    hf_model = HF_BUILDERS[architecture](seed, **options)
    return hf_model, ROUTES[route, architecture](hf_model)


def is_causal(architecture: str) -> bool:
    return architecture != "bert"


def mask_argument(model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The forward argument by which this class takes a padding mask."""
    if type(model).__name__ == "HookedEncoder":
        return {"one_zero_attention_mask": mask}
    return {"attention_mask": mask}


def logits_of(model: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, return_type="logits", **arguments)
