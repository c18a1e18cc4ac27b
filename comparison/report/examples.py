"""Test examples to browse in the report: clips, answers of each arm, and filters."""

from collections import Counter
from collections.abc import Mapping, Sequence
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

NO_ANSWER = {"parsed": None, "correct": None}
VERDICTS = {True: "correct", False: "wrong", None: None}


def choose_examples(rows: list[dict], count: int) -> list[int]:
    """Chooses test examples, spread over question types and categories. The answers play no part.

    The next example is of the question type, then the category, chosen least so far. Of these it
    is the first in the test file whose clips were not chosen before.

    Returns:
        Indices into `rows`, ordered by question type.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row["question_type"], row["category"]), []).append(index)
    types: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    clips: set[str] = set()
    chosen = []

    def priority(group: tuple[str, str]) -> tuple[int, ...]:
        question_type, category = group
        return types[question_type], categories[category], *_rank(question_type, category)

    while groups and len(chosen) < count:
        group = min(groups, key=priority)
        unseen = [index for index in groups[group] if not clips & _clips(rows[index])]
        index = unseen[0] if unseen else groups[group][0]
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


def _rank(question_type: str, category: str) -> tuple[int, int]:
    """Returns the order of a question type and a category. Unknown categories come last."""
    order = [*CATEGORIES, category]
    return QUESTION_TYPES.index(question_type), order.index(category)


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
        answers = {}
        for arm, seed_runs in runs.items():
            answers[arm] = _describe_answer([run.rows[index] for run in seed_runs], protocol)
        first_rows = {arm: seed_runs[0].rows[index] for arm, seed_runs in runs.items()}
        clips = zip((row["filepath1"], row["filepath2"]), row["seconds"])
        examples.append(
            {
                "number": index + 1,
                "question_type": row["question_type"],
                "category": row["category"],
                "question": row["input"],
                "truth": row["answer"],
                "answers": answers,
                "clips": [describe_clip(*clip, audio_dir, max_seconds) for clip in clips],
                "options": _describe_options(row, first_rows),
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


def _describe_options(row: Mapping, first_rows: Mapping[str, Mapping]) -> list[dict]:
    """Returns each option with every arm's probability; none where no probability was computed."""
    probabilities = {arm: option_probabilities(answered) for arm, answered in first_rows.items()}
    if not any(probabilities.values()):
        return []
    picks = {
        arm: answered["answers"].get("likelihood", NO_ANSWER)["parsed"]
        for arm, answered in first_rows.items()
    }
    options = []
    for option, text in candidates(row).items():
        shares = {arm: values[option] for arm, values in probabilities.items() if option in values}
        options.append(
            {
                "text": text,
                "correct": option == row["reference"],
                "probabilities": shares,
                "picked_by": [arm for arm, pick in picks.items() if pick == option],
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
    controls = [name for name in CONTROLS if any(name in row["controls"] for row in rows.values())]
    if first["question_type"] not in SCORED:
        return _loss_conditions(rows, protocol, controls)
    protocols = [protocol, *(name for name in first["answers"] if name != protocol)]
    conditions = []
    for name in protocols:
        cells = {arm: row["answers"].get(name) for arm, row in rows.items()}
        conditions.append({"kind": "protocol", "name": name, "cells": cells})
    for name in controls:
        cells = {}
        for arm, row in rows.items():
            cells[arm] = row["controls"].get(name, {}).get("answers", {}).get(protocol)
        conditions.append({"kind": "control", "name": name, "cells": cells})
    return conditions


def _loss_conditions(rows: Mapping[str, Mapping], protocol: str, controls: list[str]) -> list[dict]:
    losses = {arm: row["loss"] for arm, row in rows.items()}
    named_losses = [("protocol", protocol, losses)]
    for name in controls:
        losses = {arm: row["controls"].get(name, {}).get("loss") for arm, row in rows.items()}
        if any(losses.values()):
            named_losses.append(("control", name, losses))
    conditions = []
    for kind, name, losses in named_losses:
        cells = {
            arm: None if loss is None else {"loss": loss / rows[arm]["n_tokens"]}
            for arm, loss in losses.items()
        }
        conditions.append({"kind": kind, "name": name, "cells": cells})
    return conditions


def describe_clip(
    filepath: str, seconds: float, audio_dir: AudioDir | None, max_seconds: float
) -> dict:
    """Returns a clip as the report shows it.

    Args:
        filepath: Path of the clip in the test file.
        seconds: Its length.
        audio_dir: Where the clips are, if anywhere.
        max_seconds: Seconds of a clip that the models use.

    Returns:
        `name`, lengths in seconds `whole` and `used`, and either its `picture` or `why` there is
        none. A missing clip is no error: the report of the numbers is worth having without it.
    """
    clip = {
        "name": filepath,
        "whole": seconds,
        "used": min(seconds, max_seconds),
        "picture": None,
        "why": "",
    }
    if audio_dir is None:
        return clip
    try:
        source = open_clip(resolve_path(filepath, audio_dir))
        if isinstance(source, str) and not Path(source).exists():
            raise FileNotFoundError(f"{source}: file not found")
        clip["picture"] = picture(source, max_seconds)
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
    question_types = [example["question_type"] for example in examples]
    categories = [example["category"] for example in examples]
    type_order = sorted({*question_types}, key=QUESTION_TYPES.index)
    category_order = sorted({*categories}, key=lambda name: (*_rank("mcq", name), name))
    groups = [
        _filter_group("question type", question_types, type_order),
        _filter_group("category", categories, category_order),
    ]
    for arm in examples[0]["answers"] if examples else ():
        verdicts = [VERDICTS[example["answers"][arm]["correct"]] for example in examples]
        if any(verdicts):
            groups.append({**_filter_group(arm, verdicts, ("correct", "wrong")), "arm": arm})
    for number, group in enumerate(groups):
        group["key"] = f"f{number}"
        ids = {None: f"f{number}-none"}
        for position, box in enumerate(group["boxes"]):
            box["id"] = ids[box["label"]] = f"f{number}-{position}"
        group["classes"] = [ids[label] for label in group.pop("labels")]
    for index, example in enumerate(examples):
        example["classes"] = [group["classes"][index] for group in groups]
    return groups


def _filter_group(title: str, labels: list[str | None], order: Sequence[str]) -> dict:
    """Returns a box for each label of `order`.

    Args:
        title: Heading of the group.
        labels: The label of each example, None for those without a box.
        order: Labels in the order of their boxes.
    """
    boxes = [{"label": label, "n": labels.count(label)} for label in order]
    return {"title": title, "arm": None, "labels": labels, "boxes": boxes}


shown_clip = describe_clip  # RENAMED
