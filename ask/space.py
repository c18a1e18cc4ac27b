"""Writes a Hub Space that runs the page: `audiolm app --space FOLDER`."""

import shutil
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

from jinja2 import Template

from ..demo import MODEL_NAMES
from ..runtime import PACKAGE_FOLDER, UserError

ROOMS = ("ask", "checkpoints", "data", "demo", "evaluation")


def write_space(folder: Path, models: list[str], trust_remote_code: bool = False) -> None:
    """Writes a Space: this package, its requirements, a page of the models, and the Hub's card.

    With `trust_remote_code` the Space runs the file of an encoder that is pushed with a model.

    Raises:
        UserError: If a model is a local folder, which the Space would not have, or `folder` exists.
    """
    published = [model for model in models if model not in MODEL_NAMES]
    for model in published:
        if Path(model).exists() or len(Path(model).parts) != 2:
            raise UserError(f"--space: {model} is not on the Hub. Push it and give its Hub name.")
    if folder.exists():
        raise UserError(f"--space {folder}: exists already")
    ignored = ["__pycache__", "*.png"]
    if models and not set(models) & set(MODEL_NAMES):
        ignored.append("models")  # the demo's weights
    for room in ROOMS:
        ignore = shutil.ignore_patterns(*ignored)
        shutil.copytree(PACKAGE_FOLDER / room, folder / "audiolm" / room, ignore=ignore)
    for file in [*PACKAGE_FOLDER.glob("*.py"), PACKAGE_FOLDER / "LICENSE"]:
        shutil.copyfile(file, folder / "audiolm" / file.name)
    setup = ConfigParser()
    setup.read(PACKAGE_FOLDER / "setup.cfg", encoding="utf-8")
    template = Template((Path(__file__).parent / "templates" / "space.md").read_text("utf-8"))
    card = template.render(gradio_version=version("gradio"), models=published)
    arguments = [*models, "--trust_remote_code"] if trust_remote_code else models
    files = {
        "requirements.txt": setup["options"]["install_requires"].strip(),
        "app.py": f"from audiolm.ask.app import main\n\nmain({arguments!r})",
        "README.md": card,
    }
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
