"""Text with images or sounds in it: the maps of plain hooks, what each position is, and prompts that cannot be read."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architecture_row import IDS, LINE
from support.covered import errors_of, route_of
from support.engines import ENGINES
from support.mixed_rows import AFTER, BEFORE, MIXED, ON_THIS_LINE, STANDS_FOR, model_of, prompt, random, reference
from support.models import hf_llama, loaded
from support.state import assert_same, lens_hooks, torch_hooks

import tl_vzero
from tl_vzero import Scores
from tl_vzero.cli.listings import coverage
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError

# TransformerLens 3.9 warns of its own alias in LLaVA's encoder of images.
pytestmark = pytest.mark.filterwarnings("ignore:Hook alias:UserWarning")
each_name = pytest.mark.parametrize("name", ON_THIS_LINE)
# An image of 2 x 3 patches between the others, whatever line it is.
QWEN, AUDIO = "Qwen 3 VL", "Qwen 2 Audio"
PATCHES = ("r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2")
llava = pytest.mark.skipif(LINE == "3.9", reason="TransformerLens 3.9 reads its images otherwise")


def scored(name: str, read: Any = None, **options: Any) -> Scores:
    scores = tl_vzero.value_zeroing(model_of(name), MIXED[name].read() if read is None else read, **options)
    assert isinstance(scores, Scores)
    return scores


@each_name
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_map_is_that_of_plain_hooks(name: str, attention: str, engine: str) -> None:
    scores = tl_vzero.value_zeroing(model_of(name, attention), MIXED[name].read(), engine=engine)
    assert isinstance(scores, Scores) and scores.values.shape == reference(name).shape
    normalised, raw = errors_of(scores, reference(name))
    bound = coverage()["architectures"][name]["lines"][LINE]
    assert normalised <= bound["normalised"] <= 5e-6 and raw <= bound["raw"] <= 1e-3
    assert engine == "hooks" or route_of(scores) == bound["route"]


@each_name
def test_what_is_seen_or_heard_matters(name: str) -> None:
    """Or else the placeholders' own embeddings would be what is read."""
    read = MIXED[name].read()
    (argument,) = {"pixel_values", "input_features"} & set(read)
    other = scored(name, {**read, argument: read[argument].flip(-1)})
    assert (other.values - scored(name).values).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "argument"), [(QWEN, "pixel_values"), (AUDIO, "input_features")])
def test_a_model_is_left_as_it_was(name: str, argument: str) -> None:
    model = model_of(name)

    def state() -> dict[str, Any]:
        with torch.no_grad():
            logits = model(torch.tensor([IDS]), return_type="logits")
        return {"logits": logits, "torch": torch_hooks(model), "lens": lens_hooks(model)}

    before = state()
    scored(name, engine="hooks")
    read = MIXED[name].read()
    with pytest.raises(ModelError, match="failed"):
        tl_vzero.value_zeroing(model, {**read, argument: read[argument][..., :-1]})
    assert_same(before, state(), "state")


def test_positions_are_patches_and_words_in_the_order_read() -> None:
    scores = scored(QWEN)
    assert scores.tokens == (*map(str, BEFORE), *PATCHES, *map(str, AFTER))
    assert scores.kinds == ("text",) * 2 + ("image",) * 6 + ("text",) * 3
    assert scores.metadata["special"] == [False] * 11


@llava
def test_a_patch_is_labelled_by_where_it_lies() -> None:
    """Where the encoder of images mixes nothing, the pixels of one patch move that position and no other."""
    hf_model = copy.deepcopy(MIXED["LLaVA"].tiny())
    for name, weight in hf_model.model.vision_tower.named_parameters():
        weight.data.mul_(0.0 if "out_proj" in name else 1.0)
    model = tl_vzero.load_model(hf_model)
    read = MIXED["LLaVA"].read()
    changed = read["pixel_values"].clone()
    changed[..., 4:8, 8:12] += 1
    embedded = [tl_vzero.values_of(model, one).values[0] for one in (read, {**read, "pixel_values": changed})]
    moved = (embedded[0] - embedded[1]).abs().sum((-1, -2)) > 0
    tokens = scored("LLaVA").tokens
    assert [token for token, far in zip(tokens, moved, strict=True) if far] == ["r1c2"]


def test_frames_are_labelled_by_when_they_begin() -> None:
    """Whisper's spectrogram has a column each 10 ms, and four of them make a frame of Qwen's."""
    scores = scored(AUDIO)
    assert scores.tokens[2:-3] == ("0.00 s", "0.04 s", "0.08 s", "0.12 s", "0.16 s", "0.20 s")
    assert scores.kinds == ("text",) * 2 + ("sound",) * 6 + ("text",) * 3


