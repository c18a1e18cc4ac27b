"""Comparing encoders: planning, running and reading many runs, and their paired statistics."""
