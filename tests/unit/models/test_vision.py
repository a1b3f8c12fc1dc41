"""Vision models: patches as positions, the maps of plain hooks, and images that cannot be read."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import hf_bert, loaded
from support.signal_checks import assert_of_plain_hooks, assert_right, left_as_found
from support.signal_rows import IMAGE, ON_THIS_LINE, SIGNALS, VISION, model_of, own_bridge, reference, signal_model
from support.state import type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.models.facts import facts_of

NAMES = [name for name in ON_THIS_LINE if SIGNALS[name].signal is IMAGE]
OTHER = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(7))
PATCHES = [f"r{row}c{column}" for row in range(3) for column in range(4)]

each_name = pytest.mark.parametrize("name", NAMES)


@each_name
def test_the_map_is_that_of_plain_hooks(name: str) -> None:
    assert_of_plain_hooks(name, model_of(name))


@each_name
def test_the_map_of_the_users_own_bridge_is_that_of_plain_hooks(name: str) -> None:
    assert_of_plain_hooks(name, own_bridge(SIGNALS[name].tiny()))


def test_positions_are_the_models_own_tokens_and_patches_row_by_row() -> None:
    """Changing the pixels of one patch changes that position's embedding and no other."""
    model, changed = model_of("DeiT"), IMAGE.clone()
    changed[:, 8:16, 16:24] += 1
    scores = tl_vzero.value_zeroing(model, IMAGE)
    assert list(scores.dest_tokens) == list(scores.src_tokens) == ["[CLS]", "[DIST]", *PATCHES]
    assert scores.metadata["special"] == [True] * 2 + [False] * 12
    assert scores.metadata["signal"] == {"kind": "image", "grid": [3, 4], "patch": [8, 8]}
    embedded = [model.run_with_cache(image.unsqueeze(0))[1]["blocks.0.hook_in"][0] for image in (IMAGE, changed)]
    moved = (embedded[0] - embedded[1]).abs().sum(-1) > 0
    assert [token for token, far in zip(scores.dest_tokens, moved, strict=True) if far] == ["r1c2"]


def test_patches_form_no_words() -> None:
    scores = tl_vzero.value_zeroing(model_of("ViT"), IMAGE)
    assert scores.words().dest_tokens == scores.dest_tokens
    assert torch.equal(scores.rollout().words().values, scores.rollout().values)


@pytest.mark.parametrize("images", [torch.stack([IMAGE, OTHER]), [IMAGE, OTHER], [IMAGE.numpy(), OTHER.numpy()]])
def test_several_images_give_a_list(images: Any) -> None:
    scores = tl_vzero.value_zeroing(model_of("ViT"), images)
    assert isinstance(scores, list) and len(scores) == 2
    for of_image, expected in zip(scores, [reference("ViT"), SIGNALS["ViT"].reference(OTHER)], strict=True):
        assert_right(of_image, expected)


@pytest.mark.parametrize("images", [IMAGE.unsqueeze(0), [IMAGE]])
def test_a_list_of_one_gives_a_list(images: Any) -> None:
    assert isinstance(tl_vzero.value_zeroing(model_of("ViT"), images), list)


def test_spans_of_patches_are_zeroed_jointly() -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    closed = tl_vzero.value_zeroing(model_of("ViT"), IMAGE, spans=rows)
    hooked = tl_vzero.value_zeroing(model_of("ViT"), IMAGE, spans=rows, engine="hooks")
    assert closed.src_tokens[0] == "r0c0 r0c1 r0c2 r0c3" and closed.values.shape == (3, 13, 2)
    assert ((closed.values - hooked.values).abs() / hooked.values).max() < 1e-3


def test_attention_gives_the_patterns() -> None:
    hf_model = copy.deepcopy(SIGNALS["ViT"].tiny())
    hf_model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = torch.stack(hf_model(IMAGE.unsqueeze(0), output_attentions=True).attentions)[:, 0]
    scores = tl_vzero.score(model_of("ViT"), IMAGE, "attention")
    assert torch.allclose(scores.values, patterns.mean(1), atol=1e-6)


def test_methods_that_read_the_weights_are_defined() -> None:
    scores = tl_vzero.score(model_of("ViT"), IMAGE, "attention_norm")
    assert scores.values.shape == (3, 13, 13) and bool((scores.values > 0).any())


def test_the_norm_after_the_last_block() -> None:
    by_engine = [
        tl_vzero.value_zeroing(model_of("ViT"), IMAGE, final_norm=True, engine=engine) for engine in ("auto", "hooks")
    ]
    plain = tl_vzero.value_zeroing(model_of("ViT"), IMAGE)
    assert not torch.allclose(by_engine[0].values[-1], plain.values[-1], rtol=0.01, atol=0)
    assert torch.allclose(by_engine[0].values, by_engine[1].values, rtol=1e-2, atol=1e-7)


def test_the_callers_own_cache() -> None:
    model = model_of("ViT")
    _, cache = model.run_with_cache(IMAGE.unsqueeze(0))
    assert_right(tl_vzero.value_zeroing(model, IMAGE, cache=cache), reference("ViT"))
    with pytest.raises(InputError, match="cache holds another activation"):
        tl_vzero.value_zeroing(model, OTHER, cache=cache)


def test_the_hooks_zero_a_patch_in_the_running_model() -> None:
    model = model_of("ViT")
    hooks = tl_vzero.value_zeroing_hooks(model, positions=[3], layers=1)
    with torch.no_grad():
        zeroed = model.run_with_hooks(IMAGE.unsqueeze(0), fwd_hooks=hooks)
        assert not torch.equal(zeroed, model(IMAGE.unsqueeze(0)))


