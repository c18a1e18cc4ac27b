"""The process of a run: its cores and memory, and `run_info.json`, by which its numbers can be made again."""

import ctypes
import gc
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import torch

from . import __version__

OUT_OF_MEMORY = "the memory does not suffice, as it seems; take a smaller --batch_size"
FILE = "run_info.json"
PACKAGES = (
    "torchaudio",
    "datasets",
    "accelerate",
    "evaluate",
    "huggingface_hub",
    "tokenizers",
    "numpy",
    "soundfile",
    "peft",
)
SECRET = re.compile(
    r"token(?![si])|password|secret|api[-_]?key|credential", re.IGNORECASE
)  # not tokens, nor tokenizer


def without_secrets(words: list[str]) -> list[str]:
    """Words of a command line, with `***` for what follows an option that names a secret, looks like a token, or stands before
    the @ of an address."""
    kept, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and SECRET.search(name)
        if hide and not word.startswith("-"):
            word = "***"
        elif secret and equals:
            word = f"{name}=***"
        hide = bool(secret and not equals)
        word = re.sub(r"\b(hf_|sk-|ghp_|github_pat_)\w+", r"\1***", word)
        kept.append(re.sub(r"://[^/@\s]+@", "://***@", word))
    return kept


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def run_info(program: str, words: list[str] | None, **more) -> dict:
    """What was run.

    Args:
        program: its file's name. words: its command line, by default this process's. more: what else belongs to it, such as
            fingerprints of data.
    """
    gpu = torch.cuda.is_available()
    return {
        "command": shlex.join(
            [program, *without_secrets(list(sys.argv[1:] if words is None else words))]
        ),
        "code": code_facts() | _versions(),
        "machine": {
            "device": torch.cuda.get_device_name()
            if gpu
            else f"CPU ({torch.backends.cpu.get_cpu_capability()})",
            "cuda": torch.version.cuda if gpu else None,
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
        **more,
    }


def write_run_info(folder: str | Path, info: dict) -> None:
    Path(folder, FILE).write_text(
        json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def use_all_of_the_cpu(encodes: bool = True) -> None:
    """Without a GPU: every core for this process's share, and a use of memory that fits what it does.

    `accelerate launch` leaves a CPU process one thread. An encoder loses half its time to page faults where glibc gives large
    blocks back to the system; so they are kept. A step from cached features (`encodes=False`) loses a tenth, and kept blocks
    that do not fit the next activation nearly double its memory; so what is freed of 4 MB and more goes back.
    """
    if torch.cuda.is_available():
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_DYNAMO_BACKEND" in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    if encodes:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    else:
        mallopt(-3, 2**22)  # M_MMAP_THRESHOLD


def redact_token(error: Exception, token: str | None) -> str:
    """One line of an error, without the token if some part of it should hold it."""
    said = " ".join(str(error).split()) or type(error).__name__
    return (said.replace(token, "***") if token else said)[:300]


def public_name(name_or_path: str) -> str:
    """A Hub name as it is; of a file or folder of this machine its last part alone, for a page that anyone reads."""
    path = Path(name_or_path)
    return path.name if path.exists() or path.is_absolute() else name_or_path


def file_facts(path: str | Path) -> dict[str, str]:
    """Name and SHA-256 of a file."""
    with open(path, "rb") as stream:
        return {
            "name": Path(path).name,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def code_facts() -> dict[str, str]:
    """Version of this package, the commit of its checkout (and whether files differ from it), and of what it runs on."""
    folder, facts = Path(__file__).parents[1], {"audiolm": __version__}
    try:
        git = ["git", "-C", str(folder), *("--git-dir", str(folder / ".git"))]
        facts["commit"] = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True
        ).returncode
        facts["commit"] += ", with changes that are not committed" if changed else ""
    except (OSError, subprocess.CalledProcessError):  # installed, not a checkout
        pass
    return (
        facts
        | {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()}
    )


def resident_memory(kind: str) -> int | None:
    """This process's memory in bytes, `VmRSS` now or `VmHWM` at most; None where Linux does not tell."""
    try:
        found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def run_isolated(function, *arguments, **environment: str):
    """What a function returns with a memory of its own: on a CPU in a new process, which has these variables; on a GPU, where
    a process would take longer to start than most of these functions, in this one, with nothing left from those before.

    Raises:
        ValueError: also if the memory does not suffice.
    """
    if torch.cuda.is_available():
        return in_this_process(function, *arguments)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # glibc reads them as the process starts
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *arguments).result()
    except RuntimeError as error:
        if isinstance(error, BrokenProcessPool) or "allocate memory" in str(error):
            raise ValueError(OUT_OF_MEMORY) from error
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def in_this_process(function, *arguments):
    """What a function returns, leaving nothing of it on the GPU."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        raise ValueError(OUT_OF_MEMORY) from error
    finally:
        torch._dynamo.reset()  # it holds what it has compiled
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
