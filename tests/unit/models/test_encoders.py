"""Encoders that tl_vzero reads by adapters of its own: what is computed is what Hugging Face computes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architecture_row import IDS
from support.architectures import ARCHITECTURES
from support.encoder_rows import DISENTANGLED, OURS, encoder
from support.models import CONTEXT, tokenizer
from support.plain_hooks import plain_value_zeroing
from torch import Tensor

import tl_vzero
from tl_vzero import TLVZeroError

POST_NORM = [name for name in OURS if name != "ModernBERT"]

each_encoder = pytest.mark.parametrize("name", OURS)


def tiny(name: str) -> Any:
    return ARCHITECTURES[name].tiny()


def wide(name: str) -> Any:
    """In float64; eager, as the bridge is, because ModernBERT's own eager attention goes through float32."""
    hf_model = copy.deepcopy(tiny(name)).double()
    hf_model.set_attn_implementation("eager")
    return hf_model


def blocks_of(hf_model: Any, name: str) -> list[torch.nn.Module]:
    row = ARCHITECTURES[name]
    return list(row.unshared(hf_model).get_submodule(row.blocks))


def block_outputs(hf_model: Any, name: str, **inputs: Tensor) -> list[Tensor]:
    """What each block of the Hugging Face model gives to the next."""
    outputs: list[Tensor] = []
    hf_model = ARCHITECTURES[name].unshared(hf_model)

    def keep(module: Any, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in hf_model.get_submodule(ARCHITECTURES[name].blocks)]
    with torch.no_grad():
        hf_model(**inputs)
    for handle in handles:
        handle.remove()
    return outputs


def scored(model: Any, inputs: Any, **options: Any) -> Any:
    return tl_vzero.value_zeroing(model, inputs, **options)


# --- what is computed -----------------------------------------------------------------------------------


@each_encoder
def test_logits_and_every_blocks_output_are_hugging_faces(name: str) -> None:
    hf_model, ids = wide(name), torch.tensor([IDS])
    with torch.no_grad():
        expected = hf_model(input_ids=ids).logits
        logits, cache = tl_vzero.load_model(hf_model).run_with_cache(ids)
    assert (logits - expected).abs().max() < 1e-9
    outputs = block_outputs(hf_model, name, input_ids=ids)
    for layer, output in enumerate(outputs):
        assert (cache[f"blocks.{layer}.hook_out"] - output).abs().max() < 1e-9
    assert len(outputs) == 3


@each_encoder
def test_a_padded_batch_gives_each_sentences_own_logits(name: str) -> None:
    hf_model = wide(name)
    pad, sentences = hf_model.config.pad_token_id, [IDS, IDS[:3]]
    ids = torch.tensor([[*sentence, *[pad] * (len(IDS) - len(sentence))] for sentence in sentences])
    with torch.no_grad():
        logits = tl_vzero.load_model(hf_model)(ids, attention_mask=(ids != pad).long())
        for row, sentence in zip(logits, sentences, strict=True):
            expected = hf_model(input_ids=torch.tensor([sentence])).logits[0]
            assert (row[: len(sentence)] - expected).abs().max() < 1e-9


@each_encoder
def test_sentences_of_several_lengths_in_float64(name: str) -> None:
    model, ids = tl_vzero.load_model(wide(name)), torch.tensor([IDS] * 3)
    lengths = torch.tensor([9, 3, 6])
    together = scored(model, ids, attention_mask=(torch.arange(9) < lengths[:, None]).long())
    for length, scores in zip(lengths, together, strict=True):
        assert (scores.values - scored(model, torch.tensor(IDS[:length])).values).abs().max() < 1e-9


@each_encoder
def test_the_closed_form_knows_every_block(name: str) -> None:
    metadata = scored(tl_vzero.load_model(tiny(name)), torch.tensor(IDS)).metadata
    assert metadata["engine"] == "closed_form"


