"""Hook of mkdocs: lets mkdocstrings find the package under its name, whatever the folder's name.

mkdocs.yml names the folder `outputs/site_package`.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = ROOT / "outputs" / "site_package" / "audiolm"

LINK.parent.mkdir(parents=True, exist_ok=True)
if not LINK.exists():
    LINK.symlink_to(ROOT, target_is_directory=True)
