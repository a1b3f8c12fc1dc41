"""The rollout through both stacks of an encoder-decoder: its laws, and a slow reference by plain loops."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models import loaded
from support.paired import PAIRED, READ, STACKS, model_of, stack_options
from torch import Tensor

import tl_vzero
from tl_vzero import Scores

IDS = torch.tensor(READ)


def maps_of(model: Any, method: str = "value_zeroing", **options: Any) -> dict[str, Scores]:
    return {stack: tl_vzero.score(model, IDS, method, **stack_options(stack), **options) for stack in STACKS}


@pytest.fixture(scope="module")
def maps() -> dict[str, Scores]:
    return maps_of(model_of("BART"))


def by_loops(maps: dict[str, Scores], identity: bool) -> Tensor:
    """What a decoder position draws on, followed token by token through the layers."""
    encoder = maps["encoder"].rollout().values[-1].double().tolist()
    decoder, cross = maps["decoder"].values.double().tolist(), maps["cross"].values.double().tolist()
    n_dest, n_src = len(decoder[0]), len(encoder)
    below = [[float(i == j) for j in range(n_dest + n_src)] for i in range(n_dest)]
    layers = []
    for self_map, cross_map in zip(decoder, cross, strict=True):
        here = []
        for i in range(n_dest):
            total = sum(self_map[i]) + sum(cross_map[i])
            row = [0.0] * (n_dest + n_src)
            for k in range(n_dest):
                share = self_map[i][k] / total
                share = (share + (i == k)) / 2 if identity else share
                row = [have + share * passed for have, passed in zip(row, below[k], strict=True)]
            for k in range(n_src):
                share = cross_map[i][k] / total / (2 if identity else 1)
                row = [have + share * passed for have, passed in zip(row, [0.0] * n_dest + encoder[k], strict=True)]
            here.append(row)
        below = here
        layers.append(here)
    return torch.tensor(layers, dtype=torch.float64)


def test_it_is_what_plain_loops_give(maps: dict[str, Scores]) -> None:
    joint = tl_vzero.joint_rollout(**maps)
    assert (joint.values.double() - by_loops(maps, identity=False)).abs().max() < 1e-6
    assert joint.stage == "rollout" and joint.metadata["stack"] == "joint"
    assert joint.src_tokens == maps["decoder"].dest_tokens + maps["encoder"].src_tokens
    assert joint.metadata["encoder_from"] == len(maps["decoder"].dest_tokens)


def test_attention_keeps_half_of_each_token() -> None:
    maps = maps_of(model_of("BART"), "attention")
    assert (tl_vzero.joint_rollout(**maps).values.double() - by_loops(maps, identity=True)).abs().max() < 1e-6


def test_alti_weighs_what_the_decoder_drew_on_by_what_the_residual_stream_brings() -> None:
    maps = maps_of(model_of("BART"), "alti")
    decoder, cross, residual = (
        values.double()
        for values in (maps["decoder"].values, maps["cross"].values, torch.tensor(maps["cross"].metadata["residual"]))
    )
    rows = [[residual[k, i] + cross[k, i].sum() for i in range(cross.shape[1])] for k in range(len(cross))]
    totals = torch.tensor(rows).unsqueeze(-1)
    drawn = decoder / decoder.sum(-1, keepdim=True) * residual.unsqueeze(-1) / totals
    shares = {"decoder": replace(maps["decoder"], values=drawn), "cross": replace(maps["cross"], values=cross / totals)}
    joint = tl_vzero.joint_rollout(**maps).values.double()
    assert (joint - by_loops(maps | shares, identity=False)).abs().max() < 1e-6
    assert torch.allclose(joint.sum(-1), torch.ones(joint.shape[:2]).double())


def test_rows_sum_to_one_and_the_decoder_looks_back_only(maps: dict[str, Scores]) -> None:
    values = tl_vzero.joint_rollout(**maps).values
    n_dest = len(maps["decoder"].dest_tokens)
    assert torch.allclose(values.sum(-1), torch.ones(values.shape[:2]))
    assert not values[..., :n_dest].triu(1).any()
    assert (values[..., n_dest:] > 0).all()


def test_without_cross_values_it_is_the_decoders_own_rollout() -> None:
    silent = copy.deepcopy(PAIRED["BART"].tiny())
    with torch.no_grad():
        for block in silent.model.decoder.layers:
            block.encoder_attn.v_proj.weight.zero_()
            block.encoder_attn.v_proj.bias.zero_()
    maps = maps_of(loaded(silent))
    assert not maps["cross"].values.any() and maps["cross"].empty_rows
    joint = tl_vzero.joint_rollout(**maps).values
    n_dest = len(maps["decoder"].dest_tokens)
    assert torch.allclose(joint[..., :n_dest], maps["decoder"].rollout().values)
    assert not joint[..., n_dest:].any()


def test_words_of_both_sides() -> None:
    model, out = model_of("BART"), {"decoder_inputs": "the hats"}
    maps = {
        stack: tl_vzero.value_zeroing(model, "the dogs", stack=stack, **({} if stack == "encoder" else out))
        for stack in STACKS
    }
    words = tl_vzero.joint_rollout(**maps).words()
    assert words.dest_tokens == ("[SEP]", "[CLS]", "the", "hats")
    assert words.src_tokens == ("[SEP]", "[CLS]", "the", "hats", "[CLS]", "the", "dogs", "[SEP]")
    assert torch.allclose(words.values.sum(-1), torch.ones(words.values.shape[:2]))


def test_it_can_be_kept_and_is_no_map_to_roll_out_again(maps: dict[str, Scores], tmp_path: Any) -> None:
    joint = tl_vzero.joint_rollout(**maps)
    joint.save(tmp_path / "joint.safetensors")
    again = Scores.load(tmp_path / "joint.safetensors")
    assert again.labels() == joint.labels() and torch.equal(again.values, joint.values)
    with pytest.raises(tl_vzero.TLVZeroError, match="rollout already"):
        again.rollout()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param(lambda m: m | {"cross": m["decoder"]}, "cross holds a map of stack='decoder'", id="mixed_up"),
        pytest.param(lambda m: m | {"cross": m["cross"].normalized()}, "normalized, and raw", id="normalized"),
        pytest.param(lambda m: m | {"encoder": m["encoder"].at_layer(0)}, "part of a map", id="one_layer"),
        pytest.param(
            lambda m: m | {"cross": replace(m["cross"], metadata={**m["cross"].metadata, "weights_sha256": "x"})},
            "several methods or models",
            id="another_model",
        ),
        pytest.param(lambda m: m | {"decoder": 3}, "decoder is int", id="no_scores"),
    ],
)
def test_what_is_refused(maps: dict[str, Scores], changed: Any, said: str) -> None:
    from support.state import type_checks_off

    with type_checks_off(), pytest.raises(tl_vzero.TLVZeroError, match=said):
        tl_vzero.joint_rollout(**changed(maps))


def test_maps_of_other_sentences_or_measures_are_refused(maps: dict[str, Scores]) -> None:
    model = model_of("BART")
    other = tl_vzero.value_zeroing(model, IDS[:-1], **stack_options("cross"))
    with pytest.raises(tl_vzero.TLVZeroError, match="different sentences"):
        tl_vzero.joint_rollout(**(maps | {"cross": other}))
    beside = tl_vzero.value_zeroing(model, IDS[:-1], **stack_options("decoder"))
    with pytest.raises(tl_vzero.TLVZeroError, match="different sentences"):
        tl_vzero.joint_rollout(**(maps | {"decoder": beside}))
    euclidean = tl_vzero.value_zeroing(model, IDS, distance="euclidean", **stack_options("cross"))
    with pytest.raises(tl_vzero.TLVZeroError, match="distance"):
        tl_vzero.joint_rollout(**(maps | {"cross": euclidean}))
