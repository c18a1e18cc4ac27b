"""All rows of an evaluation and its controls, answered: shared out among processes, and gone on with where it was interrupted.

Rows are answered in chunks of whole clips, so that each clip is encoded once and memory does not grow with the rows. A chunk's
batches depend on its rows alone: any number of processes gives the same answers.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tqdm import tqdm

from ..data.reasonaqa import FIELDS
from .answering import answer_batch
from .controls import clip_features, mean_audio_features, noise_of_equal_power, shift_option_letters

ROWS_PER_CHUNK = 256


def rows_digest(rows: Dataset) -> str:
    """SHA-256 of the eight fields of all rows, in their order."""
    found = hashlib.sha256()
    for batch in rows.iter(1000):
        for values in zip(*(batch[field] for field in FIELDS)):
            found.update(json.dumps(values).encode() + b"\n")
    return found.hexdigest()


def model_digest(model) -> str:
    """SHA-256 of a model's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(
            name.encode()
            + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


def chunks(rows: Dataset, size: int) -> list[list[int]]:
    """Numbers of the rows, in chunks of at least `size`; all rows of a first clip are in one.

    Clips come in the order of their names' hashes, so that neighbours have nothing in common.
    """
    by_clip: dict[str, list[int]] = {}
    for number, name in enumerate(rows["filepath1"]):
        by_clip.setdefault(name, []).append(number)
    made: list[list[int]] = []
    for name in sorted(by_clip, key=lambda name: (hashlib.sha256(name.encode()).digest(), name)):
        if not made or len(made[-1]) >= size:
            made.append([])
        made[-1] += by_clip[name]
    if (
        len(made) > 1 and len({rows[i]["filepath1"] for i in made[-1]}) == 1
    ):  # alone, it has no other clip's audio
        last = made.pop()
        made[-1] += last
    return made


class Answerer:
    """A model and how it is asked.

    Args:
        protocols: of "likelihood" and "generate". controls: of `CONTROLS`, those that change what this model is given.
        precision: "fp32", or "bf16" by autocast. cache: a [`FeatureCache`] that holds all clips. rows: that are asked in
            place of those of the evaluation, as many.
    """

    def __init__(
        self,
        model,
        processor,
        protocols,
        controls=(),
        batch_size=16,
        max_new_tokens=64,
        precision="fp32",
        cache=None,
        rows=None,
    ):
        self.model, self.processor, self.cache, self.rows = model, processor, cache, rows
        self.protocols, self.controls = tuple(protocols), tuple(controls)
        self.batch_size, self.max_new_tokens, self.precision = batch_size, max_new_tokens, precision
        self.seconds = {"encoding": 0.0, "answering": 0.0, "controls": 0.0}

    def chunk(self, rows: list[dict], bar: tqdm) -> list[dict[str, dict]]:
        """What `answer_batch` says to each row, by condition: "audio", or the control's name."""
        start = time.perf_counter()
        extractor = self.processor.feature_extractor
        clips = list(dict.fromkeys(clip for row in rows for clip in row["audio"]))
        if self.cache is None:
            features = clip_features(self.model, extractor, clips)
        else:
            features = {clip: self.cache[clip] for clip in clips}
        self.seconds["encoding"] += time.perf_counter() - start
        results: list[dict[str, dict]] = [{} for _ in rows]
        self._ask("audio", list(enumerate(rows)), features, results, bar, self.protocols)
        for control in self.controls:
            asked, heard = list(enumerate(rows)), features
            if control == "no_audio":
                heard = {clip: mean_audio_features(self.model, features[clip]) for clip in clips}
            elif control == "noise":
                heard = clip_features(self.model, extractor, clips, alter=noise_of_equal_power)
            elif control == "mismatched_audio":
                heard = {clip: features[other] for clip, other in zip(clips, clips[1:] + clips[:1])}
            elif control == "option_relabel":
                asked = [
                    (i, moved[0])
                    for i, row in enumerate(rows)
                    if (moved := shift_option_letters(row))
                ]
            # a control says what is answered without the audio; how that would read is not of interest
            self._ask(control, asked, heard, results, bar, self.protocols[:1])
        return results

    @staticmethod
    def _frames(clip) -> int:
        return len(clip) if clip.is_floating_point() else clip.shape[-1]

    def _ask(self, condition, asked, features, results, bar, protocols) -> None:
        start = time.perf_counter()
        # together those that are alike: of one type, whose answers end alike, and of one length
        frames = {clip: self._frames(features[clip]) for _, row in asked for clip in row["audio"]}
        asked = sorted(
            asked,
            key=lambda of: (
                of[1]["question_type"],
                sum(frames[clip] for clip in of[1]["audio"]),
                len(of[1]["input"]),
                of[0],
            ),
        )
        for at in range(0, len(asked), self.batch_size):
            part = asked[at : at + self.batch_size]
            rows = [row for _, row in part]
            with torch.autocast(
                self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"
            ):
                made = answer_batch(
                    self.model, self.processor, rows, features, protocols, self.max_new_tokens
                )
            for (i, _), result in zip(part, made):
                results[i][condition] = result
            bar.update(len(part))
        self.seconds["answering" if condition == "audio" else "controls"] += (
            time.perf_counter() - start
        )


