"""Clips decoded while a run goes on: within a time limit, named in whatever goes wrong, and replaced if that is asked for."""

import os
import queue
import re
from collections.abc import Callable
from ctypes import c_char
from multiprocessing.sharedctypes import RawArray
from threading import Thread

import torch
from torch.utils.data import get_worker_info

from .audio_files import Clip, clip_audio

WORKERS, NOTE = 64, 1024  # processes of a loader that are known, and bytes of what one is at


class BadClip(ValueError):
    """A clip that could not be decoded; one line that names it."""


class ClipDecoder:
    """Samples of clips at the extractor's rate, each within `timeout` seconds.

    Args:
        skip: [`ReasonAQACollator`] puts another row in the place of one whose clip is bad.
    """

    def __init__(self, extractor, timeout: float = 60.0, skip: bool = False):
        self.extractor, self.timeout, self.skip = extractor, timeout, skip
        self.notes = RawArray(c_char, WORKERS * NOTE)  # shared with the loader's processes
        self._process, self._idle = (
            os.getpid(),
            [],
        )  # helpers' queues; in another process there are none

    def __call__(self, clip: Clip, name: str | None = None) -> torch.Tensor:
        """(samples,).

        Raises:
            BadClip: which says by `name`, or the clip's own, what is wrong.
        """
        name = name or (clip if isinstance(clip, str) else "a clip that has no name")
        self._note(name)
        try:
            return self._in_time(lambda: self._decoded(clip))
        except queue.Empty:
            raise BadClip(f"{name}: not decoded within {self.timeout:g} s") from None
        except Exception as error:  # decoders fail in many ways
            said = (isinstance(error, OSError) and error.strerror) or str(error).replace(
                name + " ", ""
            )
            said = re.sub(r"<_io\.BytesIO object at \w+>", "it", said)
            raise BadClip(f"{name}: {said or type(error).__name__}") from error
        finally:
            self._note("")

    def _decoded(self, clip: Clip) -> torch.Tensor:
        if isinstance(clip, str) and os.path.exists(clip):  # else it is inside a shard, or gone
            with open(
                clip, "rb"
            ) as file:  # where this hangs, nobody else does; soundfile opens one file at a time
                file.read(1)
        return self.extractor.load(clip_audio(clip, self.extractor.max_audio_seconds))

    def _in_time(self, work: Callable):
        """What `work` returns. A thread does it, since a read from a network that is gone hears no signal; where one hangs, it
        is left behind, and the next clip gets another."""
        if self._process != os.getpid():
            self._process, self._idle = os.getpid(), []
        try:
            jobs = self._idle.pop()
        except IndexError:
            jobs = queue.SimpleQueue()
            Thread(target=_serve, args=[jobs], daemon=True).start()
        answer: queue.SimpleQueue = queue.SimpleQueue()
        jobs.put((work, answer))
        try:
            result, error = answer.get(timeout=self.timeout)
        except queue.Empty:
            jobs.put(None)  # it ends, should it ever return
            raise
        self._idle.append(jobs)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Ends its threads; it may be used again."""
        while self._idle and self._process == os.getpid():
            self._idle.pop().put(None)

    def __del__(self):
        if self.__dict__.get("_idle"):  # not if its making failed
            self.close()

    def __getstate__(self):
        return {**self.__dict__, "_idle": []}

    def _note(self, name: str) -> None:
        worker = get_worker_info()
        at = NOTE * ((worker.id if worker else 0) % WORKERS)
        text = f"{os.getpid()} {name}".encode(errors="replace")[: NOTE - 1] if name else b""
        self.notes[at : at + NOTE] = text.ljust(NOTE, b"\0")

    def at_death(self, message: str) -> str | None:
        """What the process decoded whose number stands in the loader's message of its death; None if nothing is known."""
        notes = (
            self.notes[at : at + NOTE].rstrip(b"\0").decode(errors="replace")
            for at in range(0, WORKERS * NOTE, NOTE)
        )
        known = dict(note.split(" ", 1) for note in notes if note)
        return next(
            (known[number] for number in re.findall(r"\d+", message) if number in known), None
        )


def _serve(jobs: queue.SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        work, answer = job
        try:
            answer.put((work(), None))
        except Exception as error:
            answer.put((None, error))


def replaced(rows: list[dict], bad: dict[int, str]) -> list[dict]:
    """The rows, and in the place of each bad one the next sound row of the batch, from its start again behind its end.

    Args:
        bad: what is wrong, by the row's place.

    Raises:
        BadClip: if no row is sound.
    """
    if len(bad) == len(rows):
        raise BadClip(f"no clip of a batch can be used ({next(iter(bad.values()))})")
    sound = [i for i in range(len(rows)) if i not in bad]
    return [
        rows[next((j for j in sound if j > i), sound[0])] if i in bad else row
        for i, row in enumerate(rows)
    ]
