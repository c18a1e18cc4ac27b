"""Encoded clips: encoding, statistics, batches, and the cache that encodes each clip once.

The names below are imported on first use, as `audiolm cache` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_NAMES = {
    "FeatureCache": "cache",
    "count_frames": "encode",
    "encode_clips": "encode",
    "feature_statistics": "encode",
    "pad_features": "encode",
}
__all__ = sorted(_NAMES)

if TYPE_CHECKING:
    from .cache import FeatureCache
    from .encode import count_frames, encode_clips, feature_statistics, pad_features


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_NAMES[name]}", __name__), name)
