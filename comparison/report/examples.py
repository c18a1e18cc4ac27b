"""Test examples to browse in the report: clips, answers of each arm, and filters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import soundfile

from ...data.audio_files import open_clip
from ...data.clip_preview import preview_clip
from ...data.reasonaqa import CLOSED_QUESTION_TYPES, QUESTION_TYPES, AudioDir, resolve_path
from ...evaluation.answering import candidates
from ...evaluation.controls import CONTROLS
from ...evaluation.scores import option_probabilities
from ..runs import Run

NO_ANSWER = {"parsed": None, "correct": None}
VERDICTS = {True: "correct", False: "wrong", None: None}


def choose_examples(rows: list[dict], count: int) -> list[int]:
    """Chooses test examples, spread over question types and categories. The answers play no part.

    The next example is of the question type, then the category, chosen least so far. Of these it
    is the first in the test file whose clips were not chosen before. Returns indices into
    `rows`, ordered by question type.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row["question_type"], row["category"]), []).append(index)
    types: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    clips: set[str] = set()
    chosen = []
    while groups and len(chosen) < count:
        group = min(groups, key=lambda group: (types[group[0]], categories[group[1]]))
        unseen = (index for index in groups[group] if not clips & _clips(rows[index]))
        index = next(unseen, groups[group][0])
        groups[group].remove(index)
        if not groups[group]:
            del groups[group]
        types[group[0]] += 1
        categories[group[1]] += 1
        clips |= _clips(rows[index])
        chosen.append(index)
    return sorted(chosen, key=lambda i: (QUESTION_TYPES.index(rows[i]["question_type"]), i))


def _clips(row: Mapping) -> set[str]:
    return {row["filepath1"], row["filepath2"]} - {""}


def browse_examples(
    runs: Mapping[str, list[Run]], audio_dir: AudioDir | None, count: int
) -> list[dict]:
    """Returns the examples of the report, with their clips and all that the arms answered.

    Args:
        runs: Evaluations of each arm, one for each seed. Answers are those of the first seed.
        audio_dir: Where the clips are; None leaves out players and spectrograms.
        count: Number of examples.
    """
    first = next(iter(runs.values()))[0]
    protocol = first.metrics["protocol"]
    max_seconds = first.metrics["max_audio_seconds"]
    examples = []
    for index in choose_examples(first.rows, count):
        row = first.rows[index]
        rows = {arm: [run.rows[index] for run in seed_runs] for arm, seed_runs in runs.items()}
        first_rows = {arm: seed_rows[0] for arm, seed_rows in rows.items()}
        clips = zip((row["filepath1"], row["filepath2"]), row["seconds"])
        examples.append(
            {
                "number": index + 1,
                "question_type": row["question_type"],
                "category": row["category"],
                "question": row["input"],
                "truth": row["answer"],
                "answers": {arm: _describe_answer(rows[arm], protocol) for arm in rows},
                "clips": [describe_clip(*clip, audio_dir, max_seconds) for clip in clips],
                "options": _describe_options(first_rows),
                "conditions": list_conditions(first_rows, protocol),
            }
        )
    return examples


def _describe_answer(rows: Sequence[Mapping], protocol: str) -> dict:
    """Returns an arm's answer to one example, from its rows of each seed."""
    row = rows[0]
    generated = row["answers"].get("generate", NO_ANSWER)
    answer = row["answers"].get(protocol) or generated
    verdicts = [bool(seed["answers"].get(protocol, {}).get("correct")) for seed in rows]
    return {
        "correct": answer["correct"],
        "option": candidates(row).get(answer["parsed"], answer["parsed"]),
        "text": generated.get("text"),
        "loss": row["loss"] / row["n_tokens"],
        "correct_seeds": sum(verdicts),
        "seeds": len(rows),
    }