@each_encoder
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_a_padded_sentence_scores_as_it_does_alone(name: str, side: str, engine: str) -> None:
    hf_model = tiny(name)
    model, pad, short = tl_vzero.load_model(hf_model), hf_model.config.pad_token_id, IDS[:5]
    padding = [pad] * (len(IDS) - len(short))
    row = short + padding if side == "right" else padding + short
    ids = torch.tensor([IDS, row])
    alone = scored(model, torch.tensor(short), engine=engine).values
    if side == "left" and not counts_from_padding(hf_model):
        return  # absolute positions are counted from the row's start there, by Hugging Face as well
    both = scored(model, ids, attention_mask=(ids != pad).long(), engine=engine)
    assert [len(scores.dest_tokens) for scores in both] == [len(IDS), len(short)]
    assert (both[1].normalized().values - scored(model, torch.tensor(short)).normalized().values).abs().max() < 5e-6
    assert (both[1].values - alone).abs().max() < 1e-5


def counts_from_padding(hf_model: Any) -> bool:
    return hf_model.config.pad_token_id == 1


@each_encoder
def test_sentences_as_strings(name: str) -> None:
    words = tokenizer()
    model = tl_vzero.load_model(tiny(name), words)
    alone = scored(model, "the dog barks .")
    short, longer = scored(model, ["the dog barks .", "some hat near the dog is a hat ."])
    assert (
        alone.dest_tokens == short.dest_tokens == tuple(words.convert_ids_to_tokens(words("the dog barks .").input_ids))
    )
    assert (alone.values - scored(model, torch.tensor(words("the dog barks .").input_ids)).values).abs().max() < 1e-5
    assert (alone.normalized().values - short.normalized().values).abs().max() < 5e-6
    assert len(longer.dest_tokens) == 11


@each_encoder
def test_heads_and_their_sum_of_parts(name: str) -> None:
    row, ids = ARCHITECTURES[name], torch.tensor(IDS)
    model = tl_vzero.load_model(tiny(name))
    expected = row.reference(heads=[1, 3])
    for engine in ("auto", "hooks"):
        measured = scored(model, ids, heads=[1, 3], engine=engine).values.double()
        felt = expected >= 1e-7
        assert ((measured - expected).abs() / expected)[felt].max() < 1e-3


@pytest.mark.parametrize("name", ["ALBERT", "ELECTRA", "DistilBERT", "MPNet", "ModernBERT"])
def test_the_longest_sentence_that_fits(name: str) -> None:
    model = tl_vzero.load_model(tiny(name))
    ids = 5 + torch.arange(CONTEXT) % 40
    assert scored(model, ids, sources=[0], destinations=[1], layers=[0]).values.shape == (1, 1, 1)


@pytest.mark.parametrize("name", ["RoBERTa", "XLM-RoBERTa", "CamemBERT"])
def test_positions_of_the_padding_do_not_count_as_room(name: str) -> None:
    model = tl_vzero.load_model(tiny(name))
    ids = 5 + torch.arange(CONTEXT + 1) % 40
    assert scored(model, ids[:CONTEXT], sources=[0], destinations=[1], layers=[0]).values.shape == (1, 1, 1)
    with pytest.raises(TLVZeroError, match=f"{CONTEXT}"):
        scored(model, ids)


def test_blocks_that_share_weights_hold_them_once() -> None:
    hf_model = tiny("ALBERT")
    model = tl_vzero.load_model(hf_model)
    assert {id(weight) for weight in model.original_model.parameters()} == {id(w) for w in hf_model.parameters()}


def test_the_later_head_for_words_of_deberta() -> None:
    hf_model = encoder("DebertaV2", **DISENTANGLED, legacy=False)()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        assert (tl_vzero.load_model(hf_model)(ids) - hf_model(input_ids=ids).logits).abs().max() < 1e-5
    assert not hf_model.legacy and hasattr(hf_model, "lm_predictions")


# --- other methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POST_NORM)
def test_methods_that_read_weights_take_them_as_bert(name: str) -> None:
    """GlobEnc and ALTI by their formulas, from the Hugging Face model's own weights and activations."""
    hf_model = wide(name)
    model = tl_vzero.load_model(hf_model)
    names = block_names(name)
    outputs = block_outputs(hf_model, name, input_ids=torch.tensor([IDS]))
    for layer in (1, 2):
        block, x = blocks_of(hf_model, name)[layer], outputs[layer - 1][0]
        globenc, alti = by_formula(block, x, pattern_of(model, layer), names)
        for method, expected in (("globenc", globenc), ("alti", alti)):
            measured = tl_vzero.score(model, torch.tensor(IDS), method=method).normalized().values[layer]
            assert (measured - expected / expected.sum(-1, keepdim=True)).abs().max() < 1e-9, method


