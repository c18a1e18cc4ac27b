"""Write a Hub Space that runs the page."""

import shutil
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

from ..demo import MODEL_NAMES


def write_space(folder: Path, models: list[str]) -> None:
    """A folder that is a Space: this package, its requirements, a page of these models, and the card that the Hub reads.

    Raises:
        ValueError: if a model is a folder, which the Space would not have. OSError: if something is there already.
    """
    own = [model for model in models if model not in MODEL_NAMES]
    if local := [model for model in own if Path(model).exists() or len(Path(model).parts) != 2]:
        raise ValueError(
            f"--space: {local[0]} is on this machine alone; push it to the Hub, and give its name there"
        )
    here = Path(__file__).resolve().parents[1]
    folder.mkdir(parents=True)
    left_out = shutil.ignore_patterns(
        "__pycache__",
        "*.png",
        *(() if set(models or MODEL_NAMES) & set(MODEL_NAMES) else ("models",)),
    )
    for part in ("data", "evaluation", "demo"):
        shutil.copytree(here / part, folder / "audiolm" / part, ignore=left_out)
    for file in [*here.glob("*.py"), here / "LICENSE"]:
        shutil.copyfile(file, folder / "audiolm" / file.name)
    metadata = ConfigParser()
    metadata.read(here / "setup.cfg", encoding="utf-8")
    (folder / "requirements.txt").write_text(
        metadata["options"]["install_requires"].strip() + "\n", encoding="utf-8"
    )
    (folder / "app.py").write_text(
        f"from audiolm.ask.app import main\n\nmain({models!r})\n", encoding="utf-8"
    )
    named = "".join(f"\n- {model}" for model in own)
    (folder / "README.md").write_text(
        f"""---
title: AudioLM
emoji: 👂
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {version("gradio")}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Ask models with different ears about a clip{f"{chr(10)}models:{named}" if named else ""}
---

Models that hear through a classifier (HTSAT) or a neural codec (Mimi) answer the same question about your clip, side by side.
""",
        encoding="utf-8",
    )
