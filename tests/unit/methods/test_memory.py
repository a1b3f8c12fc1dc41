"""What a method holds once it is done: its maps."""

import gc
from typing import Any

import pytest
import torch
from support.models import hf_bert, hf_gpt2, loaded
from torch import Tensor

import tl_vzero
from tl_vzero.clean import MEMORY_MB

IDS = torch.tensor([2, 5, 17, 4, 9, 31, 3])
TEXT = "the pictures of some hat [MASK] scaring marcus."


def bytes_alive() -> int:
    gc.collect()
    # isinstance would wake the lazy proxies of other packages.
    tensors = [held for held in gc.get_objects() if issubclass(type(held), Tensor)]
    return sum({held.untyped_storage().data_ptr(): held.untyped_storage().nbytes() for held in tensors}.values())


def held_by(call: Any) -> tuple[int, Any]:
    call()  # what is cached once per model does not count as a method's
    before = bytes_alive()
    result = call()
    return bytes_alive() - before, result


@pytest.mark.parametrize("method", [name for name in tl_vzero.METHODS if name != "value_zeroing"])
def test_a_method_keeps_its_maps_only(method: str) -> None:
    if "captum" in tl_vzero.METHODS[method].needs:
        pytest.importorskip("captum")
    builder = hf_gpt2 if "logit" in method else hf_bert
    model = loaded(builder(width=64, heads=4))
    held, scores = held_by(lambda: tl_vzero.score(model, IDS, method=method))
    assert held <= scores.values.untyped_storage().nbytes()


def test_value_zeroing_keeps_no_more_than_it_may() -> None:
    model = loaded(hf_bert(width=64, heads=4))
    before = bytes_alive()
    scores = tl_vzero.value_zeroing(model, IDS)
    assert bytes_alive() - before <= MEMORY_MB * 2**20 + scores.values.nbytes


def test_a_comparison_keeps_maps_and_effect_only() -> None:
    model = tl_vzero.load_model("agreement-mini")
    held, compared = held_by(lambda: tl_vzero.compare(model, TEXT))
    maps = sum(scores.values.untyped_storage().nbytes() for scores in compared.values())
    assert held <= maps + compared.effect.values.untyped_storage().nbytes()
