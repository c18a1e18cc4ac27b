"""Pushing models and evaluation results to the Hugging Face Hub."""
