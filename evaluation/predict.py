"""Answers all examples of an evaluation under all conditions, in several processes, resumable.

Examples are answered in chunks of whole clips. Each clip is encoded once, and memory does not grow
with the number of examples. The batches of a chunk depend on its examples only, so any number of
processes gives the same answers.
"""

import hashlib
import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from tqdm import tqdm

from ..data.audio_files import Clip
from ..data.features import count_frames
from ..data.reasonaqa import FIELDS, iterate_columns
from ..runtime import write_text
from .answering import answer_batch
from .controls import (
    clip_features,
    mean_audio_features,
    mismatched_clips,
    noise_of_equal_power,
    shift_option_letters,
)

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..data.features import FeatureCache
    from ..modeling_audiolm import AudioLMForConditionalGeneration
    from ..processing_audiolm import AudioLMProcessor

ROWS_PER_CHUNK = 256


def rows_digest(rows: Dataset) -> str:
    """Returns the SHA-256 of all rows: their eight fields, in order."""
    digest = hashlib.sha256()
    for batch in rows.iter(1000):
        for values in zip(*(batch[name] for name in FIELDS)):
            digest.update(json.dumps(values).encode() + b"\n")
    return digest.hexdigest()


def split_into_chunks(rows: Dataset, size: int) -> list[list[int]]:
    """Splits row indices into chunks of `size` or more, so that no first clip is in two chunks.

    Clips come in the order of their names' hashes: neighbours have nothing in common. Every chunk
    has two clips, as the control `mismatched_audio` needs.
    """
    rows_by_clip: dict[str, list[int]] = {}
    for index, (name,) in enumerate(iterate_columns(rows, "filepath1")):
        rows_by_clip.setdefault(name, []).append(index)
    chunks: list[list[int]] = []
    clips_of_last_chunk = 0
    for name in sorted(rows_by_clip, key=_hash_order):
        if not chunks or len(chunks[-1]) >= size:
            chunks.append([])
            clips_of_last_chunk = 0
        chunks[-1] += rows_by_clip[name]
        clips_of_last_chunk += 1
    if len(chunks) > 1 and clips_of_last_chunk == 1:
        last = chunks.pop()
        chunks[-1] += last
    return chunks


def _hash_order(name: str) -> tuple[bytes, str]:
    return hashlib.sha256(name.encode()).digest(), name


