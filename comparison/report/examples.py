"""Test rows to look through in the report: their clips, what each arm answered, and the boxes that choose among them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import soundfile

from ...data.audio_files import open_clip
from ...data.clip_preview import picture
from ...data.reasonaqa import QUESTION_TYPES, AudioDir, resolve_path
from ...evaluation.answering import candidates
from ...evaluation.categories import CATEGORIES
from ...evaluation.controls import CONTROLS
from ...evaluation.metric import SCORED
from ...evaluation.scores import option_probabilities
from ..runs import Run


def chosen_rows(rows: list[dict], count: int) -> list[int]:
    """Test rows to look at, as their numbers: spread over question types and categories, whatever was answered.

    The next one is of the type, then the category, that was chosen least so far, and the first such row of the test file
    whose clips were not chosen yet.
    """
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row["question_type"], row["category"]), []).append(i)
    types, categories, clips, chosen = Counter(), Counter(), set(), []
    while groups and len(chosen) < count:
        kind, about = group = min(
            groups, key=lambda of: (types[of[0]], categories[of[1]], *place(*of))
        )
        fresh = [
            i for i in groups[group] if not clips & {rows[i]["filepath1"], rows[i]["filepath2"]}
        ]
        i = (fresh or groups[group])[0]
        groups[group].remove(i)
        if not groups[group]:
            del groups[group]
        types[kind], categories[about] = types[kind] + 1, categories[about] + 1
        clips |= {rows[i]["filepath1"], rows[i]["filepath2"]} - {""}
        chosen.append(i)
    return sorted(chosen, key=lambda i: (QUESTION_TYPES.index(rows[i]["question_type"]), i))


def place(kind: str, category: str) -> tuple[int, int]:
    """Of a question type and a category in their order; a category that is unknown is the last."""
    return QUESTION_TYPES.index(kind), CATEGORIES.index(
        category
    ) if category in CATEGORIES else len(CATEGORIES)


def browsed_rows(
    runs: Mapping[str, list[Run]], audio_dir: AudioDir | None, count: int
) -> list[dict]:
    """Rows to look through: question, truth, clips, and what each arm answered, in the first seed and how often in all."""
    first = next(iter(runs.values()))[0]
    protocol, seconds, made = first.metrics["protocol"], first.metrics["max_audio_seconds"], []
    for number in chosen_rows(first.rows, count):
        row = first.rows[number]
        of = {arm: [run.rows[number] for run in its] for arm, its in runs.items()}
        options, given = (
            candidates(row),
            {arm: option_probabilities(its[0]) for arm, its in of.items()},
        )
        answers = {}
        for arm, (one, *_) in of.items():
            answer = one["answers"].get(protocol) or one["answers"].get(
                "generate", {"parsed": None, "correct": None}
            )
            answers[arm] = {
                "correct": answer["correct"],
                "said": options.get(answer["parsed"], answer["parsed"]),
                "text": one["answers"].get("generate", {}).get("text"),
                "loss": one["loss"] / one["n_tokens"],
                "right": sum(
                    bool(seed["answers"].get(protocol, {}).get("correct")) for seed in of[arm]
                ),
                "of": len(of[arm]),
            }
        made.append(
            {
                "number": number + 1,
                "question_type": row["question_type"],
                "category": row["category"],
                "question": row["input"],
                "truth": row["answer"],
                "answers": answers,
                "clips": [
                    shown_clip(row[field], length, audio_dir, seconds)
                    for field, length in zip(("filepath1", "filepath2"), row["seconds"])
                ],
                "options": [
                    {
                        "text": text,
                        "right": option == row["reference"],
                        "given": {arm: its[option] for arm, its in given.items() if option in its},
                        "picked": [
                            arm
                            for arm, its in of.items()
                            if its[0]["answers"].get("likelihood", {}).get("parsed") == option
                        ],
                    }
                    for option, text in options.items()
                ]
                if any(given.values())
                else [],
                "conditions": conditions({arm: its[0] for arm, its in of.items()}, protocol),
            }
        )
    return made


def conditions(row: Mapping[str, Mapping], protocol: str) -> list[dict]:
    """One row as each arm answered it, as it is and under controls: by `kind` ("protocol", "control") and `name` a cell of
    each arm, the option and whether it is right; of an open question the loss per token of the right answer."""
    first, found = next(iter(row.values())), []
    controls = [name for name in CONTROLS if any(name in of["controls"] for of in row.values())]
    if first["question_type"] not in SCORED:
        losses = {
            name: {arm: of["controls"].get(name, {}).get("loss") for arm, of in row.items()}
            for name in controls
        }
        named = [
            ("protocol", protocol, {arm: of["loss"] for arm, of in row.items()}),
            *(("control", name, of) for name, of in losses.items() if any(of.values())),
        ]
        return [
            {
                "kind": kind,
                "name": name,
                "cells": {
                    arm: None if loss is None else {"loss": loss / row[arm]["n_tokens"]}
                    for arm, loss in of.items()
                },
            }
            for kind, name, of in named
        ]
    for name in (protocol, *(name for name in first["answers"] if name != protocol)):
        found.append(
            {
                "kind": "protocol",
                "name": name,
                "cells": {arm: of["answers"].get(name) for arm, of in row.items()},
            }
        )
    for name in controls:
        cells = {
            arm: of["controls"].get(name, {}).get("answers", {}).get(protocol)
            for arm, of in row.items()
        }
        found.append({"kind": "control", "name": name, "cells": cells})
    return found


def shown_clip(filepath: str, length: float, audio_dir: AudioDir | None, seconds: float) -> dict:
    """A clip's name and length, and its `picture`, or `why` there is none."""
    found = {
        "name": filepath,
        "whole": length,
        "used": min(length, seconds),
        "picture": None,
        "why": "",
    }
    if audio_dir is None:
        return found
    try:
        clip = open_clip(resolve_path(filepath, audio_dir))
        if isinstance(clip, str) and not Path(clip).exists():
            raise FileNotFoundError(f"there is no file {clip}")
        return {**found, "picture": picture(clip, seconds)}
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        return {
            **found,
            "why": str(error),
        }  # a report of numbers is worth having without a clip; the page says so


