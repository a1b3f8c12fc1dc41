"""The adapters themselves: how TransformerLens comes by them, and how they take fused projections apart."""

import copy
import os
import subprocess
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch
import transformers
from support.architecture_row import IDS
from support.architectures import ARCHITECTURES
from support.encoder_rows import OURS
from support.models import tokenizer

import tl_vzero
from tl_vzero.models.adapters import ADAPTERS, register
from tl_vzero.models.adapters.modernbert import Part, SplitLinear, split_in_place

# --- fused projections ----------------------------------------------------------------


def test_a_split_map_computes_the_same_and_holds_its_weights_once() -> None:
    parent = torch.nn.Module()
    parent.fused = torch.nn.Linear(4, 6)
    whole, inputs = parent.fused, torch.randn(2, 3, 4)
    split_in_place(parent, "fused", ("a", "b", "c"))
    assert torch.allclose(parent.fused(inputs), whole(inputs), atol=1e-6)
    assert {name for name, _ in parent.named_parameters()} == {"fused.weight", "fused.bias"}
    assert parent.fused.weight is whole.weight
    assert torch.equal(parent.fused.b.weight, whole.weight[2:4]) and torch.equal(parent.fused.b.bias, whole.bias[2:4])
    split = parent.fused
    split_in_place(parent, "fused", ("a", "b", "c"))
    assert parent.fused is split


def test_parts_follow_the_fused_weight_also_in_a_copy() -> None:
    parent = torch.nn.Module()
    parent.fused = torch.nn.Linear(4, 6, bias=False)
    split_in_place(parent, "fused", ("a", "b"))
    twin = copy.deepcopy(parent)
    with torch.no_grad():
        twin.fused.weight.zero_()
    assert isinstance(twin.fused, SplitLinear) and isinstance(twin.fused.a, Part)
    assert not twin.fused.a.weight.any() and parent.fused.a.weight.any()
    assert twin.fused.a.bias is None


# --- TransformerLens's own door -------------------------------------------------------------------------


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", OURS)
def test_transformer_lens_boots_them_from_a_folder(name: str, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    hf_model, ids = ARCHITECTURES[name].tiny(), torch.tensor(IDS)
    hf_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    register()
    with quietly(), torch.no_grad():
        booted = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
        assert (booted(ids[None]) - hf_model(input_ids=ids[None]).logits).abs().max() < 1e-4
    ours = tl_vzero.value_zeroing(tl_vzero.load_model(hf_model), ids).values
    assert (tl_vzero.value_zeroing(booted, ids).values - ours).abs().max() < 1e-6


def test_registering_twice_changes_nothing_and_takes_nothing_away() -> None:
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

    register()
    before = dict(ArchitectureAdapterFactory._adapters)
    register()
    assert ArchitectureAdapterFactory._adapters == before
    assert before["BertForMaskedLM"].__module__.startswith("transformer_lens.")
    assert before["ElectraForMaskedLM"] is ADAPTERS["ElectraForMaskedLM"]


def entry_points() -> dict[str, str]:
    project = tomllib.loads((Path(tl_vzero.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return project["entry-points"]["transformer_lens.architectures"]


def test_the_entry_points_are_the_adapters_that_no_line_has() -> None:
    """RoBERTa is TransformerLens's own on 4.x, which warns of an entry point for what it has."""
    offered = entry_points()
    assert set(offered) == set(ADAPTERS) - {"RobertaForMaskedLM"}
    for name, place in offered.items():
        module, _, adapter = place.partition(":")
        assert getattr(import_module(module), adapter) is ADAPTERS[name]


def test_transformer_lens_finds_them_by_the_entry_points_and_only_once(tmp_path: Path) -> None:
    """In a fresh process; where tl_vzero is not installed, beside a distribution that declares the same."""
    declared = entry_points()
    if not metadata.entry_points(group="transformer_lens.architectures"):
        lines = "".join(f"{name} = {place}\n" for name, place in declared.items())
        folder = tmp_path / "tl_vzero_as_installed-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tl_vzero_as_installed\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[transformer_lens.architectures]\n{lines}")
    program = """
        import warnings
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory as factory
        warnings.simplefilter("error")
        factory.discover_entry_points()
        from tl_vzero.models.adapters import ADAPTERS, register
        found = [name for name in ADAPTERS if factory._adapters.get(name) is ADAPTERS[name]]
        register()
        print(*found)
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(declared)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_is_of_a_class_that_transformers_has(name: str) -> None:
    assert hasattr(transformers, name)
