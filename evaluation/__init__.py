"""Answers, metrics, controls and statistics. docs/evaluate.md explains each number."""
