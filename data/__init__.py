"""ReasonAQA as a `datasets` dataset: rows and question types, audio files, encoded clips, batches."""

from .audio import check_audio, sound_rows
from .collator import ReasonAQACollator
from .features import FeatureCache, encode_clips, feature_statistics
from .reasonaqa import QUESTION_TYPES, audio_roots, load_reasonaqa, resolve_path
from .selection import select_rows

__all__ = [
    "QUESTION_TYPES", "FeatureCache", "ReasonAQACollator", "audio_roots", "check_audio", "encode_clips", "feature_statistics",
    "load_reasonaqa", "resolve_path", "select_rows", "sound_rows",
]  # fmt: skip
