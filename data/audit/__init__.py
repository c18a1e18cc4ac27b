"""Audits of a corpus before training."""
