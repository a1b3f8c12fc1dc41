"""Context-mixing methods against the values of their authors' own programs, through every class that holds a BERT."""

from functools import cache
from typing import Any

import pytest
import torch
from support import golden, models
from support.golden import assert_close

import tl_vzero

# method -> golden file, and how far a method may be off in float64 and float32. Where a method's file has its name and
# the tolerances are those of most, the file is all that it takes.
FILES = {
    "attention": ("attn", 1e-9, 1e-6),
    "attention_rollout": ("rollout", 1e-9, 1e-6),
    "attention_flow": ("attn_flow", 1e-6, 1e-5),
    "attention_norm": ("attn_norm", 1e-9, 1e-6),
    "attention_norm_res": ("attn_norm_res", 1e-9, 1e-6),
    "attention_norm_res_ln": ("attn_norm_res_ln", 1e-9, 1e-6),
    "alti": ("alti_exact", 1e-9, 1e-6),
}
WITH_OPTIONS = ("hta", "decompx")  # tested below
FILES |= {
    name: (name, 1e-9, 1e-6)
    for name in tl_vzero.METHODS
    if name not in (*FILES, *WITH_OPTIONS) and (golden.HERE / f"tiny-bert__{name}.npz").is_file()
}
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]
ROUTES = ["load_model", "HookedEncoder", "TransformerBridge"]


@cache
def tiny_bert(route: str, dtype: torch.dtype) -> Any:
    folder = golden.model_folder("tiny-bert")
    if route == "load_model":
        return tl_vzero.load_model(folder, dtype=dtype)
    hf_model = golden.hf_bert_with_fresh_head(folder, dtype)
    return models.hooked_encoder(hf_model) if route == "HookedEncoder" else models.bridge(hf_model)


def expected(name: str) -> dict[str, Any]:
    return golden.read(golden.files(f"tiny-bert__{name}.npz")[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", FILES)
@pytest.mark.parametrize("route", ROUTES)
def test_tiny_bert(route: str, method: str, dtype: torch.dtype) -> None:
    name, in_float64, in_float32 = FILES[method]
    tolerance = in_float64 if dtype == torch.float64 else in_float32
    wanted = expected(name)
    for index, ids in enumerate(golden.tiny_bert_ids()):
        if f"norm{index}" not in wanted:
            continue
        scores = tl_vzero.score(tiny_bert(route, dtype), torch.tensor(ids), method=method)
        assert_close(scores.normalized().values, golden.tensor(wanted[f"norm{index}"]), tolerance)


@pytest.mark.parametrize("method", ["attention_norm", "attention_norm_res", "attention_norm_res_ln", "globenc", "alti"])
def test_what_is_not_normalised(method: str) -> None:
    wanted = expected(FILES[method][0])
    for index, ids in enumerate(golden.tiny_bert_ids()):
        scores = tl_vzero.score(tiny_bert("load_model", torch.float64), torch.tensor(ids), method=method)
        assert_close(scores.values, golden.tensor(wanted[f"raw{index}"]), 1e-9 * wanted[f"raw{index}"].max())


@pytest.mark.parametrize("method", ["globenc", "alti"])
def test_rollouts(method: str) -> None:
    wanted = expected(FILES[method][0])
    for index, ids in enumerate(golden.tiny_bert_ids()):
        scores = tl_vzero.score(tiny_bert("load_model", torch.float64), torch.tensor(ids), method=method)
        assert_close(scores.rollout().values, golden.tensor(wanted[f"rollout{index}"]), 1e-9)


def test_rollout_of_the_norms_as_the_program_of_alti_has_it() -> None:
    wanted = expected("kob_rollouts_alti_repo")
    for index, ids in enumerate(golden.tiny_bert_ids()):
        model = tiny_bert("load_model", torch.float64)
        scores = tl_vzero.score(model, torch.tensor(ids), method="attention_norm_res_ln")
        assert_close(scores.rollout().values, golden.tensor(wanted[f"rollout{index}"]), 1e-9)


def test_alti_as_its_program_has_it() -> None:
    """The program adds 1e-6 to every coordinate of a difference before it takes the norm."""
    wanted = expected("alti")
    for index, ids in enumerate(golden.tiny_bert_ids()):
        scores = tl_vzero.score(tiny_bert("load_model", torch.float64), torch.tensor(ids), method="alti")
        assert_close(scores.normalized().values, golden.tensor(wanted[f"norm{index}"]), 1e-4)


HTA = {
    "hta": {},
    "hta_global": {"to": "embeddings"},
    "hta_x_input": {"times_input": True},
    "hta_x_input_global": {"to": "embeddings", "times_input": True},
}


# A backward pass for each feature is slow: all forms by one route, the one with every step by all.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("route", "name"),
    [*(("load_model", name) for name in HTA), *((route, "hta_x_input_global") for route in ROUTES[1:])],
)
def test_hidden_token_attribution(route: str, name: str, dtype: torch.dtype) -> None:
    wanted = expected(name)
    for index, ids in enumerate(golden.tiny_bert_ids()):
        scores = tl_vzero.score(tiny_bert(route, dtype), torch.tensor(ids), method="hta", **HTA[name])
        tolerance = 1e-9 if dtype == torch.float64 else 1e-6
        assert_close(scores.normalized().values, golden.tensor(wanted[f"norm{index}"]), tolerance)


DECOMPX = {
    "local": {},
    "global": {"propagate": True},
    "global_nobias": {"propagate": True, "share_biases": False},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DECOMPX)
@pytest.mark.parametrize("route", ROUTES)
def test_decompx(route: str, name: str, dtype: torch.dtype) -> None:
    wanted = expected("decompx")
    for index, ids in enumerate(golden.tiny_bert_ids()):
        scores = tl_vzero.score(tiny_bert(route, dtype), torch.tensor(ids), method="decompx", **DECOMPX[name])
        tolerance = 1e-9 if dtype == torch.float64 else 1e-6
        assert_close(scores.normalized().values, golden.tensor(wanted[f"{name}_norm{index}"]), tolerance)


def test_decompx_before_it_is_normalised() -> None:
    wanted = expected("decompx")
    for index, ids in enumerate(golden.tiny_bert_ids()):
        scores = tl_vzero.score(tiny_bert("load_model", torch.float64), torch.tensor(ids), method="decompx")
        assert_close(
            scores.values, golden.tensor(wanted[f"local_raw{index}"]), 1e-9 * wanted[f"local_raw{index}"].max()
        )
