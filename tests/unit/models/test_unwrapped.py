"""What people hold instead of a plain Hugging Face model: it is read, or the error names what to pass."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architecture_row import IDS
from support.models import hf_bert, hf_bert_headless, hf_gpt2, hf_llama, randomise, tokenizer
from support.plain_hooks import plain_value_zeroing
from torch import Tensor, nn
from transformers import (
    BertForPreTraining,
    BertForSequenceClassification,
    GPT2DoubleHeadsModel,
    T5Config,
    T5EncoderModel,
    pipeline,
)

import tl_vzero
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError

TEXT = "the dog is near a hat ."
BERT = {"blocks": "bert.encoder.layer", "value": "attention.self.value"}
LLAMA = {"blocks": "model.layers", "value": "self_attn.v_proj"}


def assert_right(model: Any, expected: Tensor, inputs: Any = None) -> None:
    scores: Any = tl_vzero.value_zeroing(model, torch.tensor(IDS) if inputs is None else inputs)
    assert ((scores.values.double() - expected).abs() <= 1e-6 + 1e-3 * expected).all()


# --- heads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BertForPreTraining, GPT2DoubleHeadsModel], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_trained_head_for_words_beside_another(kind: type, where: str, tmp_path: Path) -> None:
    hf_model = hf_bert(kind=kind) if kind is BertForPreTraining else hf_gpt2(kind=kind)
    hf_model.save_pretrained(tmp_path)
    names = set(hf_model.state_dict())
    with torch.no_grad():
        expected: Any = hf_model(torch.tensor([IDS]))
    logits = expected.prediction_logits if kind is BertForPreTraining else expected.logits
    model: Any = tl_vzero.load_model(tmp_path if where == "folder" else hf_model)
    assert tl_vzero.value_zeroing(model, torch.tensor(IDS)).metadata["model_head"] == "trained"  # type: ignore[union-attr]
    effect = tl_vzero.zero_ablation(model, torch.tensor(IDS), target=2, target_ids=7)
    assert abs(effect.clean - logits[0, 2, 7].item()) < 1e-4
    with torch.no_grad():
        assert (model(torch.tensor([IDS])) - logits).abs().max() < 1e-4
    assert set(hf_model.state_dict()) == names


def test_a_headless_model_is_called_headless() -> None:
    with pytest.raises(HeadlessModelError, match="no trained prediction head"):
        tl_vzero.zero_ablation(tl_vzero.load_model(hf_bert_headless(), tokenizer()), TEXT, target=2)


def test_an_encoder_alone_of_two_stacks() -> None:
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ModelError, match=r"T5EncoderModel.*pass|no hook|cannot"):
        tl_vzero.load_model(randomise(T5EncoderModel(config), seed=0))


# --- objects of other libraries -------------------------------------------------------------------------


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    hf_bert_headless().save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["whole", "its transformer", "its model"])
def test_a_sentence_transformer(part: str, bert_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(str(bert_folder), device="cpu")
    before = whole.encode(TEXT)
    model = tl_vzero.load_model({"whole": whole, "its transformer": whole[0], "its model": whole[0].auto_model}[part])
    ids = whole.tokenizer(TEXT)["input_ids"]
    expected = plain_value_zeroing(hf_bert_headless(), ids, blocks="encoder.layer", value="attention.self.value")
    assert_right(model, expected, torch.tensor(ids) if part == "its model" else TEXT)
    assert (whole.encode(TEXT) == before).all()


@pytest.mark.filterwarnings("ignore")
def test_a_cross_encoder(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    hf_model = hf_bert(kind=BertForSequenceClassification)
    hf_model.config.num_labels = 1
    randomise(BertForSequenceClassification(hf_model.config), seed=0).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    held = CrossEncoder(str(tmp_path), device="cpu")
    inside = next(part for part in held.modules() if isinstance(part, BertForSequenceClassification))
    ids = held.tokenizer(TEXT)["input_ids"]
    assert_right(tl_vzero.load_model(held), plain_value_zeroing(inside, ids, **BERT), TEXT)


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_brings_its_tokenizer() -> None:
    hf_model, words = hf_bert(), tokenizer()
    held = pipeline("fill-mask", model=hf_model, tokenizer=words, device="cpu")
    assert_right(tl_vzero.load_model(held), plain_value_zeroing(hf_model, words(TEXT)["input_ids"], **BERT), TEXT)


def with_lora(hf_model: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(hf_model, config).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PeftModel", "inside", "two adapters", "merged", "dora", "saved modules"])
@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_adapters_count(form: str, engine: Any) -> None:
    """As in the model with its adapters, by plain hooks on the very object that was given."""
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    options: dict[str, Any] = {"dora": {"use_dora": True}, "saved modules": {"modules_to_save": ["lm_head"]}}
    held = with_lora(hf_llama(), target_modules=targets, **options.get(form, {}))
    if form == "two adapters":
        from peft import LoraConfig

        held.add_adapter("other", LoraConfig(r=2, init_lora_weights=False, target_modules=["v_proj"]))
        held.set_adapter("other")
    if form == "merged":
        held.merge_adapter()
    inside = held.get_base_model()
    expected = plain_value_zeroing(copy.deepcopy(inside), IDS, **LLAMA)
    before = {name: tensor.clone() for name, tensor in held.state_dict().items()}
    with torch.no_grad():
        logits = held(input_ids=torch.tensor([IDS])).logits
    model: Any = tl_vzero.load_model(inside if form == "inside" else held)
    scores: Any = tl_vzero.value_zeroing(model, torch.tensor(IDS), engine=engine)
    assert ((scores.values.double() - expected).abs() <= 1e-6 + 1e-3 * expected).all()
    with torch.no_grad():
        assert (model(torch.tensor([IDS])) - logits).abs().max() < 1e-4
        assert torch.equal(held(input_ids=torch.tensor([IDS])).logits, logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in held.state_dict().items())
    plain = plain_value_zeroing(hf_llama(), IDS, **LLAMA)
    assert (expected - plain).abs().max() > 1e-3, "these adapters change something"


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_switched_off() -> None:
    held = with_lora(hf_llama(), target_modules=["v_proj"])
    held.base_model.disable_adapter_layers()
    assert_right(tl_vzero.load_model(held), plain_value_zeroing(hf_llama(), IDS, **LLAMA))


@pytest.mark.filterwarnings("ignore")
def test_learned_prompts_are_no_tokens() -> None:
    from peft import PromptTuningConfig, get_peft_model

    held = get_peft_model(hf_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"get_base_model\(\)"):
        tl_vzero.load_model(held)


# --- weights that are not there, or no numbers ----------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [hf_bert, hf_llama])
def test_quantised_weights(make: Any) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(make(width=32), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelError, match=r"quantised.*float"):
        tl_vzero.load_model(quantised)


class EightBit(nn.Linear):
    """As bitsandbytes holds it: a parameter of bytes, which only its own forward understands."""

    def __init__(self, inside: nn.Linear) -> None:
        super().__init__(inside.in_features, inside.out_features, bias=False)
        self.weight = nn.Parameter((inside.weight * 10).to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype).T / 10


def test_weights_of_bytes() -> None:
    hf_model = hf_llama()
    hf_model.model.layers[0].mlp.down_proj = EightBit(hf_model.model.layers[0].mlp.down_proj)
    with pytest.raises(ModelError, match=r"down_proj.*quantised"):
        tl_vzero.load_model(hf_model)


def test_a_model_without_memory() -> None:
    with torch.device("meta"):
        empty = type(hf_bert())(hf_bert().config)
    with pytest.raises(ModelError, match=r"meta.*load it whole"):
        tl_vzero.load_model(empty)
    with pytest.raises(InputError, match="meta"):
        tl_vzero.load_model(hf_bert(), device="meta")


@pytest.mark.filterwarnings("ignore")
def test_an_offloaded_model() -> None:
    from accelerate import cpu_offload

    with pytest.raises(ModelError, match="offload"):
        tl_vzero.load_model(cpu_offload(hf_gpt2(), execution_device=torch.device("cpu")))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_accelerate_dispatched_whole() -> None:
    from accelerate import dispatch_model

    hf_model = hf_llama()
    held = dispatch_model(copy.deepcopy(hf_model), {"": "cpu"}, force_hooks=True)
    assert_right(tl_vzero.load_model(held), plain_value_zeroing(hf_model, IDS, **LLAMA))


# --- what holds a model or none -------------------------------------------------------------------------


class Wraps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = hf_bert()
        self.config = self.encoder.config


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Wraps, "encoder"),
        (lambda: nn.DataParallel(hf_bert()), "module"),
        (lambda: tl_vzero.load_model(hf_bert()), "already"),
        (lambda: type(hf_bert()), "class BertForMaskedLM"),
        (lambda: nn.Linear(2, 2), "no Hugging Face model"),
        (tokenizer, "expected a name"),
        (lambda: None, "expected a name"),
        (lambda: hf_bert().state_dict(), "expected a name"),
        (lambda: hf_bert().config, "expected a name"),
        (lambda: b"bert", "expected a name"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_error_for_what_is_no_model_says_what_to_pass(thing: Any, named: str) -> None:
    with pytest.raises(InputTypeError, match=named):
        tl_vzero.load_model(thing())


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 5000, "~nobody-of-that-name/x", "", "/dev/null", "http://x/y", "\ud800"]
)
def test_a_name_of_no_model(name: str) -> None:
    with pytest.raises(ModelError):
        tl_vzero.load_model(name)


def test_a_tokenizer_of_more_tokens_than_the_model_has() -> None:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]})
    hf_model = hf_bert()
    model = tl_vzero.load_model(hf_model, words)
    assert_right(model, plain_value_zeroing(hf_model, words(TEXT)["input_ids"], **BERT), TEXT)
