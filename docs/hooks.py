"""Hook of mkdocs: lets mkdocstrings find the package under its name, whatever the folder's name.

mkdocs.yml names the folder `outputs/site_package`.
"""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "outputs" / "site_package" / "audiolm"

shutil.rmtree(PACKAGE, ignore_errors=True)
PACKAGE.mkdir(parents=True)
for entry in ROOT.iterdir():
    if entry.suffix == ".py" or (entry / "__init__.py").is_file():
        (PACKAGE / entry.name).symlink_to(entry)
