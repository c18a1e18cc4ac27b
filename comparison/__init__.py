"""Compares encoders: plans, runs and reads many runs, and computes their paired statistics."""
