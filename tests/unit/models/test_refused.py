"""What TransformerLens reads and tl_vzero refuses: blocks whose mixing no zeroed value would show."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.architecture_row import IDS, LINE
from support.architectures import ARCHITECTURES
from support.models import bridge, hf_gpt2, hf_llama, hf_neox, loaded, tokenizer
from support.refused_rows import REFUSED, Refused
from torch import Tensor, nn
from typer.testing import CliRunner

import tl_vzero
from tl_vzero.cli import app
from tl_vzero.errors import ModelError


@pytest.mark.parametrize("row", [row for row in REFUSED if LINE in row.lines], ids=lambda row: row.name)
def test_it_is_refused_with_the_reason(row: Refused) -> None:
    hf_model = row.build()
    with torch.no_grad():
        before = hf_model(torch.tensor([IDS])).logits
    with pytest.raises(ModelError, match=row.reason):
        loaded(hf_model)
    with torch.no_grad():
        assert torch.equal(hf_model(torch.tensor([IDS])).logits, before)


def test_a_bridge_of_the_users_own_is_refused_at_the_first_score() -> None:
    (row,) = [row for row in REFUSED if row.name == "Falcon H1"]
    with pytest.raises(ModelError, match=row.reason):
        tl_vzero.value_zeroing(bridge(row.build()), torch.tensor(IDS))


@pytest.mark.parametrize(("wanting", "lacking"), [("LFM 2", "1 of 2 blocks"), ("Mamba", "2 of 2 blocks")])
def test_it_says_how_many_blocks_have_no_attention(wanting: str, lacking: str) -> None:
    (row,) = [row for row in REFUSED if row.name == wanting]
    with pytest.raises(ModelError, match=lacking):
        loaded(row.build())


class ShiftsTokens(nn.Module):
    """An MLP that also reads the position before, as RWKV's does."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + 0.1 * x.roll(1, dims=1))


@pytest.mark.parametrize("make", [hf_gpt2, hf_llama, hf_neox])
def test_one_block_that_mixes_beside_its_values(make: Any) -> None:
    model = bridge(make())
    block = model.blocks[1]
    block.mlp.forward = ShiftsTokens(copy.deepcopy(block.mlp)).forward
    with pytest.raises(ModelError, match="block 1 mixes positions by other means"):
        tl_vzero.value_zeroing(model, torch.tensor(IDS))


def test_a_hook_of_the_users_own_may_mix() -> None:
    model = bridge(hf_gpt2())
    model.blocks[1].hook_mlp_out.add_hook(lambda x, hook: x.mean(dim=1, keepdim=True).expand_as(x))
    scores = tl_vzero.value_zeroing(model, torch.tensor(IDS))
    assert isinstance(scores, tl_vzero.Scores) and scores.values.any()


@pytest.mark.skipif(LINE != "3.9", reason="TransformerLens 4 rotates as Cohere's models do")
@pytest.mark.parametrize("name", ["Command R", "Command R 7B"])
def test_a_bridge_that_computes_something_else(name: str) -> None:
    with pytest.raises(ModelError, match="computes other hidden states than Cohere"):
        loaded(ARCHITECTURES[name].tiny())


def test_a_bridge_that_is_made_to_compute_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import sources

    build = sources.build_bridge_from_module

    def build_with_another_norm(*arguments: Any, **options: Any) -> Any:
        model = build(*arguments, **options)
        model.blocks[0].ln1.register_forward_hook(lambda module, inputs, output: 1.1 * output)
        return model

    monkeypatch.setattr(sources, "build_bridge_from_module", build_with_another_norm)
    with pytest.raises(ModelError, match="other hidden states than GPT2LMHeadModel"):
        tl_vzero.load_model(hf_gpt2(), tokenizer())


def test_a_folder_with_code_of_its_own_is_refused_until_that_is_trusted(tmp_path: Path) -> None:
    """As diffusion language models come: transformers has no class for them."""
    written = {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"}
    config = {"architectures": ["LLaDAModelLM"], "model_type": "llada", "auto_map": written}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        tl_vzero.load_model(str(tmp_path))
    assert "diffusion language models (LLaDA, " in CliRunner().invoke(app, ["models"]).output
