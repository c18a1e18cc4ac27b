"""Small encoders, a small language model and three trained AudioLMs for soundscapes; README.md is their card."""

from pathlib import Path

FOLDER = Path(__file__).parent / "models"
MODEL_NAMES = ("htsat", "mimi_semantic", "mimi_full")


def models() -> dict[str, Path]:
    """Folders of the demo's trained models, by arm."""
    return {arm: FOLDER / arm for arm in MODEL_NAMES}