@llava
def test_two_images_in_one_text() -> None:
    ids = torch.tensor([[*BEFORE, *[STANDS_FOR] * 9, 5, *[STANDS_FOR] * 9, *AFTER]])
    read = {"input_ids": ids, "pixel_values": random(2, 3, 12, 12)}
    scores = scored("LLaVA", read)
    assert errors_of(scores, MIXED["LLaVA"].reference(read))[0] <= 5e-6
    assert scores.kinds[1:4] == ("text", "image 1", "image 1") and scores.kinds[12:14] == ("image 2", "image 2")
    assert scores.tokens[2] == scores.tokens[12] == "r0c0"


def test_a_list_is_one_prompt_each_with_images_of_its_own() -> None:
    reads = [MIXED[QWEN].read(), {**MIXED[QWEN].read(), "pixel_values": random(24, 96, seed=5)}]
    for engine in ENGINES:
        scores = tl_vzero.value_zeroing(model_of(QWEN), reads, engine=engine)
        assert isinstance(scores, list)
        for one, read in zip(scores, reads, strict=True):
            assert errors_of(one, MIXED[QWEN].reference(read))[0] <= 5e-6


def test_methods_of_the_clean_run_read_it_too() -> None:
    model = model_of(QWEN)
    attention = tl_vzero.score(model, MIXED[QWEN].read(), method="attention")
    assert isinstance(attention, Scores) and attention.tokens[2:8] == PATCHES
    hf_model = copy.deepcopy(MIXED[QWEN].tiny())
    hf_model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = hf_model(**MIXED[QWEN].read(), output_attentions=True).attentions
    assert (attention.values - torch.stack(expected)[:, 0].mean(1)).abs().max() < 1e-5


def test_with_a_tokenizer_patches_are_words_of_their_own_and_none_is_special() -> None:
    from support.models import tokenizer

    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [words.convert_ids_to_tokens(STANDS_FOR) or "<image>"]})
    scores = tl_vzero.value_zeroing(MIXED[AUDIO].loaded(tokenizer=words), MIXED[AUDIO].read())
    assert isinstance(scores, Scores)
    assert scores.tokens[2] == "0.00 s" and scores.special_sources == (True,) + (False,) * 10
    assert scores.words().kinds == scores.kinds


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"input_ids": torch.tensor([[2, 17, STANDS_FOR, 9]])}, InputError, "1 tokens for its images .* makes 6"),
        ({"pixel_values": None}, InputError, "6 tokens for an image and no 'pixel_values'"),
        ({"pixel_values": [[1.0]]}, InputTypeError, "'pixel_values' .* is list"),
        ({"pixel_values": torch.full((24, 96), torch.nan)}, InputError, "NaN"),
        ({"attention_mask": torch.tensor([[0] + [1] * 10])}, InputError, "without padding"),
        ({"pixel_values_videos": torch.ones(1)}, InputError, "'pixel_values_videos', which is not read here"),
        ({"input_ids": torch.ones(2, 11, dtype=torch.long)}, InputError, r"expected \[1, position\]"),
        ({"input_ids": None}, InputError, "input_ids of inputs.0. are none"),
        ({"image_grid_thw": torch.ones(3, dtype=torch.long)}, InputError, "cannot be laid out"),
    ],
)
def test_a_prompt_that_cannot_be_read(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    read = (
        MIXED[QWEN].read() | change | ({"pixel_values_videos": None} if change.get("pixel_values", 0) is None else {})
    )
    with pytest.raises(kind, match=said):
        tl_vzero.value_zeroing(model_of(QWEN), read)


def test_what_goes_with_no_prompt() -> None:
    with pytest.raises(InputTypeError, match=r"inputs\[1\] is str: expected what the model's processor returns"):
        tl_vzero.value_zeroing(model_of(QWEN), [MIXED[QWEN].read(), "a hat"])
    with pytest.raises(InputError, match="the processor returned them"):
        tl_vzero.value_zeroing(model_of(QWEN), MIXED[QWEN].read(), attention_mask=torch.ones(1, 11))
    with pytest.raises(InputError, match="'pixel_values', which is not read here"):
        tl_vzero.value_zeroing(loaded(hf_llama()), prompt(2, pixel_values=random(1, 3, 4, 4)))


@pytest.mark.skipif(LINE != "3.9", reason="4.3 reads them as the model does")
@pytest.mark.parametrize("name", ["LLaVA", "Gemma 3 with images"])
def test_images_that_transformer_lens_reads_otherwise_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="makes something else of an image"):
        tl_vzero.value_zeroing(model_of(name), MIXED[name].read())


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_package_that_an_adapter_asks_for_is_named_and_not_installed(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tl_vzero.models.hugging_face.find_spec", lambda name: None)
    hf_model = copy.deepcopy(MIXED[QWEN].tiny())
    if where == "folder":
        hf_model.save_pretrained(tmp_path)
    with pytest.raises(DependencyError, match="torchvision, which is not installed"):
        tl_vzero.load_model(tmp_path if where == "folder" else hf_model)