def filters(rows: list[dict]) -> list[dict]:
    """Groups of boxes to check: the question type, the category, each arm right or wrong. Gives each row its `classes`.

    Within a group any checked box shows a row, between groups all must; a group without a checked box shows all. A row that
    is neither right nor wrong has a class of its own, `none`.
    """
    verdicts = {True: "right", False: "wrong", None: None}
    by_group = {
        "question type": [row["question_type"] for row in rows],
        "category": [row["category"] for row in rows],
    }
    boxes = {
        "question type": sorted({*by_group["question type"]}, key=QUESTION_TYPES.index),
        "category": sorted({*by_group["category"]}, key=lambda name: (*place("mcq", name), name)),
    }
    groups = [
        {"title": title, "arm": None, "of": of, "boxes": boxes[title]}
        for title, of in by_group.items()
    ]
    for arm in rows[0]["answers"] if rows else ():
        of = [verdicts[row["answers"][arm]["correct"]] for row in rows]
        if any(of):
            groups.append({"title": arm, "arm": arm, "of": of, "boxes": ["right", "wrong"]})
    for row in rows:
        row["classes"] = []
    for number, group in enumerate(groups):
        group["key"] = f"f{number}"
        for row, value in zip(rows, group["of"]):
            row["classes"].append(
                f"f{number}-{'none' if value is None else group['boxes'].index(value)}"
            )
        group["boxes"] = [
            {"id": f"f{number}-{i}", "label": value, "n": group["of"].count(value)}
            for i, value in enumerate(group["boxes"])
        ]
    return groups
