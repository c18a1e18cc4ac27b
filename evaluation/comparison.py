"""Arms beside each other: what run_train.py and run_eval.py wrote for each, the majority baseline, and one table of it all.

A comparison is a plain dictionary (`comparison.json`). Statistics of differences between arms belong beside
[`majority_baseline`]: they take the rows that [`read_predictions`] returns, and add an entry to it.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from transformers import AutoTokenizer

from audiolm.configuration_audiolm import AudioLMConfig
from audiolm.data.reasonaqa import FIELDS, QUESTION_TYPES, AudioDir, question_type, resolve_path
from audiolm.evaluation.categories import CATEGORIES
from audiolm.evaluation.metric import SCORED, ReasonAQAMetric
from audiolm.evaluation.parsing import parse_answer
from audiolm.processing_audiolm import AudioLMProcessor

MAJORITY = "majority"


def read_predictions(folders: Mapping[str, Path]) -> dict[str, list[dict]]:
    """The rows of `predictions.jsonl` in each arm's evaluation folder.

    Raises:
        ValueError: if the arms did not answer the same rows in the same order.
    """
    predictions = {}
    for arm, folder in folders.items():
        lines = Path(folder, "predictions.jsonl").read_text(encoding="utf-8").split("\n")
        predictions[arm] = [json.loads(line) for line in lines if line]
    first, *others = predictions
    asked = [[row[field] for field in FIELDS] for row in predictions[first]]
    for arm in others:
        if [[row[field] for field in FIELDS] for row in predictions[arm]] != asked:
            raise ValueError(
                f"{folders[first]} and {folders[arm]} hold answers to different rows; evaluate both on one test file"
            )
    return predictions


def learning_curves(log_history: list[dict]) -> dict:
    """Training loss and loss per answer token of each question type, as [step, loss] pairs, of a `trainer_state.json`."""
    keys = {kind: f"eval_{kind}_token_loss" for kind in QUESTION_TYPES}
    found = {kind: [[e["step"], float(e[key])] for e in log_history if key in e] for kind, key in keys.items()}
    return {
        "train_loss": [[e["step"], float(e["loss"])] for e in log_history if "loss" in e],
        "eval_loss": {kind: points for kind, points in found.items() if points},
    }


def model_facts(folder: str | Path) -> dict:
    """Trained parameters of a saved model, the seconds it uses of a clip, and the tokens it makes of them."""
    config = AudioLMConfig.from_pretrained(folder)
    extractor = AudioLMProcessor.from_config(config, AutoTokenizer.from_pretrained(folder)).feature_extractor
    trained = ("mapper.linear",) if config.freeze_lm else ("mapper.linear", "language_model.")
    with safe_open(Path(folder, "model.safetensors"), "pt") as file:
        count = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys() if key.startswith(trained))  # noqa: SIM118
    return {
        "trained_parameters": count,
        "max_audio_seconds": config.max_audio_seconds,
        "tokens_per_clip": extractor.num_frames(int(config.max_audio_seconds * extractor.sampling_rate)),
    }


def read_arm(folder: str | Path) -> dict:
    """An arm's metrics, learning curves and sizes, from the folder of its model with `evaluation` inside."""
    metrics = json.loads(Path(folder, "evaluation", "metrics.json").read_text())
    state = json.loads(Path(folder, "trainer_state.json").read_text())
    return {**metrics, **model_facts(folder), "learning_curves": learning_curves(state["log_history"])}


def majority_baseline(training_rows: list[dict], test_rows: list[dict]) -> dict:
    """Metrics of the commonest right answer (letter, yes or no) of the training rows of a test row's subtype.

    A subtype that training lacks takes its question type's; of equally common answers the first in the alphabet counts.

    Args:
        training_rows: rows with ReasonAQA's fields. test_rows: rows of `predictions.jsonl`.
    """
    counts: dict[tuple, Counter] = {}
    for row in training_rows:
        kind = question_type(row)
        if answer := parse_answer(kind, row["input"], row["answer"]):
            for group in ((kind, row["subtype"]), (kind, None)):
                counts.setdefault(group, Counter())[answer] += 1
    commonest = {group: min(found, key=lambda a: (-found[a], a)) for group, found in counts.items()}
    scored = [row for row in test_rows if row["question_type"] in SCORED]
    if not scored:
        return {}
    guesses = [commonest.get((r["question_type"], r["subtype"]), commonest.get((r["question_type"], None), "")) for r in scored]
    return ReasonAQAMetric().compute(
        predictions=guesses, references=[row["reference"] or row["answer"] for row in scored],
        **{key: [row[key] for row in scored] for key in ("question_type", "subtype", "category")},
    )  # fmt: skip


def compare_arms(output_dir: str | Path, arms: Mapping[str, dict], predictions: dict, training_rows: list[dict]) -> dict:
    """What the arms' folders in `output_dir` hold, beside each other and the majority baseline.

    Args:
        arms: options of each arm, kept with its results. predictions: of [`read_predictions`].
    """
    test_rows = next(iter(predictions.values()))
    return {
        "rows": {"train": len(training_rows), "test": len(test_rows)},
        "arms": {arm: {**options, **read_arm(Path(output_dir, arm))} for arm, options in arms.items()},
        MAJORITY: majority_baseline(training_rows, test_rows),
    }


