"""Answering, parsing, metrics, controls, statistics and reports; docs/evaluation.md says what each number is."""

from .metric import ReasonAQAMetric
from .parsing import parse_answer

__all__ = ["ReasonAQAMetric", "parse_answer"]
