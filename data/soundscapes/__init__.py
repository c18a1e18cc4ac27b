"""A synthetic corpus: sound events, scenes and balanced questions about them."""

import json
from pathlib import Path

MANIFEST = "soundscapes.json"


def is_synthetic(folder: Path) -> bool:
    """Whether a folder holds a corpus of synthesised sounds, not of recordings."""
    manifest = folder / MANIFEST
    return manifest.is_file() and "recordings" not in json.loads(manifest.read_text("utf-8"))
