"""Asking a trained model: `audiolm ask` and the web page."""