def _describe_options(rows: Mapping[str, Mapping]) -> list[dict]:
    """Returns each option with every arm's probability; none where no probability was computed."""
    first = next(iter(rows.values()))
    shares = {arm: option_probabilities(row) for arm, row in rows.items()}
    choices = {}
    for arm, row in rows.items():
        choices[arm] = row["answers"].get("likelihood", NO_ANSWER)["parsed"]
    options = []
    for option, text in candidates(first).items() if any(shares.values()) else ():
        options.append(
            {
                "text": text,
                "correct": option == first["reference"],
                "probabilities": {
                    arm: shares[arm][option] for arm in rows if option in shares[arm]
                },
                "picked_by": [arm for arm in rows if choices[arm] == option],
            }
        )
    return options


def list_conditions(rows: Mapping[str, Mapping], protocol: str) -> list[dict]:
    """Returns how the arms answered one example, with audio and under each control.

    Args:
        rows: The row of each arm.
        protocol: The scoring protocol of the conclusion.

    Returns:
        Dictionaries of `kind` ("protocol" or "control"), `name`, and `cells` by arm. A cell is an
        answer or, for open questions, the loss per token of the reference. It is None if the
        arm was not evaluated so.
    """
    first = next(iter(rows.values()))
    is_open = first["question_type"] not in CLOSED_QUESTION_TYPES
    protocols = [protocol] if is_open else dict.fromkeys((protocol, *first["answers"]))
    conditions = []
    for kind, name in [*product(["protocol"], protocols), *product(["control"], CONTROLS)]:
        cells = {}
        for arm, row in rows.items():
            results = row if kind == "protocol" else row["controls"].get(name, {})
            if is_open:
                loss = results.get("loss")
                cells[arm] = None if loss is None else {"loss": loss / row["n_tokens"]}
            else:
                scored_by = name if kind == "protocol" else protocol
                cells[arm] = results.get("answers", {}).get(scored_by)
        if any(cells.values()):
            conditions.append({"kind": kind, "name": name, "cells": cells})
    return conditions


def describe_clip(
    filepath: str, seconds: float, audio_dir: AudioDir | None, max_seconds: float
) -> dict:
    """Returns a clip as the report shows it.

    Args:
        filepath: Path of the clip in the rows.
        seconds: Duration of the file.
        audio_dir: Where the clips are. None leaves out players and spectrograms.
        max_seconds: Seconds that the models use.

    Returns:
        `name`, `duration` and `used` seconds, and either its `picture` or `why` there is none. A
        missing clip is no error: the report of the numbers is worth having without it.
    """
    used = min(seconds, max_seconds)
    clip = {"name": filepath, "duration": seconds, "used": used, "picture": None, "why": ""}
    if audio_dir is not None:
        try:
            source = open_clip(resolve_path(filepath, audio_dir))
            if isinstance(source, str) and not Path(source).exists():
                raise FileNotFoundError(f"{source}: file not found")
            clip["picture"] = preview_clip(source, max_seconds)
        except (soundfile.LibsndfileError, OSError, ValueError) as error:
            clip["why"] = str(error)
    return clip


def build_filters(examples: list[dict]) -> list[dict]:
    """Returns groups of checkboxes: question type, category, and each arm's verdict.

    Within a group, any checked box shows an example. Between groups, all must. A group without a
    checked box shows all. Each example gets `classes`, one for each group. That of an example
    which is neither correct nor wrong ends in "none".

    Returns:
        Groups with `key` (class of its boxes), `title`, `arm` and `boxes` (id, label and count).
    """
    titles = ["question_type", "category"]
    labels = [[example[title] for example in examples] for title in titles]
    arms = list(examples[0]["answers"]) if examples else []
    labels += [
        [VERDICTS[example["answers"][arm]["correct"]] for example in examples] for arm in arms
    ]
    groups = []
    for title, arm, values in zip([*titles, *arms], [None, None, *arms], labels):
        key = f"f{len(groups)}"
        counts = Counter(sorted(filter(None, values)) if arm else values)
        ids = {label: f"{key}-{position}" for position, label in enumerate(counts)}
        boxes = [{"id": ids[label], "label": label, "n": n} for label, n in counts.items()]
        if boxes:
            groups.append({"key": key, "title": title, "arm": arm, "boxes": boxes})
            for example, label in zip(examples, values):
                example.setdefault("classes", []).append(ids.get(label, f"{key}-none"))
    return groups
