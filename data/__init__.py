"""From ReasonAQA's files to batches: examples, audio, encoded clips and the collator.

The names below are imported on first use. Audio and batches need neither datasets nor soundfile.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_NAMES = {
    "check_audio": "audio_check",
    "drop_bad_audio": "audio_check",
    "ReasonAQACollator": "collator",
    "FeatureCache": "features",
    "encode_clips": "features",
    "feature_statistics": "features",
    "QUESTION_TYPES": "reasonaqa",
    "audio_roots": "reasonaqa",
    "decode_audio": "reasonaqa",
    "load_reasonaqa": "reasonaqa",
    "load_rows": "reasonaqa",
    "resolve_path": "reasonaqa",
    "select_rows": "subsets",
}
__all__ = sorted(_NAMES)

if TYPE_CHECKING:
    from .audio_check import check_audio, drop_bad_audio
    from .collator import ReasonAQACollator
    from .features import FeatureCache, encode_clips, feature_statistics
    from .reasonaqa import (
        QUESTION_TYPES,
        audio_roots,
        decode_audio,
        load_reasonaqa,
        load_rows,
        resolve_path,
    )
    from .subsets import select_rows


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_NAMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
