"""METEOR and SPICE, which run in Java: pycocoevalcap ships their programs."""

import importlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Java is stopped after this time. METEOR takes about 10 s and 0.001 s per text, SPICE up to 2 s.
START_SECONDS = 300
SECONDS_PER_TEXT = 2

# A prediction and its references.
Texts = tuple[str, tuple[str, ...]]


class NotRun(Exception):
    """A metric has no value. The message says why, and what to do."""


def meteor(items: Sequence[Texts]) -> float:
    """Returns METEOR 1.5 of a set of items, or raises [`NotRun`]."""
    # The program reads equally many references for each item. It uses the best one, so repeats
    # change nothing.
    count = max(len(references) for _, references in items)
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder, "predictions.txt")
        predictions.write_text("".join(f"{text}\n" for text, _ in items), encoding="utf-8")
        lines = Path(folder, "references.txt")
        with open(lines, "w", encoding="utf-8") as file:
            for _, references in items:
                padding = [references[0]] * (count - len(references))
                file.writelines(f"{text}\n" for text in (*references, *padding))
        options = ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar", str(predictions)]
        options += [str(lines), "-l", "en", "-norm", "-r", str(count)]
        return _run_java("meteor.meteor", options, r"Final score:\s*([\d.E-]+)", items)


def spice(items: Sequence[Texts]) -> float:
    """Returns SPICE 1.0, averaged over items, to three decimals, or raises [`NotRun`]."""
    library = program_folder("spice.spice") / "lib"
    find_java()
    missing = [name for name in SPICE_MODELS if not (library / name).exists()]
    if missing:
        raise NotRun(
            f"{' and '.join(missing)} not in pycocoevalcap/spice/lib: "
            "`python -m pycocoevalcap.spice.get_stanford_models` downloads them"
        )
    texts = [
        {"image_id": number, "test": text, "refs": references}
        for number, (text, references) in enumerate(items)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.json")
        path.write_text(json.dumps(texts), encoding="ascii")
        # Without pycocoevalcap's options -cache and -out, which fail from Java 16 and 15 on.
        options = ["-Xmx8G", "-jar", "spice-1.0.jar", str(path)]
        pattern = r"f-score:\s*(\d[.,]\d+) \(SPICE metric\)"
        return _run_java("spice.spice", options, pattern, items)


def import_pycocoevalcap(module: str) -> ModuleType:
    """Imports a module of pycocoevalcap, or raises [`NotRun`]."""
    try:
        return importlib.import_module(f"pycocoevalcap.{module}")
    except ImportError as error:
        raise NotRun(f"needs pycocoevalcap: `pip install audiolm[captions]` ({error})") from error


def program_folder(module: str) -> Path:
    """Returns the folder of a module of pycocoevalcap, which holds its Java program."""
    return Path(str(import_pycocoevalcap(module).__file__)).parent


def find_java() -> str:
    """Returns the path of `java`, or raises [`NotRun`]."""
    java = shutil.which("java")
    if java is None:
        raise NotRun(
            "needs Java, and `java` is not on PATH: install a Java runtime "
            "(Debian's default-jre-headless)"
        )
    return java


def _run_java(module: str, options: list[str], pattern: str, items: Sequence[Texts]) -> float:
    """Runs a program in the folder of a pycocoevalcap module, and reads the number it prints."""
    folder = program_folder(module)
    seconds = START_SECONDS + SECONDS_PER_TEXT * sum(1 + len(texts) for _, texts in items)
    try:
        done = subprocess.run(
            [find_java(), *options],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise NotRun(f"Java took longer than {seconds:.0f} s") from error
    except OSError as error:
        raise NotRun(f"Java failed: {error}") from error
    match = re.search(pattern, done.stdout)
    if done.returncode or not match:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "Exception" in line or "Error" in line]
        raise NotRun(f"Java failed: {errors[0][:200] if errors else 'it printed no score'}")
    return float(match[1].replace(",", "."))
