"""Folders that are damaged, foreign or hostile end in maps or in words, soon, with nothing run or allocated."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.every_adapter import UNBUILT, adapted_classes, tiny_config
from support.models import hf_bert, hf_gpt2, hf_llama, tokenizer
from support.watched import watched  # noqa: F401

import tl_vzero
from tl_vzero.errors import ModelError, TLVZeroError

SECONDS = 60
SPARE = 2 * 2**30  # bytes of address space that loading may take beyond what the process has


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Neither a hang nor a terabyte: an alarm, and a limit on memory."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def too_long(*_: object) -> None:
        raise KeyboardInterrupt(f"took more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf_llama().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path) -> str:
    """The words with which a folder is refused: one screen of them, and no other exception."""
    with pytest.raises(TLVZeroError) as caught:
        tl_vzero.load_model(folder)
    message = str(caught.value)
    assert len(message) < 1000 and "allocate" not in message and "MemoryError" not in message
    return message


def change(folder: Path, name: str = "config.json", **fields: Any) -> None:
    path = folder / name
    data = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({field: value for field, value in data.items() if value is not ...}))


# --- configurations -------------------------------------------------------------------------------------

# Fields of a Llama, a BERT and a GPT-2 with values that cannot be.
LLAMA: list[dict[str, Any]] = [
    {"num_attention_heads": 3},
    {"num_attention_heads": 0},
    {"num_attention_heads": -4},
    {"num_attention_heads": "four"},
    {"num_attention_heads": None},
    {"num_attention_heads": 8},
    {"num_attention_heads": [4, 2, 4]},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": 0},
    {"num_key_value_heads": 4},
    {"hidden_size": 0},
    {"hidden_size": 17},
    {"hidden_size": 32},
    {"hidden_size": 16.5},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": 7},
    {"num_hidden_layers": 1},
    {"num_hidden_layers": -1},
    {"num_hidden_layers": True},
    {"vocab_size": 0},
    {"vocab_size": 59},
    {"vocab_size": 6000},
    {"vocab_size": -1},
    {"vocab_size": ...},
    {"intermediate_size": 1},
    {"head_dim": 0},
    {"head_dim": 16},
    {"head_dim": 5},
    {"rms_norm_eps": "small"},
    {"rms_norm_eps": float("nan")},
    {"max_position_embeddings": 0},
    {"rope_theta": 0},
    {"rope_parameters": {"rope_type": "unheard of"}},
    {"rope_parameters": "default"},
    {"hidden_act": "unheard of"},
    {"model_type": "unheard-of"},
    {"model_type": "gpt2"},
    {"model_type": "bert"},
    {"model_type": "gemma4_text"},
    {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    {"model_type": "rwkv"},
    {"model_type": "yoso"},
    {"model_type": ...},
    {"model_type": 5},
    {"model_type": ["llama"]},
    {"architectures": []},
    {"architectures": None},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [5]},
    {"architectures": ["BertForMaskedLM"]},
    {"architectures": ["Unheard"]},
    {"original_architecture": "T5ForConditionalGeneration"},
    {"is_encoder_decoder": True},
    {"is_decoder": False},
    {"pad_token_id": 99},
    {"pad_token_id": -7},
    {"bos_token_id": "the"},
    {"tie_word_embeddings": "yes"},
    {"layer_types": ["full_attention"]},
    {"dtype": "unheard"},
    {"torch_dtype": "int8"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"quantization_config": {"quant_method": "unheard of"}},
    {"attn_implementation": "someone/kernel"},
    {"_attn_implementation": "someone/kernel"},
    {"text_config": {"vocab_size": 10**13}},
    {"auto_map": {"AutoConfig": "own.Config"}},
    {"id2label": {"0": "a", "x": "b"}},
]


def sometimes(fields: dict[str, Any], place: int) -> Any:
    return pytest.param(
        fields, id=json.dumps(fields, default=str)[:60], marks=() if place % 5 == 0 else pytest.mark.slow
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fields", [sometimes(fields, place) for place, fields in enumerate(LLAMA)])
def test_a_damaged_field(fields: dict[str, Any], folder: Path, watched: list[str]) -> None:  # noqa: F811
    change(folder, **fields)
    try:
        scores: Any = tl_vzero.value_zeroing(tl_vzero.load_model(folder), torch.tensor([5, 9, 7]))
        assert scores.values.isfinite().all()
    except TLVZeroError as error:
        message = str(error)
        assert len(message) < 1000, message
    assert watched == []


HUGE = [
    ("llama", {"vocab_size": 10**12}),
    ("llama", {"intermediate_size": 10**12}),
    ("llama", {"num_hidden_layers": 10**12}),
    ("llama", {"num_hidden_layers": 90_000}),
    ("llama", {"num_hidden_layers": 10**400}),
    ("llama", {"hidden_size": 2**40, "head_dim": 2**38}),
    ("llama", {"vocab_size": 2**62}),
    ("llama", {"num_labels": 10**12}),
    ("bert", {"max_position_embeddings": 10**12}),
    ("bert", {"type_vocab_size": 10**12}),
    ("bert", {"vocab_size": 10**10}),
    ("gpt2", {"n_positions": 10**11}),
    ("gpt2", {"n_layer": 10**9}),
    ("gpt2", {"n_inner": 10**11}),
]
MAKERS: dict[str, Callable[[], Any]] = {"llama": hf_llama, "bert": hf_bert, "gpt2": hf_gpt2}


@pytest.mark.parametrize(("kind", "fields"), HUGE, ids=lambda parameter: str(parameter)[:40])
def test_a_size_beyond_all_memory(kind: str, fields: dict[str, int], tmp_path: Path) -> None:
    MAKERS[kind]().save_pretrained(tmp_path)
    change(tmp_path, **fields)
    message = refused(tmp_path)
    assert any(words in message for words in ("far larger than its weight files", "expected at most", "sizes="))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"",
        b"null",
        b"[]",
        b'"llama"',
        b"{",
        b"\xff\xfe\x00",
        b"{}",
        b'{"model_type": "llama"}',
        b'{"model_type": "llama", "vocab_size": 1e999}',
        b"\x80\x04.",
        b"#!/bin/sh\n",
        b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_a_config_that_is_no_config(text: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(text)
    assert "config" in refused(folder) or text.startswith(b'{"model_type"')


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b"", b"null", b"{}", b"[]", b"\xff", b'{"model": {"type": "Unigram", "vocab": []}}']
)
def test_a_damaged_tokenizer(name: str, text: bytes, folder: Path) -> None:
    (folder / name).write_bytes(text)
    try:
        tl_vzero.value_zeroing(tl_vzero.load_model(folder), "the dog")
    except TLVZeroError as error:
        message = str(error)
        assert "tokenizer" in message and len(message) < 1000


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json", "chat_template.jinja"])
def test_damage_beside_the_model_ends_in_words_or_maps(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"[" * 200_000)
    try:
        tl_vzero.load_model(folder)
    except TLVZeroError as error:
        assert len(str(error)) < 1000  # noqa: PT017


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(adapted_classes()) - UNBUILT))
def test_the_config_of_one_model_with_the_weights_of_another(name: str, folder: Path) -> None:
    config = tiny_config(adapted_classes()[name].config_class)
    config.architectures = [name]
    config.save_pretrained(folder)
    if name != "LlamaForCausalLM":
        refused(folder)


# --- weights --------------------------------------------------------------------------------------------


def test_weights_that_are_cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    for size in (0, 4, 100, weights.stat().st_size - 1):
        weights.write_bytes(weights.read_bytes()[:size])
        assert "model.safetensors" in refused(folder) or "Hugging Face model" in refused(folder)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"\0" * 99, b"\x80\x04.", b"version https://git-lfs", b"\xff" * 64], ids=repr
)
def test_weights_that_are_no_weights(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    hf_llama(width=32).save_pretrained(folder / "wide")
    (folder / "wide" / "model.safetensors").replace(folder / "model.safetensors")
    refused(folder)


class Runs:
    """What a hostile pickle holds: a call that is made where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def only_bin(folder: Path, content: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_a_pickle_that_would_run_code(form: str, folder: Path, tmp_path: Path, watched: list[str]) -> None:  # noqa: F811
    trace, path = tmp_path / "ran", folder / "pytorch_model.bin"
    only_bin(folder, {**hf_llama().state_dict(), "evil": Runs(trace)})
    if form == "pickle":
        path.write_bytes(pickle.dumps(Runs(trace)))
    if form == "legacy":
        torch.save({"evil": Runs(trace)}, path, _use_new_zipfile_serialization=False)
    message = refused(folder)
    assert "safetensors" in message and "pickle" in message
    assert not trace.exists() and watched == []


def test_a_pickle_beside_safe_weights_is_not_read(folder: Path, tmp_path: Path) -> None:
    torch.save({"evil": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    tl_vzero.load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_tensors_is_read(folder: Path) -> None:
    expected: Any = tl_vzero.value_zeroing(tl_vzero.load_model(folder), torch.tensor([5, 9, 7]))
    only_bin(folder, hf_llama().state_dict())
    scores: Any = tl_vzero.value_zeroing(tl_vzero.load_model(folder), torch.tensor([5, 9, 7]))
    assert torch.equal(scores.values, expected.values)


@pytest.mark.parametrize("part", ["../outside.safetensors", "/outside.safetensors", "lost.safetensors", "a\\b", ""])
def test_an_index_that_points_elsewhere(part: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").replace(tmp_path / "outside.safetensors")
    named = part.replace("/outside", f"{tmp_path}/outside") if part.startswith("/") else part
    index = {"metadata": {}, "weight_map": dict.fromkeys(hf_llama().state_dict(), named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused(folder)
    assert "same folder" in message or "lacks" in message


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"weight_map": 5}', b'{"weight_map": {}}', b"[" * 200_000])
def test_a_damaged_index(text: bytes, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(text)
    refused(folder)


def test_weights_in_parts_are_read(tmp_path: Path) -> None:
    hf_llama().save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tl_vzero.load_model(tmp_path)


def test_links_to_files_are_followed_as_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    tl_vzero.load_model(snapshot)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "dangling", "device", "folder"])
def test_what_is_no_file(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": path, "dangling": folder / "nowhere", "device": "/dev/zero"}[kind])
    try:
        tl_vzero.load_model(folder)
    except TLVZeroError as error:
        assert len(str(error)) < 1000  # noqa: PT017
    else:
        assert name not in ("config.json", "model.safetensors")


# --- folders of something else --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"PEFT.*base model"),
        (["config.json", "model.gguf"], "GGUF"),
        (["model.gguf"], "GGUF"),
        (["config.json", "onnx/model.onnx"], "ONNX"),
        (["config.json", "model.onnx"], "ONNX"),
        (["config.json", "tf_model.h5"], "TensorFlow"),
        (["config.json", "flax_model.msgpack"], "Flax"),
        (["config.json"], "no weights"),
        (["modules.json", "0_Transformer/config.json", "0_Transformer/model.safetensors"], "0_Transformer is one"),
        (["model.safetensors"], "no config.json"),
        ([], "no config.json"),
    ],
    ids=str,
)
def test_a_folder_of_something_else(files: list[str], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match=words):
        tl_vzero.load_model(tmp_path)


def test_a_file_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"is a file.*GGUF"):
        tl_vzero.load_model(tmp_path / "model.gguf")


def test_an_adapters_folder_does_not_lead_elsewhere(folder: Path, tmp_path: Path) -> None:
    """transformers would read the model that an adapter names in the place of the folder's own."""
    hf_bert().save_pretrained(tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    assert "PEFT" in refused(folder)


@pytest.mark.filterwarnings("ignore")
def test_the_folder_of_a_sentence_transformer(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    hf_bert().save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "whole"))
    tl_vzero.value_zeroing(tl_vzero.load_model(tmp_path / "whole"), "the dog")
