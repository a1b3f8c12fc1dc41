"""The laws on trained weights that a package ships: AntiBERTy (Ruffolo et al. 2021), a masked model of antibodies."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plain_hooks import plain_value_zeroing
from support.references import row_normalized
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

import tl_vzero

SPEC = find_spec("antiberty")
pytestmark = pytest.mark.skipif(SPEC is None, reason="antiberty, which ships the weights, is not installed")
MODELS = Path((SPEC.submodule_search_locations or [""])[0] if SPEC else "", "trained_models")
FOLDER = MODELS / "AntiBERTy_md_smooth"

HEAVY = "E V Q L V [MASK] S G P E V K"  # how the heavy chain of an antibody begins, its sixth residue masked
MASKED = 6
SPECIES = ["Camel", "Human", "Mouse", "Rabbit", "Rat", "Rhesus"]  # AntiBERTyRunner.LABEL_TO_SPECIES
EXACT = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return BertTokenizer(vocab=str(MODELS / "vocab.txt"), do_lower_case=False)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(FOLDER / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}


@pytest.fixture(scope="module")
def hf_model(weights: dict[str, Tensor]) -> Any:
    """Its masked model in Hugging Face's class, by the weights' names and not by any loader."""
    model = BertForMaskedLM(BertConfig.from_pretrained(FOLDER, local_files_only=True)).double().eval()
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert all(name.startswith("cls.predictions.decoder") for name in missing), missing
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """As a user loads it, from the installed package's folder."""
    return tl_vzero.load_model(FOLDER, tokenizer)


@pytest.mark.parametrize("engine", ["closed_form", "hooks"])
def test_maps_are_those_of_plain_hooks(model: Any, hf_model: Any, tokenizer: Any, engine: Any) -> None:
    expected = reference(hf_model, tokenizer)
    scores = tl_vzero.value_zeroing(model, HEAVY, engine=engine)
    assert (scores.normalized().values.double() - row_normalized(expected)).abs().max() < 5e-6
    felt = expected >= 1e-7
    assert ((scores.values.double() - expected).abs() / expected)[felt].max() < 1e-3


_REFERENCE: list[Tensor] = []


def reference(hf_model: Any, tokenizer: Any) -> Tensor:
    """In float64, made once."""
    if not _REFERENCE:
        ids = tokenizer(HEAVY)["input_ids"]
        _REFERENCE.append(plain_value_zeroing(hf_model, ids, blocks="bert.encoder.layer", value="attention.self.value"))
    return _REFERENCE[0]


@torch.no_grad()
def logits_without(hf_model: Any, ids: Tensor, layer: int, source: int) -> Tensor:
    """The logits with one position's value zeroed in one layer, by a hook of torch's."""

    def zero(_: Any, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, source] = 0
        return output

    handle = hf_model.bert.encoder.layer[layer].attention.self.value.register_forward_hook(zero)
    try:
        logits: Tensor = hf_model(ids).logits[0]
        return logits
    finally:
        handle.remove()


def test_it_knows_the_residue_and_its_effects_are_those_of_plain_hooks(hf_model: Any, tokenizer: Any) -> None:
    model = tl_vzero.load_model(FOLDER, tokenizer, dtype=torch.float64)
    assert tokenizer.convert_ids_to_tokens(tokenizer(HEAVY)["input_ids"])[MASKED] == "[MASK]"
    effect = tl_vzero.zero_ablation(model, HEAVY, target_ids=("Q", "E"))
    assert {label for label, _ in effect.predicted[:2]} == {"Q", "E"}
    ids = torch.tensor([tokenizer(HEAVY)["input_ids"]])
    chosen = tokenizer.convert_tokens_to_ids(["Q", "E"])
    with torch.no_grad():
        clean = hf_model(ids).logits[0, MASKED, chosen]
    for layer, source in ((0, 1), (3, 5), (7, MASKED)):
        changed = logits_without(hf_model, ids, layer, source)[MASKED, chosen]
        expected = (changed[0] - changed[1]) - (clean[0] - clean[1])
        torch.testing.assert_close(effect.values[layer, source], expected, **EXACT)


def test_its_trained_head_for_species(weights: dict[str, Tensor], tokenizer: Any) -> None:
    """The head of its own class reads as a sequence classifier does."""
    config = BertConfig.from_pretrained(FOLDER, local_files_only=True, id2label=dict(enumerate(SPECIES)))
    classifier = BertForSequenceClassification(config).double().eval()
    head = {f"classifier.{part}": weights[f"cls.species.{part}"] for part in ("weight", "bias")}
    assert not classifier.load_state_dict({**weights, **head}, strict=False).missing_keys
    effect = tl_vzero.zero_ablation(tl_vzero.load_model(classifier, tokenizer), HEAVY, target_ids="Human")
    ids = torch.tensor([tokenizer(HEAVY)["input_ids"]])
    with torch.no_grad():
        clean = classifier(ids).logits[0]
    assert effect.predicted[0][0] == SPECIES[int(clean.argmax())]
    for layer, source in ((0, 2), (6, 0), (7, 3)):
        expected = logits_without(classifier, ids, layer, source)[1] - clean[1]
        torch.testing.assert_close(effect.values[layer, source], expected, **EXACT)
