"""Activation patching at every site: TransformerLens's own tables, and one plain run for each place."""

import warnings
from typing import Any

import pytest
import torch
from support.effects import CORRUPTED, TARGET, TEXT, double_model, ids_of_text
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.effects.patching import SITES
from tl_vzero.errors import InputError, ModelError
from tl_vzero.models.contracts import check_contracts, check_writes_act
from tl_vzero.models.run import eager_attention

CLEAN_IDS, CORRUPTED_IDS = ids_of_text(TEXT).reshape(1, -1), ids_of_text(CORRUPTED).reshape(1, -1)
PAIR = (16, 17)
each_route = pytest.mark.parametrize(
    ("route", "architecture"),
    [
        ("HookedEncoder", "bert"),
        ("HookedTransformer", "gpt2"),
        ("load_model", "bert"),
        ("load_model", "gpt2"),
        ("load_model", "llama"),  # grouped queries
    ],
)
# TransformerLens's function, and its function of each head.
THEIRS = {
    "resid_pre": ("get_act_patch_resid_pre", None),
    "attn_out": ("get_act_patch_attn_out", None),
    "mlp_out": ("get_act_patch_mlp_out", None),
    "q": (None, "get_act_patch_attn_head_q_by_pos"),
    "k": (None, "get_act_patch_attn_head_k_by_pos"),
    "v": (None, "get_act_patch_attn_head_v_by_pos"),
    "z": (None, "get_act_patch_attn_head_out_by_pos"),
    "pattern": (None, "get_act_patch_attn_head_pattern_by_pos"),
}


def difference(logits: Tensor) -> Tensor:
    return logits[0, TARGET, PAIR[0]] - logits[0, TARGET, PAIR[1]]


def patched(model: Any, site: Any, **options: Any) -> Any:
    return tl_vzero.activation_patching(
        model, TEXT, CORRUPTED, site, **({"target": TARGET, "target_ids": PAIR} | options)
    )