def block_names(name: str) -> dict[str, str]:
    bert = {
        "o": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
    }
    changes = {
        "DistilBERT": {"o": "attention.out_lin", "norm1": "sa_layer_norm", "norm2": "output_layer_norm"},
        "MPNet": {"o": "attention.attn.o", "norm1": "attention.LayerNorm"},
        "ALBERT": {
            "o": "albert_layers.0.attention.dense",
            "norm1": "albert_layers.0.attention.LayerNorm",
            "norm2": "albert_layers.0.full_layer_layer_norm",
        },
    }
    return {**bert, "value": ARCHITECTURES[name].value, **changes.get(name, {})}


def pattern_of(model: Any, layer: int) -> Tensor:
    with torch.no_grad():
        return model.run_with_cache(torch.tensor([IDS]))[1][f"blocks.{layer}.attn.hook_pattern"][0]


@torch.no_grad()
def by_formula(block: Any, x: Tensor, pattern: Tensor, names: dict[str, str]) -> tuple[Tensor, Tensor]:
    value, o = block.get_submodule(names["value"]), block.get_submodule(names["o"])
    norm1, norm2 = block.get_submodule(names["norm1"]), block.get_submodule(names["norm2"])
    heads = pattern.shape[0]
    v = value(x).view(len(x), heads, -1)
    u = torch.einsum("jhd,fhd->jhf", v, o.weight.view(-1, heads, v.shape[-1]))
    added = torch.einsum("hij,jhf->ijf", pattern, u) + torch.eye(len(x)).double()[:, :, None] * x
    a = added.sum(1) + o.bias

    def scaled(z: Tensor, of: Tensor, norm: Any) -> Tensor:
        deviation = (of.var(-1, unbiased=False) + norm.eps).sqrt()
        return norm.weight * (z - z.mean(-1, keepdim=True)) / deviation[:, None, None]

    t, y = scaled(added, a, norm1), norm1(a)
    if hasattr(block, "albert_layers"):
        written = block.albert_layers[0].ff_chunk(y)
    else:
        written = block.ffn(y) if hasattr(block, "ffn") else block.output.dense(block.intermediate(y))
    into_norm2 = y + written
    alti = (y.abs().sum(-1)[:, None] - (y[:, None] - t).abs().sum(-1)).clamp_min(0)
    return scaled(t, into_norm2, norm2).norm(dim=-1), alti


# --- heads and folders ----------------------------------------------------------------------------------


@each_encoder
def test_a_folder_with_a_trained_head(name: str, tmp_path: Path) -> None:
    hf_model = tiny(name)
    hf_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path)
    with torch.no_grad():
        assert (model(torch.tensor([IDS])) - hf_model(input_ids=torch.tensor([IDS])).logits).abs().max() < 1e-4
    scores = scored(model, torch.tensor(IDS))
    assert scores.metadata["model_head"] == "trained"
    assert (scores.values - scored(tl_vzero.load_model(hf_model), torch.tensor(IDS)).values).abs().max() < 1e-6


@each_encoder
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_headless_model(name: str, where: str, tmp_path: Path) -> None:
    hf_model = tiny(name)
    base = getattr(hf_model, hf_model.base_model_prefix)
    if where == "folder":
        base.save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path if where == "folder" else base)
    scores = scored(model, torch.tensor(IDS))
    assert scores.metadata["model_head"] == "absent"
    assert (scores.values - scored(tl_vzero.load_model(hf_model), torch.tensor(IDS)).values).abs().max() < 1e-6
    assert (
        not hasattr(base, "tl_vzero")
        and base.state_dict().keys() == getattr(hf_model, hf_model.base_model_prefix).state_dict().keys()
    )
    with pytest.raises(TLVZeroError, match="head"):
        tl_vzero.zero_ablation(model, torch.tensor(IDS), target=2, target_ids=(5, 6))