@dataclass
class Answerer:
    """A model with the conditions under which it answers."""

    model: "AudioLMForConditionalGeneration"
    processor: "AudioLMProcessor"
    protocols: tuple[str, ...]
    # Those of `CONTROLS` that change this model's input.
    controls: tuple[str, ...] = ()
    batch_size: int = 16
    max_new_tokens: int = 64
    precision: str = "fp32"
    # Keeps encoded clips. Without it clips are encoded each time.
    cache: "FeatureCache | None" = None
    # Rows to ask in place of those of the evaluation, as many.
    rows: Dataset | None = None
    # Time spent so far, by activity.
    seconds: dict[str, float] = field(
        default_factory=lambda: {"encoding": 0.0, "answering": 0.0, "controls": 0.0}
    )

    def answer_chunk(self, rows: list[dict], bar: tqdm) -> list[dict[str, dict]]:
        """Returns the output of `answer_batch` for each row, under "audio" and each control."""
        clips = list(dict.fromkeys(chain.from_iterable(row["audio"] for row in rows)))
        with self._timed("encoding"):
            if self.cache is not None:
                features = self.cache.encode(clips)
            else:
                features = clip_features(self.model, self.processor.feature_extractor, clips)
        results: list[dict[str, dict]] = [{} for _ in rows]
        with self._timed("answering"):
            answers = self._answer(dict(enumerate(rows)), features, self.protocols, bar)
            for index, answer in answers:
                results[index]["audio"] = answer
        with self._timed("controls"):
            for control in self.controls:
                questions, altered = self._apply_control(control, rows, features)
                # Controls measure accuracy. One protocol is enough for that.
                for index, answer in self._answer(questions, altered, self.protocols[:1], bar):
                    results[index][control] = answer
        return results

    @contextmanager
    def _timed(self, activity: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.seconds[activity] += time.perf_counter() - start

    def _apply_control(
        self, control: str, rows: list[dict], features: dict[Clip, torch.Tensor]
    ) -> tuple[dict[int, dict], dict[Clip, torch.Tensor]]:
        questions = dict(enumerate(rows))
        clips = list(features)
        if control == "no_audio":
            features = {clip: mean_audio_features(self.model, features[clip]) for clip in clips}
        elif control == "noise":
            extractor = self.processor.feature_extractor
            features = clip_features(self.model, extractor, clips, alter=noise_of_equal_power)
        elif control == "mismatched_audio":
            lengths = {clip: count_frames(features[clip]) for clip in clips}
            others = mismatched_clips(rows, lengths)
            questions = {i: {**row, "audio": others[i]} for i, row in questions.items()}
        elif control == "option_relabel":
            shifted = {index: shift_option_letters(row) for index, row in questions.items()}
            questions = {index: pair[0] for index, pair in shifted.items() if pair}
        return questions, features

    def _answer(
        self,
        questions: dict[int, dict],
        features: dict[Clip, torch.Tensor],
        protocols: tuple[str, ...],
        bar: tqdm,
    ) -> Iterator[tuple[int, dict]]:
        # Answers of one question type stop at about the same length. Prompts of one length need no
        # padding.
        def similarity(index: int) -> tuple:
            row = questions[index]
            frames = sum(count_frames(features[clip]) for clip in row["audio"])
            return row["question_type"], frames, len(row["input"]), index

        order = sorted(questions, key=similarity)
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            rows = [questions[index] for index in indices]
            with torch.autocast(
                self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"
            ):
                answers = answer_batch(
                    self.model, self.processor, rows, features, protocols, self.max_new_tokens
                )
            yield from zip(indices, answers)
            bar.update(len(rows))


@dataclass(frozen=True)
class PartialAnswers:
    """The answered chunks of an evaluation, in files that survive an interruption.

    Each process appends to a file of its own. The first line of a file holds the settings of the
    evaluation, every other one a chunk: its number, and its answers by row index. Files with other
    settings are ignored.
    """

    folder: Path
    settings: dict

    def files(self) -> list[Path]:
        """Returns the files, of this evaluation or an earlier one."""
        return sorted(self.folder.glob("predictions.part*.jsonl"))

    def read(self) -> dict[int, dict[str, dict]]:
        """Returns the answers of all chunks, by number."""
        chunks = {}
        for file in self.files():
            # A killed process leaves an incomplete last line.
            lines = file.read_text(encoding="utf-8").split("\n")[:-1]
            if lines and json.loads(lines[0]) != self.settings:
                print(
                    f"{file}: ignored, it belongs to another evaluation (other settings)",
                    file=sys.stderr,
                )
                continue
            for line in lines[1:]:
                entry = json.loads(line)
                chunks[entry["chunk"]] = entry["results"]
        return chunks

    def replace(self, chunks: dict[int, dict[str, dict]]) -> None:
        """Replaces all files by one with these chunks."""
        earlier = self.files()
        merged = self.folder / "predictions.part.jsonl"
        lines = [_chunk_line(number, answers) for number, answers in chunks.items()]
        write_text(merged, "".join([json.dumps(self.settings) + "\n", *lines]))
        for file in earlier:
            if file != merged:
                file.unlink()

    def append(self, process: int, chunks: Iterable[tuple[int, dict[str, dict]]]) -> None:
        """Writes chunks to the file of a process, each at once."""
        path = self.folder / f"predictions.part{process}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.settings) + "\n")
            for number, answers in chunks:
                file.write(_chunk_line(number, answers))
                file.flush()

    def delete(self) -> None:
        """Deletes the files."""
        for file in self.files():
            file.unlink()


def _chunk_line(number: int, answers: dict[str, dict]) -> str:
    return json.dumps({"chunk": number, "results": answers}) + "\n"


def answer_rows(
    rows: Dataset,
    answerers: dict[str, Answerer],
    output_dir: Path,
    settings: dict,
    state: "PartialState",
) -> list[dict] | None:
    """Answers all rows, and resumes an interrupted evaluation with equal settings.

    Args:
        rows: The rows of the evaluation.
        answerers: The evaluated model under the name "". The "audio" condition of every other model
            gets that model's name.
        output_dir: Folder for the partial answers.
        settings: What the answers depend on.
        state: The processes that share the work.

    Returns:
        The answers to each row by condition, in the order of the rows. None in other processes than
        the main one.
    """
    chunks = split_into_chunks(rows, ROWS_PER_CHUNK)
    partial = PartialAnswers(output_dir, settings)
    answered = partial.read()
    # The files may only change after every process has read them.
    state.wait_for_everyone()
    if state.is_main_process:
        partial.replace(answered)
    state.wait_for_everyone()
    missing = [number for number in range(len(chunks)) if number not in answered]
    own = missing[state.process_index :: state.num_processes]
    conditions = sum(1 + len(answerer.controls) for answerer in answerers.values())
    bar = tqdm(
        total=conditions * sum(len(chunks[number]) for number in own),
        desc="answering",
        unit="row",
        disable=None if state.is_main_process else True,
    )
    with bar:
        answers = (_answer_chunk(rows, chunks[number], answerers, bar) for number in own)
        partial.append(state.process_index, zip(own, answers))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    results: dict[str, dict] = {}
    for answers in partial.read().values():
        results |= answers
    return [results[str(index)] for index in range(len(rows))]


def _answer_chunk(
    rows: Dataset, indices: list[int], answerers: dict[str, Answerer], bar: tqdm
) -> dict[str, dict]:
    answers: dict[str, dict] = {str(index): {} for index in indices}
    for name, answerer in answerers.items():
        source = rows if answerer.rows is None else answerer.rows
        chunk = answerer.answer_chunk([source[index] for index in indices], bar)
        for index, by_condition in zip(indices, chunk):
            answers[str(index)] |= {name: by_condition["audio"]} if name else by_condition
    return answers
