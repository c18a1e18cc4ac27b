"""Answering, parsing, metrics, controls, statistics and reports; docs/evaluation.md says what each number is."""

from typing import TYPE_CHECKING

from ..data.answer_parsing import parse_answer

if TYPE_CHECKING:
    from .metric import ReasonAQAMetric

__all__ = ["ReasonAQAMetric", "parse_answer"]


def __getattr__(
    name: str,
):  # `evaluate` and scikit-learn take more than a second, and training needs neither
    if name != "ReasonAQAMetric":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .metric import ReasonAQAMetric

    return ReasonAQAMetric
