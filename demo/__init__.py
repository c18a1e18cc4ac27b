"""Small encoders, two small language models and three trained AudioLMs. README.md is their card."""

from pathlib import Path

FOLDER = Path(__file__).parent / "models"
MODEL_NAMES = ("htsat", "mimi_semantic", "mimi_full")
