"""Loads weights: published encoders, trained AudioLMs, and the reference packages."""