def _kept(files: list[Path], settings: dict) -> Iterator[tuple[int, dict]]:
    """Chunks that an interrupted evaluation of these settings has answered; what was torn, or has others, is left out."""
    for file in files:
        lines = file.read_text(encoding="utf-8").split("\n")[
            :-1
        ]  # the last one is whole, or empty, or torn
        if not lines or json.loads(lines[0]) != settings:
            print(f"{file} is of another evaluation and is not used", file=sys.stderr)
            continue
        for line in lines[1:]:
            found = json.loads(line)
            yield found["chunk"], found["results"]


def answer_rows(
    rows: Dataset, answerers: dict[str, Answerer], output_dir: Path, settings: dict, state
) -> list[dict] | None:
    """What each row was answered under each condition, in the rows' order; None in other processes than the main one.

    Args:
        answerers: the model, named "", and others whose "audio" goes under their name. settings: what the answers depend on; an
            interrupted evaluation is gone on with where they are equal. state: `accelerate.PartialState`.
    """
    work = chunks(rows, ROWS_PER_CHUNK)
    files = sorted(output_dir.glob("predictions.part*.jsonl"))
    done = dict(_kept(files, settings))
    state.wait_for_everyone()  # all have read before one writes
    if state.is_main_process:
        new = output_dir / "predictions.new"  # all of it is there before an earlier part goes
        with open(new, "w", encoding="utf-8") as kept:
            kept.write(json.dumps(settings) + "\n")
            kept.writelines(
                json.dumps({"chunk": c, "results": of}) + "\n" for c, of in done.items()
            )
        new.replace(output_dir / "predictions.part.jsonl")
        for file in files:
            if file.name != "predictions.part.jsonl":
                file.unlink()
    state.wait_for_everyone()
    conditions = sum(1 + len(answerer.controls) for answerer in answerers.values())
    todo = [chunk for chunk in range(len(work)) if chunk not in done]
    mine = todo[state.process_index :: state.num_processes]
    bar = tqdm(
        total=conditions * sum(len(work[chunk]) for chunk in mine),
        desc="answering",
        unit="row",
        disable=None if state.is_main_process else True,
    )
    with (
        open(
            output_dir / f"predictions.part{state.process_index}.jsonl", "w", encoding="utf-8"
        ) as part,
        bar,
    ):
        part.write(json.dumps(settings) + "\n")
        for chunk in mine:
            found: list[dict] = [{} for _ in work[chunk]]
            for name, answerer in answerers.items():
                source = rows if answerer.rows is None else answerer.rows
                asked = [source[i] for i in work[chunk]]
                for row, made in zip(found, answerer.chunk(asked, bar)):
                    row |= {name: made["audio"]} if name else made
            part.write(
                json.dumps(
                    {"chunk": chunk, "results": {str(i): of for i, of in zip(work[chunk], found)}}
                )
                + "\n"
            )
            part.flush()
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    results = {
        int(i): of
        for _, made in _kept(sorted(output_dir.glob("predictions.part*.jsonl")), settings)
        for i, of in made.items()
    }
    return [results[i] for i in range(len(rows))]
