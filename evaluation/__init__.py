"""Answers, metrics, controls and statistics. docs/evaluate.md explains each number."""

from typing import TYPE_CHECKING

from ..data.answer_parsing import parse_answer

if TYPE_CHECKING:
    from .metric import ReasonAQAMetric

__all__ = ["ReasonAQAMetric", "parse_answer"]


# `evaluate` and scikit-learn take more than a second to import, and training needs neither.
def __getattr__(name: str) -> type:
    if name != "ReasonAQAMetric":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .metric import ReasonAQAMetric

    return ReasonAQAMetric
