"""AudioLM: audio question answering with a frozen encoder, a mapper and a language model.

The names below load on first use, so that `import audiolm` does not import torch.
"""

from typing import TYPE_CHECKING

_NAMES = {
    "AudioLMConfig": "configuration_audiolm",
    "HTSATEncoder": "encoders_audiolm",
    "MimiEncoder": "encoders_audiolm",
    "AudioLMForConditionalGeneration": "modeling_audiolm",
    "AudioLMFeatureExtractor": "processing_audiolm",
    "AudioLMProcessor": "processing_audiolm",
    "load_encoder": "checkpoints.encoders",
    "load_reasonaqa": "data.reasonaqa",
}
__all__ = sorted(_NAMES)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .checkpoints.encoders import load_encoder
    from .configuration_audiolm import AudioLMConfig
    from .data.reasonaqa import load_reasonaqa
    from .encoders_audiolm import HTSATEncoder, MimiEncoder
    from .modeling_audiolm import AudioLMForConditionalGeneration
    from .processing_audiolm import AudioLMFeatureExtractor, AudioLMProcessor


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_NAMES[name]}", __name__), name)


def __dir__():
    return __all__
