"""Downloading ReasonAQA and its audio."""
