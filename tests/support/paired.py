"""Tiny random encoder-decoders, every class that can hold them, and their maps by plain hooks in float64.

A new architecture costs a row.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from support.architecture_row import LINE, LINES, tiny_model
from support.models import CONTEXT, legacy, loaded, third_party_warnings_ignored, tokenizer
from support.plain_hooks import StaysWide, module_at, plain_value_zeroing, wide_copy
from torch import Tensor

STACKS = ("encoder", "decoder", "cross")
# No id is a special token's, but for the start of the decoder's.
READ, WRITTEN = [17, 5, 41, 9, 31, 28, 9], [3, 44, 12, 9, 23]


@dataclass(frozen=True)
class Paired:
    """`encoder` and `decoder` are the paths to the blocks, the other three the paths in a block to its values.

    `sound` is a spectrogram of as many frames as `READ` is long, which the encoder reads instead of that.
    """

    name: str
    build: Callable[[], Any]
    encoder: str
    decoder: str
    encoder_value: str
    decoder_value: str
    cross_value: str
    lines: tuple[str, ...] = LINES
    sound: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """What the encoder reads."""
        return torch.tensor(READ) if self.sound is None else self.sound

    def tiny(self) -> Any:
        """The model in float32, made once; whoever changes it takes a copy."""
        return _made(self)

    def reference(self, stack: str, read: list[int] = READ, written: list[int] = WRITTEN, **options: Any) -> Tensor:
        """Raw maps `[layer, dest, src]` by plain hooks, in float64; options are those of `plain_value_zeroing`."""
        inputs, decoder_inputs = {"input_ids": torch.tensor([read])}, torch.tensor([written])
        if self.sound is not None:
            inputs = {"input_features": self.sound.unsqueeze(0).double()}
        blocks = self.encoder if stack == "encoder" else self.decoder
        return plain_value_zeroing(
            self.tiny(),
            written if stack == "decoder" else read,
            blocks=blocks,
            value={"encoder": self.encoder_value, "decoder": self.decoder_value, "cross": self.cross_value}[stack],
            run=lambda model, _: model(**inputs, decoder_input_ids=decoder_inputs),
            **options,
        )

    def block(self, stack: str, layer: int) -> str:
        """The path to a block."""
        return f"{self.encoder if stack == 'encoder' else self.decoder}.{layer}"

    def value(self, stack: str, layer: int) -> str:
        """The path to the module that computes a block's values."""
        of_stack = {"encoder": self.encoder_value, "decoder": self.decoder_value, "cross": self.cross_value}
        return f"{self.block(stack, layer)}.{of_stack[stack]}"

    def written(self, stack: str, layer: int) -> str:
        """The path to the module that writes what a block's attention mixed."""
        start, _, name = self.value(stack, layer).rpartition(".")
        return f"{start}.{'out_proj' if name == 'v_proj' else 'o'}"

    def run(self, read: list[int] = READ, written: list[int] = WRITTEN) -> tuple[dict[str, Tensor], Any]:
        """What every module computes of one sentence, by its path, and all that the model gives, with its patterns."""
        shown: dict[str, Tensor] = {}
        wide = _wide(self)
        with StaysWide(), ExitStack() as hooks:
            for path, module in wide.named_modules():
                handle = module.register_forward_hook(
                    lambda _, inputs, out, path=path: shown.__setitem__(path, out[0] if isinstance(out, tuple) else out)
                )
                hooks.callback(handle.remove)
            ids = {"input_ids": torch.tensor([read]), "decoder_input_ids": torch.tensor([written])}
            return shown, wide(**ids, output_attentions=True)

    def logits(self, changes: Mapping[str, Any], read: list[int] = READ, written: list[int] = WRITTEN) -> Tensor:
        """The decoder's logits `[position, vocabulary]` in float64, with what modules compute changed."""
        wide = _wide(self)
        with StaysWide(), ExitStack() as hooks:
            for path, change in changes.items():
                handle = module_at(wide, path).register_forward_hook(lambda _, inputs, out, change=change: change(out))
                hooks.callback(handle.remove)
            return wide(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([written])).logits[0]


@cache
def _made(row: Paired) -> Any:
    return row.build()


@cache
def _wide(row: Paired) -> Any:
    return wide_copy(row.tiny()).requires_grad_(False)


@cache
def reference(name: str, stack: str) -> Tensor:
    """A row's maps of `READ` and `WRITTEN`."""
    return (PAIRED | HEARD)[name].reference(stack)


@cache
def model_of(name: str) -> Any:
    """The row's model as load_model gives it."""
    return loaded((PAIRED | HEARD)[name].tiny())


def t5(layers: int = 2, decoder_layers: int = 3, **changes: Any) -> Any:
    model = tiny_model(
        "T5Config",
        "T5ForConditionalGeneration",
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        num_heads=2,
        decoder_start_token_id=3,
        **changes,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".q.weight"):
                weight.mul_(model.config.d_kv**-0.5)  # T5 does not scale its attention: its queries are small
    return model


def bart_like(config: str, model: str, **changes: Any) -> Callable[[], Any]:
    def build() -> Any:
        return tiny_model(
            config,
            model,
            d_model=16,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=2,  # TransformerLens reads only a decoder of the encoder's shape
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=CONTEXT,
            decoder_start_token_id=3,
            forced_eos_token_id=None,
            **changes,
        )

    return build


