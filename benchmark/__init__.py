"""Measures what a training step and an evaluation cost."""
