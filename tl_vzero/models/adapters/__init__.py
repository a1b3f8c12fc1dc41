"""Models for which TransformerLens has no adapter, or has one on a single line only, in its own form.

A further architecture takes a class here, a row of `ADAPTERS` and an entry point in pyproject.toml, by which
TransformerLens finds the adapters of installed packages.

TransformerLens's boot looks a model's class up in a list of its own before it looks for entry points, so an entry point
alone is found too late (3.9.0, 4.3.0). Importing this package adds the names to that list; `register` does so and adds
the adapters too, where this package is not installed.
"""

from transformer_lens.factories import architecture_adapter_factory as factory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.utilities.architectures import MASKED_LM_ARCHITECTURES

from tl_vzero.models.adapters.modernbert import ModernBertAdapter
from tl_vzero.models.adapters.post_norm import (
    AlbertAdapter,
    DebertaV2Adapter,
    DistilBertAdapter,
    ElectraAdapter,
    MPNetAdapter,
    RobertaAdapter,
)
from tl_vzero.models.adapters.whisper import WhisperAdapter

ADAPTERS: dict[str, type[ArchitectureAdapter]] = {
    "AlbertForMaskedLM": AlbertAdapter,
    "CamembertForMaskedLM": RobertaAdapter,
    "DebertaV2ForMaskedLM": DebertaV2Adapter,
    "DistilBertForMaskedLM": DistilBertAdapter,
    "ElectraForMaskedLM": ElectraAdapter,
    # A discriminator's folder names this class; its encoder is read under a generator's head.
    "ElectraForPreTraining": ElectraAdapter,
    "MPNetForMaskedLM": MPNetAdapter,
    "ModernBertForMaskedLM": ModernBertAdapter,
    "RobertaForMaskedLM": RobertaAdapter,
    "WhisperForConditionalGeneration": WhisperAdapter,
    "XLMRobertaForMaskedLM": RobertaAdapter,
}

for _name, _adapter in ADAPTERS.items():
    # What TransformerLens has itself stays: from 4.2 on, RoBERTa.
    factory.SUPPORTED_ARCHITECTURES.setdefault(_name, _adapter)
    if _adapter is not WhisperAdapter:
        MASKED_LM_ARCHITECTURES.add(_name)


def register() -> None:
    """Let `TransformerBridge.boot_transformers` read every architecture of `ADAPTERS`, on both TransformerLens lines.

    An adapter that TransformerLens or an installed package has already is left in its place.

    >>> from tl_vzero.models.adapters import register
    >>> register()
    """
    registry = factory.ArchitectureAdapterFactory
    # First, or it would later take our entry points for an attempt to override these.
    registry.discover_entry_points()
    for name, adapter in ADAPTERS.items():
        if name not in registry._adapters:
            registry.register_adapter(name, adapter)