T5_PARTS = (
    "encoder.block",
    "decoder.block",
    "layer.0.SelfAttention.v",
    "layer.0.SelfAttention.v",
    "layer.1.EncDecAttention.v",
)
BART_PARTS = (
    "model.encoder.layers",
    "model.decoder.layers",
    "self_attn.v_proj",
    "self_attn.v_proj",
    "encoder_attn.v_proj",
)

_ROWS = (
    Paired("T5", t5, *T5_PARTS, lines=("4.3",)),
    Paired("HookedEncoderDecoder", lambda: t5(layers=3), *T5_PARTS, lines=()),
    Paired(
        "T5 1.1, gated",
        lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        *T5_PARTS,
        lines=("4.3",),
    ),
    Paired("BART", bart_like("BartConfig", "BartForConditionalGeneration"), *BART_PARTS),
    Paired("mBART", bart_like("MBartConfig", "MBartForConditionalGeneration"), *BART_PARTS),
    Paired("Marian", bart_like("MarianConfig", "MarianMTModel"), *BART_PARTS),
    Paired("Pegasus", bart_like("PegasusConfig", "PegasusForConditionalGeneration"), *BART_PARTS),
    Paired("M2M100", bart_like("M2M100Config", "M2M100ForConditionalGeneration"), *BART_PARTS),
    Paired("Blenderbot", bart_like("BlenderbotConfig", "BlenderbotForConditionalGeneration"), *BART_PARTS),
)
PAIRED = {row.name: row for row in _ROWS}


def whisper() -> Any:
    """Of a window of 0.14 s, 7 frames, and of more blocks in the decoder."""
    return tiny_model(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        d_model=16,
        num_mel_bins=8,
        max_source_positions=len(READ),
        max_target_positions=CONTEXT,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=3,
    )


SPECTROGRAM = torch.randn(8, 2 * len(READ), generator=torch.Generator().manual_seed(4))
# Apart, as they read no ids.
HEARD = {"Whisper": Paired("Whisper", whisper, *BART_PARTS, sound=SPECTROGRAM)}
ON_THIS_LINE = [row.name for row in _ROWS if LINE in row.lines]


def hooked_encoder_decoder(hf_model: Any) -> Any:
    """A HookedEncoderDecoder with the weights of an ungated T5 of as many layers in the encoder as in the decoder."""
    paired_class = legacy("HookedEncoderDecoder")
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_t5_weights

    config = hf_model.config
    hooked_config = HookedTransformerConfig(
        d_model=config.d_model,
        d_head=config.d_kv,
        n_heads=config.num_heads,
        d_mlp=config.d_ff,
        d_vocab=config.vocab_size,
        n_layers=config.num_layers,
        n_ctx=CONTEXT,
        eps=config.layer_norm_epsilon,
        act_fn=config.feed_forward_proj,
        positional_embedding_type="relative_positional_bias",
        relative_attention_max_distance=config.relative_attention_max_distance,
        relative_attention_num_buckets=config.relative_attention_num_buckets,
        decoder_start_token_id=config.decoder_start_token_id,
        attention_dir="bidirectional",
        use_attn_scale=False,
        tie_word_embeddings=config.tie_word_embeddings,
        model_name="t5",
        device="cpu",
        seed=0,
        dtype=hf_model.dtype,
    )
    with third_party_warnings_ignored():
        hooked = paired_class(hooked_config, tokenizer=tokenizer())
    hooked.load_state_dict(convert_t5_weights(copy.deepcopy(hf_model), hooked_config), strict=False)
    return hooked.to(hf_model.dtype).eval()


def stack_options(stack: str, written: Any = None) -> dict[str, Any]:
    """The arguments that ask for a stack's map."""
    if stack == "encoder":
        return {"stack": stack}
    return {"stack": stack, "decoder_inputs": torch.tensor(WRITTEN) if written is None else written}


# In float64, in every class: what effects and gradients are compared on.
IN_DOUBLE = ["HookedEncoderDecoder", *(name for name in ("T5", "BART") if name in ON_THIS_LINE)]


@cache
def double_model(name: str) -> Any:
    """The row's model in float64."""
    hf_model = copy.deepcopy(PAIRED[name].tiny()).double()
    return hooked_encoder_decoder(hf_model) if name == "HookedEncoderDecoder" else loaded(hf_model)


# The metric of these tests, the difference of two words' logits at a position of the decoder, and runs with changes.
GOOD, BAD, TARGET = 11, 30, 2
Change = Callable[[Tensor], Tensor]


def sources_of(stack: str) -> list[int]:
    return WRITTEN if stack == "decoder" else READ


def layers_of(name: str, stack: str) -> range:
    return range(2 if (name, stack) == ("T5", "encoder") else 3)


def difference(logits: Tensor) -> Tensor:
    return logits[TARGET, GOOD] - logits[TARGET, BAD]


def put(at: Any, replacement: Callable[[Tensor], Tensor]) -> Change:
    """A hook that overwrites a part of what a module computes, `[batch, position, feature]`."""

    def change(out: Any) -> Any:
        if isinstance(out, tuple):
            return change(out[0]), *out[1:]
        out = out.clone()
        out[at] = replacement(out)
        return out

    return change


def zeroed(name: str, stack: str, at: Callable[[int], Any], replacement: Any = lambda out: 0.0) -> Tensor:
    """The difference of logits with each source's value replaced minus the clean one, `[layer, src]`."""
    row = PAIRED[name]
    clean = difference(row.logits({}))
    return torch.tensor(
        [
            [
                difference(row.logits({row.value(stack, layer): put(at(source), replacement)})) - clean
                for source in range(len(sources_of(stack)))
            ]
            for layer in layers_of(name, stack)
        ],
        dtype=torch.float64,
    )
