"""Encoded clips: encoding, statistics, batches, and the cache that encodes each clip once."""

from .cache import FeatureCache
from .encode import count_frames, encode_clips, feature_statistics, pad_features

__all__ = ["FeatureCache", "count_frames", "encode_clips", "feature_statistics", "pad_features"]