def table_rows(comparison: dict) -> list[dict]:
    """The comparison's table: `section`, `name`, `n` and `cells` by column (the arms, then the majority baseline).

    A cell of a closed question is a group of metrics.json, of a text type `{"loss": per answer token}`, or None.
    """
    columns = {**comparison["arms"], MAJORITY: comparison[MAJORITY]}

    def row(section, name, cells):
        return {"section": section, "name": name, "n": max((c.get("n", 0) for c in cells.values() if c), default=0),
                "cells": cells}  # fmt: skip

    def names(group):
        return {name: None for column in columns.values() for name in column.get(group, {})}

    rows = []
    others = [name for name in names("category") if name not in CATEGORIES]
    for section, order in (("question_type", SCORED), ("category", (*CATEGORIES, *others))):
        for name in order:
            if name in names(section):
                rows.append(row(section, name, {c: m.get(section, {}).get(name) for c, m in columns.items()}))
    if any("micro" in m for m in columns.values()):
        rows.append(row("overall", "all closed rows", {c: m.get("micro") for c, m in columns.items()}))
        mean = {c: m.get("macro_accuracy") for c, m in columns.items()}
        rows.append(row("overall", "mean of types", {c: None if a is None else {"accuracy": a} for c, a in mean.items()}))
    for kind in names("text"):
        found = {c: m.get("text", {}).get(kind) for c, m in columns.items()}
        cells = {c: g and {"n": g["n"], "loss": g["loss_per_answer_token"]} for c, g in found.items()}
        rows.append(row("text", kind, cells))
    return rows


def comparison_table(comparison: dict) -> str:
    """The comparison as text: accuracy with its 95 % interval, then loss per answer token of the text types."""
    titles = {"question_type": "accuracy by question type", "category": "accuracy by category", "overall": "accuracy overall",
              "text": "loss per answer token"}  # fmt: skip

    def cell(value):
        if value is None:
            return "-"
        if "loss" in value:
            return f"{value['loss']:.3f}"
        interval = f" ({value['ci95_low']:.3f}-{value['ci95_high']:.3f})" if "ci95_low" in value else " " * 14
        return f"{value['accuracy']:.3f}{interval}"

    rows, columns = table_rows(comparison), [*comparison["arms"], MAJORITY]
    first = max(28, *(len(row["name"]) + 2 for row in rows))
    widths = [max(len(name), 19) + 2 for name in columns]
    lines = [f"{'':<{first}}{'n':>6}" + "".join(f"{name:>{w}}" for name, w in zip(columns, widths))]
    section = None
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            lines.append(titles[section])
        cells = "".join(f"{cell(row['cells'][name]):>{w}}" for name, w in zip(columns, widths))
        lines.append(f"{'  ' + row['name']:<{first}}{row['n'] or '':>6}{cells}")
    return "\n".join(lines)


def choose_examples(predictions: dict[str, list[dict]], audio_dir: AudioDir, count: int = 10) -> list[dict]:
    """Test rows to listen to, with each arm's answer: spread over question types and categories, whatever was answered.

    The next one is of the type, then the category, that was chosen least so far, and the first such row of the test file
    whose clips were not chosen yet.
    """
    rows = next(iter(predictions.values()))
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row["question_type"], row["category"]), []).append(i)
    types, categories, clips, chosen = Counter(), Counter(), set(), []
    while groups and len(chosen) < count:
        kind, about = group = min(
            groups, key=lambda g: (types[g[0]], categories[g[1]], QUESTION_TYPES.index(g[0]), CATEGORIES.index(g[1]))
        )
        fresh = [i for i in groups[group] if not clips & {rows[i]["filepath1"], rows[i]["filepath2"]}]
        i = (fresh or groups[group])[0]
        groups[group].remove(i)
        if not groups[group]:
            del groups[group]
        types[kind], categories[about] = types[kind] + 1, categories[about] + 1
        clips |= {rows[i]["filepath1"], rows[i]["filepath2"]} - {""}
        chosen.append(i)
    chosen.sort(key=lambda i: (QUESTION_TYPES.index(rows[i]["question_type"]), i))
    return [
        {
            "question_type": rows[i]["question_type"],
            "category": rows[i]["category"],
            "question": rows[i]["input"],
            "truth": rows[i]["answer"],
            "clips": [resolve_path(rows[i][f], audio_dir) for f in ("filepath1", "filepath2") if rows[i][f]],
            "answers": {
                arm: {"text": of[i]["generated"], "correct": of[i]["correct"], "parsed": of[i]["parsed"],
                      "loss_per_answer_token": of[i]["loss"] / of[i]["n_tokens"]}
                for arm, of in predictions.items()
            },
        }
        for i in chosen
    ]  # fmt: skip