def hears_patterns(model: Any) -> bool:
    """Whether a write to the first block's pattern changes the logits."""
    with torch.no_grad(), eager_attention(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 4.3 says so too
        plain = model(CLEAN_IDS, return_type="logits")
        hook = ("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
        return not torch.equal(plain, model.run_with_hooks(CLEAN_IDS, fwd_hooks=[hook]))


@each_route
@pytest.mark.parametrize("site", SITES)
def test_as_transformer_lens_itself(route: str, architecture: str, site: str) -> None:
    from transformer_lens import patching

    model = double_model(route, architecture)
    if site == "attn_out" and route != "HookedEncoder" and architecture == "bert":
        pytest.skip("its hook_attn_out lies behind a norm")
    if site == "pattern" and not hears_patterns(model):
        pytest.skip("a write to its pattern does nothing")
    whole, of_head = THEIRS[site]
    ours = patched(model, site, per_head=whole is None)

    def change(logits: Tensor) -> Tensor:
        """What is measured, before their table rounds it to float32."""
        return difference(logits) - ours.corrupted

    with torch.no_grad(), eager_attention(model):
        _, cache = model.run_with_cache(CLEAN_IDS)
        theirs = getattr(patching, whole or of_head)(model, CORRUPTED_IDS, cache, change)
    if whole is None:  # [layer, position, head], of patterns [layer, head, position]
        theirs = theirs if site == "pattern" else theirs.transpose(1, 2)
    torch.testing.assert_close(ours.values.float(), theirs, atol=1e-6, rtol=0)


def clean_and_corrupted(model: Any, names: list[str]) -> list[dict[str, Tensor]]:
    with torch.no_grad(), eager_attention(model):
        runs = [
            model.run_with_cache(ids, names_filter=lambda name: name in names)[1] for ids in (CLEAN_IDS, CORRUPTED_IDS)
        ]
    return [{name: run[name].clone() for name in names} for run in runs]


def by_hand(model: Any, name: str, replaced: Tensor) -> Tensor:
    """The change of the difference with each position of an activation replaced, one run each."""

    @torch.no_grad()
    def after(position: int | None) -> Tensor:
        def hook_function(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            if position is not None:
                x[0, position] = replaced[0, position]
            return x

        return difference(model.run_with_hooks(CORRUPTED_IDS, fwd_hooks=[(name, hook_function)]))

    return torch.stack([after(position) - after(None) for position in range(CORRUPTED_IDS.shape[1])])


@each_route
def test_the_attention_output_is_what_attention_adds(route: str, architecture: str) -> None:
    """Before the norm that a bridged BERT's hook_attn_out lies behind."""
    model, values = double_model(route, architecture), []
    for layer in range(3):
        z, site = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.attn.o.hook_out"
        if site not in model.hook_dict:
            site = f"blocks.{layer}.hook_attn_out"
        clean = clean_and_corrupted(model, [z, site])[0]
        attention = model.blocks[layer].attn
        bias = getattr(attention, "b_O", None)
        written = torch.einsum("bihd,hdf->bif", clean[z], attention.W_O) + (0 if bias is None else bias)
        torch.testing.assert_close(clean[site], written)
        values.append(by_hand(model, site, written))
    torch.testing.assert_close(patched(model, "attn_out").values, torch.stack(values), atol=2e-6, rtol=1e-5)


@each_route
def test_a_row_of_the_pattern_mixes_the_corrupted_values(route: str, architecture: str) -> None:
    """Also where a write to the pattern does nothing."""
    model, values = double_model(route, architecture), []
    for layer in range(3):
        pattern, value, z = (f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "v", "z"))
        clean, corrupted = clean_and_corrupted(model, [pattern, value, z])
        replaced = torch.zeros_like(corrupted[z])
        group = clean[pattern].shape[1] // corrupted[value].shape[2]
        for head in range(clean[pattern].shape[1]):
            replaced[0, :, head] = clean[pattern][0, head] @ corrupted[value][0, :, head // group]
        values.append(by_hand(model, z, replaced))
    torch.testing.assert_close(patched(model, "pattern").values, torch.stack(values), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("site", ["resid_pre", "pattern", "q"])
def test_masks_segments_and_parts(site: str) -> None:
    """Padded rows are as the sentences alone, segments are read, and chosen places are parts of the whole."""
    model = double_model("load_model", "bert")
    padding, ones = torch.zeros(1, 2, dtype=torch.long), torch.ones_like(CLEAN_IDS)
    types = (torch.arange(CLEAN_IDS.shape[1]) > 4).long().reshape(1, -1)
    plain = tl_vzero.activation_patching(model, CLEAN_IDS, CORRUPTED_IDS, site, target=TARGET, target_ids=PAIR)
    whole = tl_vzero.activation_patching(
        model,
        torch.cat([CLEAN_IDS, padding], 1),
        torch.cat([padding, CORRUPTED_IDS], 1),
        site,
        attention_mask=torch.cat([ones, padding], 1),
        corrupted_attention_mask=torch.cat([padding, ones], 1),
        token_type_ids=torch.cat([types, padding], 1),
        corrupted_token_type_ids=torch.cat([padding, types], 1),
        target=TARGET,
        target_ids=PAIR,
    )
    assert whole.clean != pytest.approx(plain.clean)  # another prediction with two segments
    part = patched(model, site, layers=[2, 0], sources=[3, 1])
    torch.testing.assert_close(part.values, plain.values[[2, 0]][:, [3, 1]])
    first = whole.values[0] if site == "resid_pre" else whole.values[0, 1:4]
    assert first.abs().max() > 1e-4


def test_the_residual_stream_of_all_that_differs_is_the_clean_sentence() -> None:
    """In front of the first block only three positions differ; put in one by one, each tells of its own token."""
    effect = patched(double_model("load_model", "gpt2"), "resid_pre")
    same = (CLEAN_IDS == CORRUPTED_IDS)[0]
    assert effect.method == "resid_pre_patching" and effect.values[0, same].abs().max() < 1e-12
    assert effect.values[0, ~same].abs().min() > 1e-6
    assert effect.values[-1, torch.arange(len(same)) > TARGET].abs().max() < 1e-12  # causal


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_model_is_left_as_it_was(site: str, architecture: str) -> None:
    model = double_model("load_model", architecture)
    with left_as_found(model):
        effect = patched(model, site, layers=1)
    assert site in repr(effect) or site == "v"


def test_bad_sites() -> None:
    model = double_model("load_model", "bert")
    with type_checks_off(), left_as_found(model):
        with pytest.raises(InputError, match=r"'values'.*resid_pre, attn_out"):
            patched(model, "values")
        with pytest.raises(InputError, match=r"per_head=True and site 'mlp_out'.*q, k, v, z, pattern"):
            patched(model, "mlp_out", per_head=True)
        model.add_hook("blocks.1.attn.hook_z", lambda z, hook: z / 2)
        try:
            with pytest.raises(ModelError, match=r"blocks\.1\.attn\.hook_z is not the pattern's mean"):
                patched(model, "pattern")
        finally:
            model.reset_hooks()


@pytest.mark.filterwarnings("ignore:A hook on attention")  # of 4.3 itself
def test_a_site_that_is_not_heard_is_refused() -> None:
    model = double_model("load_model", "bert")
    sites = check_contracts(model)
    with (
        left_as_found(model),
        pytest.raises(ModelError, match=r"zeroing blocks\.0\.attn\.hook_pattern does not change"),
    ):
        check_writes_act(model, sites, sites.patterns)
