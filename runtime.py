"""The process of a run: its cores and memory, and `run_info.json`, by which its numbers can be made again."""

import ctypes
import json
import os
import platform
import re
import shlex
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback

from .hub.model_card import code_facts

FILE = "run_info.json"
PACKAGES = ("torchaudio", "datasets", "accelerate", "evaluate", "huggingface_hub", "tokenizers", "numpy", "soundfile", "peft")
SECRET = re.compile(r"token(?![si])|password|secret|api[-_]?key|credential", re.IGNORECASE)  # not tokens, nor tokenizer


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
        "command": shlex.join([program, *without_secrets(list(sys.argv[1:] if words is None else words))]),
        "code": code_facts() | _versions(),
        "machine": {
            "device": torch.cuda.get_device_name() if gpu else f"CPU ({torch.backends.cpu.get_cpu_capability()})",
            "cuda": torch.version.cuda if gpu else None,
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
        **more,
    }


def write_run_info(folder: str | Path, info: dict) -> None:
    Path(folder, FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def log_line(step: int, steps: int, logs: dict) -> str:
    """What is logged at a step, as a person reads it."""
    shown = {"loss": "{:.4f}", "grad_norm": "{:.3g}", "learning_rate": "{:.2e}", "epoch": "{:.2f}"}
    parts = [f"{name.removeprefix('eval_').replace('_', ' ')} {shown.get(name, '{:.4g}').format(value)}"
             for name, value in logs.items() if isinstance(value, (int, float)) and name != "total_flos"]  # fmt: skip
    evaluated = " evaluation:" if any(name.startswith("eval_") for name in logs) else ""
    return f"step {step:,} of {steps:,}:{evaluated} {', '.join(parts)}"


class Progress(ProgressCallback):
    """The stock bars, with lines that say their step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(log_line(state.global_step, state.max_steps, logs))


class Lines(PrinterCallback):
    """The same lines without bars, for `--disable_tqdm true`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            print(log_line(state.global_step, state.max_steps, logs), flush=True)


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
