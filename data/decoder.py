"""Decodes clips during a run, each within a time limit.

A `DataLoader` has a `timeout` of its own, but it ends the run and does not name the file.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

import torch

from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import UserError
from .audio_files import Clip, clip_audio, describe_error


class BadClip(UserError):
    """A clip that cannot be decoded. The message is one line that names the clip."""

    def __init__(self, message: str):
        # A DataLoader worker sends the exception with its traceback in front of the message.
        last_line = message.strip().splitlines()[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.BadClip: "))


@dataclass
class ClipDecoder:
    """Decodes clips to samples at the extractor's sampling rate."""

    extractor: AudioLMFeatureExtractor
    timeout: float = 60.0  # seconds for a clip
    skip_bad_clips: bool = False  # whether the collator replaces examples whose clip is bad

    def __call__(self, clip: Clip, name: str | None = None) -> torch.Tensor:
        """Returns the samples of a clip, shape `(samples,)`.

        Raises:
            BadClip: If the clip cannot be decoded in time. The message has `name` or the path.
        """
        name = name or (clip if isinstance(clip, str) else "a clip without a name")
        try:
            return _run_within(self.timeout, lambda: self._decode(clip))
        except TimeoutError:
            raise BadClip(f"{name}: not decoded within {self.timeout:g} s") from None
        except Exception as error:  # Decoders fail in many ways.
            message = describe_error(error).replace(f"{name} ", "")
            reason = " ".join(message.split()) or type(error).__name__
            raise BadClip(f"{name}: {reason}") from error

    def _decode(self, clip: Clip) -> torch.Tensor:
        if isinstance(clip, str) and os.path.exists(clip):
            # soundfile opens one file at a time, so a file that hangs there would block all
            # others. This read hangs instead.
            with open(clip, "rb") as file:
                file.read(1)
        return self.extractor.load(clip_audio(clip, self.extractor.max_audio_seconds))


def _run_within(seconds: float, function: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Returns what a function returns, or raises `TimeoutError` after some seconds.

    The function runs in a thread, because no signal interrupts a read from a lost network
    mount. A thread that hangs is abandoned. As a daemon it does not keep the process alive.
    """
    outcome: Future = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    return outcome.result(seconds)


def replace_bad_examples(examples: list[dict], faults: dict[int, str]) -> list[dict]:
    """Replaces each bad example by the next valid one of its batch, from the start after the end.

    `faults` has what is wrong with a bad example, by its index.

    Raises:
        BadClip: If no example is valid.
    """
    if len(faults) == len(examples):
        raise BadClip(f"no clip of a batch can be used ({next(iter(faults.values()))})")
    valid = [i for i in range(len(examples)) if i not in faults]
    replaced = list(examples)
    for i in faults:
        replaced[i] = examples[next((j for j in valid if j > i), valid[0])]
    return replaced
