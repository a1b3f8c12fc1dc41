"""Loading installs nothing, downloads nothing and runs nothing that comes with a model."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architecture_row import IDS
from support.every_adapter import UNBUILT, adapted_classes, tiny
from support.models import hf_bert, hf_gpt2, randomise, tokenizer
from support.plain_hooks import plain_value_zeroing
from support.watched import code_that_leaves, watched  # noqa: F401

import tl_vzero
from tl_vzero.errors import ModelError, TLVZeroError

# Some of every kind: images and text, which TransformerLens would install torchvision for, sound, and text alone.
FEW = [
    "Gemma3ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Gemma4ForCausalLM",
    "BertForMaskedLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "HubertModel",
    "T5ForConditionalGeneration",
    "ViTModel",
]
READ = 75  # classes that are scored, at the least, on either line

everywhere = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in adapted_classes()],
)


def built(name: str) -> Any:
    if name in UNBUILT:
        pytest.skip(f"no {name} from sizes alone")
    return copy.deepcopy(tiny(name))


def loads_or_refuses(thing: Any) -> bool:
    """Whether it was read; anything but maps or an error of tl_vzero fails here."""
    try:
        model: Any = tl_vzero.load_model(thing)
        if not (getattr(model.cfg, "is_visual_model", False) or getattr(model.cfg, "is_audio_model", False)):
            stack = {"stack": "encoder"} if hasattr(model, "encoder_blocks") else {}
            scores: Any = tl_vzero.value_zeroing(model, torch.tensor([3, 9, 4, 17]), engine="hooks", **stack)
            assert scores.values.isfinite().all()
    except TLVZeroError as error:
        message = str(error)
    else:
        return True
    assert len(message) < 900, f"no message is a page: {message}"
    return False


@everywhere
def test_in_memory(name: str, watched: list[str]) -> None:  # noqa: F811
    hf_model = built(name)
    watched.clear()  # transformers looks for a compiler where it builds an RWKV
    loads_or_refuses(hf_model)
    assert watched == []


@everywhere
def test_from_a_folder(name: str, watched: list[str], tmp_path: Path) -> None:  # noqa: F811
    built(name).save_pretrained(tmp_path)
    watched.clear()
    loads_or_refuses(tmp_path)
    assert watched == []


@pytest.mark.slow
def test_most_classes_are_read() -> None:
    assert sum(loads_or_refuses(built(name)) for name in adapted_classes() if name not in UNBUILT) >= READ


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "LlavaForConditionalGeneration"])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_model_of_images_and_text_is_right_on_text(name: str, where: str, tmp_path: Path) -> None:
    """Without torchvision, by which it would read images."""
    hf_model = randomise(built(name), seed=0)
    hf_model.save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path if where == "folder" else hf_model)
    scores = tl_vzero.value_zeroing(model, torch.tensor(IDS))
    expected = plain_value_zeroing(hf_model, IDS, blocks="model.language_model.layers", value="self_attn.v_proj")
    assert isinstance(scores, tl_vzero.Scores)
    assert ((scores.values.double() - expected).abs() <= 1e-6 + 1e-3 * expected).all()


def with_own_code(folder: Path, trace: Path) -> None:
    """Let every configuration of a folder ask for code that lies beside it."""
    auto = ("Config", "Model", "ModelForMaskedLM", "ModelForCausalLM", "Tokenizer", "FeatureExtractor", "Processor")
    auto_map = {
        f"Auto{kind}": [f"own.{kind}", f"own.{kind}"] if kind == "Tokenizer" else f"own.{kind}" for kind in auto
    }
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**data, "auto_map": auto_map}))
    (folder / "custom_generate").mkdir()
    for path in ("own.py", "custom_generate/generate.py", "__init__.py", "config.py", "tokenizer.py"):
        (folder / path).write_text(code_that_leaves(trace, *auto))


@pytest.mark.parametrize("name", ["bert", "gpt2", "HubertModel", "ViTModel"])
def test_code_of_a_folder_is_not_run(name: str, watched: list[str], tmp_path: Path) -> None:  # noqa: F811
    folder, trace = tmp_path / "model", tmp_path / "ran"
    hf_model = hf_bert() if name == "bert" else hf_gpt2() if name == "gpt2" else built(name)
    hf_model.save_pretrained(folder)
    if name in ("bert", "gpt2"):
        tokenizer().save_pretrained(folder)
    with_own_code(folder, trace)
    loads_or_refuses(folder)
    assert watched == [] and not trace.exists()


@pytest.mark.parametrize("own_type", ["baichuan", "internlm2", "openelm", "strange"])
def test_a_folder_of_code_alone(own_type: str, watched: list[str], tmp_path: Path) -> None:  # noqa: F811
    folder, trace = tmp_path / "model", tmp_path / "ran"
    hf_bert().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": own_type}))
    with_own_code(folder, trace)
    with pytest.raises(ModelError, match="custom code"):
        tl_vzero.load_model(folder)
    assert watched == [] and not trace.exists()


def test_code_in_the_current_folder_is_not_taken_for_the_models(
    watched: list[str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TransformerLens's adapter of Baichuan imports its code from what the model is called."""
    from transformer_lens.factories import architecture_adapter_factory as factory

    trace, loaded_names = tmp_path / "ran", []
    monkeypatch.chdir(tmp_path)
    adapter = factory.SUPPORTED_ARCHITECTURES["BertForMaskedLM"]
    monkeypatch.setattr(adapter, "prepare_loading", lambda self, name, options: loaded_names.append(name))
    hf_model = hf_bert()
    hf_model.config._name_or_path = "evil"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "modeling.py").write_text(code_that_leaves(trace))
    tl_vzero.load_model(hf_model)
    assert loaded_names and all(Path(name).is_absolute() and Path(name).name != "evil" for name in loaded_names)
    assert watched == [] and not trace.exists()


class OwnTokenizer:
    """What is no tokenizer of transformers, and cannot be read again from where it was saved."""

    bos_token = "[CLS]"
    name_or_path = "some-organisation/some-model"

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [2, 5, 3]}

    def save_pretrained(self, folder: str) -> None:
        raise NotImplementedError


def test_a_tokenizer_of_ones_own_is_not_looked_for_on_the_hub(watched: list[str]) -> None:  # noqa: F811
    mine = OwnTokenizer()
    model = tl_vzero.load_model(hf_gpt2(), mine)
    assert watched == []
    assert isinstance(model.tokenizer, OwnTokenizer) and model.tokenizer is not mine


AUDITED = """
import sys
import numpy.testing  # NumPy before 2.2 runs lscpu here; scikit-learn imports it, and Transformers that
attempts = []
WATCHED = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
sys.addaudithook(lambda event, arguments: event in WATCHED and attempts.append((event, arguments)))
import tl_vzero
tl_vzero.load_model("agreement-mini")
from tl_vzero import corpus, evaluate, plot, report
print(attempts)
"""

# TransformerLens 3.9 warns of its own alias in LLaVA's image encoder, which is not read here.
pytestmark = pytest.mark.filterwarnings("ignore:Hook alias:UserWarning")


def test_importing_and_loading_in_a_fresh_process_start_nothing() -> None:
    """Python's own audit sees what no patch would; platform.machine may ask `uname` of the system."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AUDITED],
        env={**os.environ, "PYTHONPATH": str(Path(tl_vzero.__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout.strip() == "[]"
