"""ReasonAQA as a `datasets` dataset: rows and question types, audio files, batches."""

from .audio import check_audio
from .collator import ReasonAQACollator
from .reasonaqa import QUESTION_TYPES, load_reasonaqa, resolve_path

__all__ = ["QUESTION_TYPES", "ReasonAQACollator", "check_audio", "load_reasonaqa", "resolve_path"]
