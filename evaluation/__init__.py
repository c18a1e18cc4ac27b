"""Parsing of answers, accuracy by question type."""

from .metric import ReasonAQAMetric
from .parsing import parse_answer

__all__ = ["ReasonAQAMetric", "parse_answer"]
