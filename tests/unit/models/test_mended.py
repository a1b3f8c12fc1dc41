"""What load_model mends in TransformerLens's own adapters, beside the rows of the table of architectures."""

import copy
from typing import Any

import pytest
import torch
from support.architecture_row import IDS, NOT_HERE, Architecture
from support.architectures import ARCHITECTURES
from support.decoder_rows import LATENT, MENDED, last_of_each_group, ungrouped
from support.models import bridge, loaded
from support.references import row_normalized

import tl_vzero
from tl_vzero.errors import ModelError, TLVZeroError

each_latent = pytest.mark.parametrize("name", [row.name for row in LATENT if row.name not in NOT_HERE])


@pytest.mark.parametrize("name", sorted({*MENDED} - NOT_HERE))
def test_a_bridge_of_the_users_own_is_refused(name: str) -> None:
    with pytest.raises((ModelError, RuntimeError)) as refusal:
        tl_vzero.value_zeroing(bridge(ARCHITECTURES[name].tiny()), torch.tensor(IDS))
    # TransformerLens itself cannot take Falcon's projection apart.
    assert isinstance(refusal.value, TLVZeroError) or name.startswith("Falcon")
    if name in {row.name for row in LATENT}:
        assert "as tl_vzero.load_model has it of multi-head latent attention" in str(refusal.value)


@each_latent
@torch.no_grad()
def test_hooks_of_a_latent_attention_have_the_axes_of_every_other(name: str) -> None:
    _, cache = loaded(ARCHITECTURES[name].tiny()).run_with_cache(torch.tensor([IDS]))
    shapes = {part: tuple(cache[f"blocks.1.attn.hook_{part}"].shape[1:]) for part in ("q", "k", "v", "z")}
    assert shapes == {"q": (len(IDS), 4, 8), "k": (len(IDS), 4, 8), "v": (len(IDS), 4, 6), "z": (len(IDS), 4, 6)}


@each_latent
@torch.no_grad()
def test_zeroing_a_latent_attentions_value_leaves_its_keys(name: str) -> None:
    model, ids, seen = loaded(ARCHITECTURES[name].tiny()), torch.tensor([IDS]), {}

    def zero(value: Any, *, hook: Any) -> Any:
        value = value.clone()
        value[:, 3] = 0
        return value

    def keep(x: Any, *, hook: Any) -> None:
        seen[hook.name] = x.clone()

    parts = [f"blocks.1.attn.hook_{part}" for part in ("kv_latent", "k", "z")]
    model.run_with_hooks(ids, fwd_hooks=[(part, keep) for part in parts])
    before = dict(seen)
    model.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_v", zero), *((part, keep) for part in parts)])
    for part in (name for name in before if not name.endswith("hook_in")):
        assert torch.equal(before[part], seen[part]), part
    (mixed,) = (name for name in before if name.endswith("hook_in"))
    assert torch.equal(before[mixed][:, :3], seen[mixed][:, :3]) and not before[mixed].equal(seen[mixed])


@pytest.mark.parametrize("changes", [{"num_ln_in_parallel_attn": 1}, {"bias": True}, {"num_kv_heads": 4}])
def test_falcons_new_decoder_in_its_other_forms(changes: dict[str, Any]) -> None:
    shape = {"new_decoder_architecture": True, "num_kv_heads": 2, **changes}
    row = Architecture(
        "Falcon",
        ungrouped("Falcon", **shape),
        "transformer.h",
        "self_attention.query_key_value",
        last_of_each_group,
    )
    scores = tl_vzero.value_zeroing(loaded(row.tiny()), torch.tensor(IDS))
    assert (scores.normalized().values.double() - row_normalized(row.reference())).abs().max() < 5e-6


def test_the_callers_openai_gpt_stays_as_it_was() -> None:
    hf_model = copy.deepcopy(ARCHITECTURES["OpenAI GPT"].tiny())
    before = [type(block) for block in hf_model.transformer.h]
    tl_vzero.load_model(hf_model)
    assert [type(block) for block in hf_model.transformer.h] == before
    with torch.no_grad():
        assert isinstance(hf_model.transformer.h[0](torch.zeros(1, 3, 16)), list)