def test_a_folder_is_read_with_the_head_it_has(tmp_path: Path) -> None:
    SIGNALS["ViT"].tiny().save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path)
    assert facts_of(model).head == "trained"
    assert_right(tl_vzero.value_zeroing(model, IMAGE), reference("ViT"))


def test_a_folder_without_head_or_pooler_is_read(tmp_path: Path) -> None:
    """DINO's checkpoints are such."""
    hf_model = signal_model("ViTModel", VISION)
    weights = {name: tensor for name, tensor in hf_model.state_dict().items() if not name.startswith("pooler")}
    hf_model.save_pretrained(tmp_path, state_dict=weights)
    model = tl_vzero.load_model(tmp_path)
    assert facts_of(model).head == "absent"
    assert_right(tl_vzero.value_zeroing(model, IMAGE), reference("ViT without a head"))


def test_a_folder_that_lacks_a_block_is_refused(tmp_path: Path) -> None:
    hf_model = signal_model("ViTModel", VISION)
    weights = {name: tensor for name, tensor in hf_model.state_dict().items() if "layers.1" not in name}
    hf_model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"lack .* tensors of the model, first layers.1"):
        tl_vzero.load_model(tmp_path)


def test_a_model_in_float64_is_scored_in_float64() -> None:
    model = tl_vzero.load_model(SIGNALS["ViT"].tiny(), dtype=torch.float64)
    scores = tl_vzero.value_zeroing(model, IMAGE)
    assert scores.values.dtype == torch.float64
    # Hugging Face's softmax is float32 in a float64 model, too.
    assert ((scores.values - reference("ViT")).abs() / reference("ViT")).max() < 1e-5


@each_name
def test_a_model_is_left_as_it_was(name: str) -> None:
    model = own_bridge(SIGNALS[name].tiny())
    with left_as_found(model, IMAGE):
        tl_vzero.value_zeroing(model, IMAGE)
        tl_vzero.value_zeroing(model, IMAGE, engine="hooks", final_norm=True)
        tl_vzero.score(model, IMAGE, "attention")
        with pytest.raises(InputError):
            tl_vzero.value_zeroing(model, [IMAGE, IMAGE[:2]])
        with pytest.raises(InputError, match="ZeroDivisionError"):
            tl_vzero.value_zeroing(model, IMAGE, distance=lambda clean, changed: clean[..., 0] / (1 // 0))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("a cat", r"inputs is str: expected an image.*\[channel, height, width\].*image processor"),
        (["a cat"], r"inputs\[0\] is str: expected an image"),
        (torch.tensor([2, 5, 9]), r"inputs is of torch.int64: expected an image, a tensor of floats"),
        ((255 * IMAGE.abs()).to(torch.uint8), "inputs is of torch.uint8: .*scaled, normalised"),
        (IMAGE[:1], r"inputs\[0\] has shape \[1, 24, 32\]: expected \[3, 24, 32\]"),
        (IMAGE.permute(1, 2, 0), r"has shape \[24, 32, 3\]: expected \[3, 24, 32\]"),
        (torch.zeros(2, 3, 24, 24), r"inputs\[0\] has shape \[3, 24, 24\]: expected \[3, 24, 32\].*resized"),
        ([IMAGE, IMAGE[0]], r"inputs\[1\] has shape \[24, 32\]"),
        (torch.zeros(0, 3, 24, 32), r"has shape \[0, 3, 24, 32\]"),
        (IMAGE / 0, "NaN or infinity"),
        ([], "empty list"),
        (np.array(["a"], dtype=object), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused(inputs: Any, said: str) -> None:
    with type_checks_off(), pytest.raises((InputError, InputTypeError), match=said):
        tl_vzero.value_zeroing(model_of("ViT"), inputs)


def test_a_mask_or_a_rate_beside_an_image() -> None:
    with pytest.raises(InputError, match="attention_mask given with an image"):
        tl_vzero.value_zeroing(model_of("ViT"), IMAGE, attention_mask=torch.ones(1, 13))
    with pytest.raises(InputError, match="sampling_rate given, and this model reads no sound"):
        tl_vzero.value_zeroing(model_of("ViT"), IMAGE, sampling_rate=16_000)


@pytest.mark.parametrize("pixels", [IMAGE, IMAGE.unsqueeze(0), IMAGE[0, 0]])
def test_pixels_for_a_text_model(pixels: Tensor) -> None:
    with pytest.raises(InputTypeError, match=r"ids are torch.float32.*reads tokens, no image and no sound"):
        tl_vzero.value_zeroing(loaded(hf_bert()), pixels)


def test_the_jacobian_is_that_of_a_block_on_an_image() -> None:
    model = model_of("ViT")
    _, cache = model.run_with_cache(IMAGE.unsqueeze(0))
    block = model.blocks[0]

    def output(read: torch.Tensor) -> torch.Tensor:
        written = block(read)
        return written[0] if isinstance(written, tuple) else written

    jacobian = torch.autograd.functional.jacobian(output, cache["blocks.0.hook_in"])[0, :, :, 0]
    sizes = jacobian.permute(0, 2, 1, 3).flatten(2).norm(dim=-1)
    scores = tl_vzero.score(model, IMAGE, "hta")
    torch.testing.assert_close(scores.normalized().values[0], sizes / sizes.sum(-1, keepdim=True), atol=5e-6, rtol=0)