@pytest.mark.parametrize("where", ["folder", "memory"])
@pytest.mark.parametrize(("head", "is_kept"), [("ForPreTraining", False), ("ForSequenceClassification", True)])
def test_the_blocks_of_a_model_with_another_head(head: str, is_kept: bool, where: str, tmp_path: Path) -> None:
    """A discriminator tells real tokens from replaced ones: it has neither words nor classes to offer."""
    hf_model = encoder(f"Electra {head}", embedding_size=8)()
    if where == "folder":
        hf_model.save_pretrained(tmp_path)
    names = set(hf_model.state_dict())
    scores = scored(tl_vzero.load_model(tmp_path if where == "folder" else hf_model), torch.tensor(IDS))
    row = ARCHITECTURES["ELECTRA"]
    expected = plain_value_zeroing(hf_model, IDS, blocks=row.blocks, value=row.value)
    assert scores.metadata["model_head"] == ("trained" if is_kept else "absent")
    assert (scores.values - expected).abs().max() < 1e-5
    assert set(hf_model.state_dict()) == names


@each_encoder
def test_the_users_own_model_is_left_as_it_was(name: str) -> None:
    hf_model = copy.deepcopy(tiny(name))
    modules = {path: type(module) for path, module in hf_model.named_modules()}
    weights = {path: tensor.clone() for path, tensor in hf_model.state_dict().items()}
    config = hf_model.config.to_dict()
    scored(tl_vzero.load_model(hf_model), torch.tensor(IDS))
    assert {path: type(module) for path, module in hf_model.named_modules()} == modules
    assert all(torch.equal(weights[path], tensor) for path, tensor in hf_model.state_dict().items())
    assert hf_model.config.to_dict() == config


def test_electra_without_a_projection_of_its_embeddings() -> None:
    hf_model = encoder("Electra", embedding_size=16)().double()
    model = tl_vzero.load_model(hf_model)
    assert not hasattr(model, "embed_project")
    with torch.no_grad():
        assert (model(torch.tensor([IDS])) - hf_model(input_ids=torch.tensor([IDS])).logits).abs().max() < 1e-9


def test_electras_projected_embeddings_can_be_hooked() -> None:
    model = tl_vzero.load_model(tiny("ELECTRA"))
    with torch.no_grad():
        cache = model.run_with_cache(torch.tensor([IDS]))[1]
    assert cache["embed_ln.hook_out"].shape[-1] == 8
    assert torch.equal(cache["embed_project.hook_out"], cache["blocks.0.hook_in"])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_distilberts_own_names_reach_the_config(activation: str) -> None:
    hf_model = encoder("DistilBert", intermediate_size=None, hidden_dim=40, activation=activation)()
    model = tl_vzero.load_model(hf_model)
    assert (model.cfg.act_fn, model.cfg.d_mlp, model.cfg.eps) == (activation, 40, 1e-12)
    assert scored(model, torch.tensor(IDS)).metadata["engine"] == "closed_form"


# --- ModernBERT ------------------------------------------------------------------------------------------


def test_modernberts_local_blocks_stay_local() -> None:
    model = tl_vzero.load_model(tiny("ModernBERT"))
    values = scored(model, torch.tensor(IDS)).values
    apart = (torch.arange(len(IDS))[:, None] - torch.arange(len(IDS))).abs()
    assert [bool((values[layer][apart > 2] == 0).all()) for layer in range(3)] == [False, True, False]


def test_a_fused_weight_that_is_edited_is_seen() -> None:
    model = tl_vzero.load_model(tiny("ModernBERT"))
    before = scored(model, torch.tensor(IDS)).values
    inside = model.original_model.model.layers[1].attn
    with torch.no_grad():
        fused = next(weight for name, weight in inside.named_parameters() if name.endswith("Wqkv.weight"))
        fused[-4:] = 0
    after = scored(model, torch.tensor(IDS))
    assert after.metadata["engine"] == "closed_form"
    assert torch.equal(after.values[0], before[0]) and not torch.allclose(after.values[1], before[1])
