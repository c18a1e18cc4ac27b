"""What every room needs: user errors, the record of a run, digests, atomic files, tables, the CPU.

Functions that need torch or pandas import it themselves, so that help and wrong options need not
wait for it.
"""

import ctypes
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    import pandas as pd

PACKAGE_FOLDER = Path(__file__).resolve().parent
RUN_INFO_FILE = "run_info.json"
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
# Options that name a secret. `--max_new_tokens` and `--tokenizer` do not.
SECRET_OPTION = re.compile(r"token(?![si])|password|secret|api[-_]?key|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)\w+")
PASSWORD_IN_URL = re.compile(r"://[^/@\s]+@")

# mallopt's parameters, from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGE_BLOCK_BYTES = 2**22

logger = logging.getLogger("audiolm")


class UserError(ValueError):
    """A wrong option, path or file. Commands print its message as one line, without a traceback."""


@contextmanager
def report_user_errors(program: str) -> Iterator[None]:
    """Decorates a command's `main`: a `UserError` becomes one line on stderr and exit status 1.

    Ctrl-C exits with status 130. Every other exception is a bug and keeps its traceback.

    Args:
        program: Name that stands before the message, such as `run_train.py` or `audiolm ask`.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def explain_errors(message: str = "", *types: type[Exception]) -> Iterator[None]:
    """Turns errors of some types, by default of files and their content, into a `UserError`.

    The error's text follows `message`, which says what was read or written.
    """
    explained = types or (OSError, ValueError)
    try:
        yield
    except explained as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{message}: {reason}" if message else reason) from error


def option(help_text: str, default: Any = None, **argparse_options: Any) -> Any:
    """Declares an option as a field of a dataclass. `argparse_options` go to `add_argument`.

    With `dataclasses.MISSING` as its default it must be given.
    """
    metadata = {"help": help_text, **argparse_options}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_positive(options: object, *names: str) -> None:
    """Raises a `UserError` if one of these options is a number that is not above 0."""
    for name in names:
        value = getattr(options, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not value > 0:
            raise UserError(f"--{name} {value}: expected a positive number")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, which becomes `path` if nothing is raised.

    A file is therefore complete or absent. A killed process leaves the temporary file, whose name
    ends with `.part`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file that is complete or absent."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: object) -> None:
    """Writes a value as indented JSON with `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_table(path: str | Path, *columns: str) -> "pd.DataFrame":
    """Reads a CSV file whose cells are texts. Cells that a row lacks at its end are empty.

    Raises:
        UserError: If the file is not readable, lacks one of `columns`, or has a name twice.
    """
    import pandas as pd

    with explain_errors(f"{path}: not a readable table"):
        # With `header`, pandas would rename a second column of one name and drop further cells.
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False).fillna("")
    table = table[1:].reset_index(drop=True).set_axis(table.iloc[0].to_list(), axis=1)
    if not set(columns) <= set(table) or not table.columns.is_unique:
        expected = f"expected {', '.join(columns)}, separated by commas, and none twice"
        raise UserError(f"{path}: has the columns {', '.join(table)}: {expected}")
    return table


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_digest(value: object) -> str:
    """Returns the SHA-256 of a value's JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_facts(path: str | Path) -> dict[str, str]:
    """Returns `name` and `sha256` of a file."""
    return {"name": Path(path).name, "sha256": file_digest(path)}


def public_name(name_or_path: str) -> str:
    """Returns a name that may be published: a Hub name as it is, the last part of a local path."""
    path = Path(name_or_path)
    return path.name if path.exists() or path.is_absolute() else name_or_path


def format_duration(seconds: float) -> str:
    """Formats a duration.

    >>> format_duration(0.0123), format_duration(75), format_duration(8000)
    ('12.3 ms', '1:15 min', '2:13 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, unit = (seconds / 60, "h") if seconds >= 3600 else (seconds, "min")
    return f"{int(minutes // 60)}:{int(minutes % 60):02d} {unit}"


def format_bytes(size: float) -> str:
    """Formats a number of bytes in decimal units.

    >>> format_bytes(999), format_bytes(1_500_000), format_bytes(98e9)
    ('999 B', '1.5 MB', '98.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def remove_secrets(argv: list[str]) -> list[str]:
    """Replaces secrets on a command line by `***`.

    A secret is the value of an option that names one, a word that looks like a token, or what
    stands before the @ of a URL.
    """
    cleaned = []
    is_secret_value = False
    for word in argv:
        name, equals, _ = word.partition("=")
        names_secret = name.startswith("-") and SECRET_OPTION.search(name) is not None
        if is_secret_value and not word.startswith("-"):
            word = "***"
        elif names_secret and equals:
            word = f"{name}=***"
        is_secret_value = names_secret and not equals
        word = SECRET_VALUE.sub(r"\1***", word)
        cleaned.append(PASSWORD_IN_URL.sub("://***@", word))
    return cleaned


def redact_token(error: Exception, token: str | None) -> str:
    """Returns an error's message as one line of at most 300 characters, without the token."""
    message = " ".join(str(error).split()) or type(error).__name__
    if token:
        message = message.replace(token, "***")
    return message[:300]


def code_facts() -> dict[str, str]:
    """Returns the versions of this package and its base, and the commit of the checkout."""
    facts = {"audiolm": __version__}
    git = ["git", "-C", str(PACKAGE_FOLDER), "--git-dir", str(PACKAGE_FOLDER / ".git")]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=DEVNULL, text=True)
        diff = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], stderr=DEVNULL)
        facts["commit"] = commit.strip() + (", with uncommitted changes" if diff.returncode else "")
    except (OSError, subprocess.CalledProcessError):  # installed from a wheel
        logger.debug("%s is not a git checkout", PACKAGE_FOLDER)
    facts |= {name: version(name) for name in ("torch", "transformers")}
    return facts | {"python": platform.python_version()}


def run_info(program: str, argv: list[str] | None, **entries) -> dict:
    """Returns what is needed to repeat a run: command without secrets, versions and machine.

    Args:
        program: Name of the command.
        argv: Its command line. Default: this process's.
        entries: Further entries, such as digests of the data.
    """
    import torch

    argv = sys.argv[1:] if argv is None else argv
    code = code_facts()
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            code[name] = version(name)
    has_cuda = torch.cuda.is_available()
    cpu = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "command": shlex.join([program, *remove_secrets(list(argv))]),
        "code": code,
        "machine": {
            "device": torch.cuda.get_device_name() if has_cuda else cpu,
            "cuda": torch.version.cuda if has_cuda else None,
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
        **entries,
    }


def resident_memory(kind: str) -> int | None:
    """Returns this process's memory in bytes, or None where the system does not tell.

    Args:
        kind: `VmRSS` for the memory now, `VmHWM` for the peak.
    """
    try:
        match = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def prepare_environment() -> None:
    """Sets what torch reads when it is imported. Variables that are set keep their values."""
    # Pages of 2 MB for large tensors. torch reads this with its first tensor, and transformers
    # allocates tensors when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for one another sleep soon. Otherwise they keep the core that the thread
    # they wait for needs, if another program is running (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def is_bfloat16_fast(use_cpu: bool = False) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones.

    These are GPUs since NVIDIA's Ampere, and CPUs with AVX512-BF16 or AMX.

    Args:
        use_cpu: Whether a run ignores the GPU.
    """
    import torch

    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.get_device_capability() >= (8, 0)
    if torch.accelerator.is_available() and not use_cpu:
        return False  # not measured
    # ATEN_CPU_CAPABILITY can take AVX512 away from torch.
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has_avx512 and has_bfloat16


def use_all_of_the_cpu(encodes: bool = True) -> None:
    """Uses every core of a machine without a GPU, and sets glibc's allocator.

    `accelerate launch` leaves a CPU process one thread. An encoder loses half its time to page
    faults if glibc returns large blocks to the system, so they are kept. A training step on cached
    features loses a tenth, and kept blocks nearly double its memory, so freed blocks of 4 MB and
    more go back.

    Args:
        encodes: Whether the process runs an encoder.
    """
    import torch

    if torch.cuda.is_available():
        return
    is_accelerate_default = "ACCELERATE_DYNAMO_BACKEND" in os.environ
    if os.environ.get("OMP_NUM_THREADS") == "1" and is_accelerate_default:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_processes))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    if encodes:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    else:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
