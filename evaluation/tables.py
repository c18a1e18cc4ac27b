"""The numbers of `metrics.json` and `comparison.json` as text.

`python -m audiolm.evaluation.tables RESULTS/predictions.jsonl` computes them again from rows that were answered before.
"""

import argparse
import json
import sys
from pathlib import Path

from .answering import PROTOCOL_NAMES
from .categories import CATEGORIES
from .metric import SCORED

MAJORITY = "majority"


def _closed(metrics: dict) -> list[str]:
    def block(title, groups):
        lines.append(
            f"{title:<22}{'n':>7}{'accuracy':>10}{'95 % interval':>18}{'balanced':>10}{'unparsed':>10}"
        )
        for name, g in groups.items():
            interval = f"{g['ci95_low']:.3f} - {g['ci95_high']:.3f}"
            balanced = f"{g['balanced_accuracy']:.3f}" if "balanced_accuracy" in g else ""
            lines.append(
                f"{name:<22}{g['n']:>7}{g['accuracy']:>10.3f}{interval:>18}{balanced:>10}{g['n_unparsed']:>10}"
            )

    lines = [f"closed questions, by {PROTOCOL_NAMES[metrics['protocol']]}"]
    block("question type", {**metrics["question_type"], "all (micro)": metrics["micro"]})
    lines.append(f"{'mean of types':<22}{'':>7}{metrics['macro_accuracy']:>10.3f}")
    for title in ("category", "truncation", "clips", "answer_words"):
        if title == "category" or len(metrics[title]) > 1:
            block(title.replace("_", " "), metrics[title])
    return lines


def _controls(metrics: dict) -> list[str]:
    names = list(metrics["controls"])
    lines = [f"{'under controls':<22}{'heard':>7}" + "".join(f"{name:>15}" for name in names)]
    for kind in (*metrics["question_type"], "mean of types"):
        cells = []
        for of in (metrics, *metrics["controls"].values()):
            of = (
                {**of["question_type"], "mean of types": {"accuracy": of["macro_accuracy"]}}
                if of
                else {}
            )
            value = of.get(kind, {}).get("accuracy")
            cells.append("-" if value is None else f"{value:.3f}")
        lines.append(f"{kind:<22}{cells[0]:>7}" + "".join(f"{cell:>15}" for cell in cells[1:]))
    for kind, of in metrics["controls"].get("option_relabel", {}).get("consistency", {}).items():
        lines.append(
            f"{kind}: the same option under other letters in {100 * of['same_option']:.1f} % of {of['n']} rows"
        )
    for kind, of in metrics["audio_gain"].items():
        lines.append(
            f"{'mean of types' if kind == 'macro' else kind}: {100 * of['difference']:+.1f} points above the best control, "
            f"{of['best_control']} ({100 * of['ci95_low']:+.1f} to {100 * of['ci95_high']:+.1f})"
        )
    return lines


def _official(official: dict) -> list[str]:
    """The figures of a benchmark's own metric, each under its path in metrics.json."""

    def figures(of: dict, path: str):
        for name, value in of.items():
            if isinstance(value, dict):
                yield from figures(value, f"{path}{name}: ")
            elif isinstance(value, float):
                yield f"  {path}{name.replace('_', ' ')}: {value:.4f}"

    return [f"{official['benchmark']}'s own metric, {official['protocol']}", *figures(official, "")]


def table(metrics: dict) -> str:
    """The metrics as text."""
    lines = []
    if "micro" in metrics:
        lines += _closed(metrics)
        for name, of in metrics["other_protocols"].items():
            found = ", ".join(
                f"{kind} {g['accuracy']:.3f}" for kind, g in of["question_type"].items()
            )
            lines.append(
                f"by {PROTOCOL_NAMES[name]}: {found}, mean {of['macro_accuracy']:.3f}, {of['micro']['n_unparsed']} unparsed"
            )
        if metrics["controls"]:
            lines += _controls(metrics)
    if metrics["text"]:
        shown = ("bleu_4", "rouge_l", "cider_d")
        lines.append(
            f"{'open questions':<22}{'n':>7}{'loss per token':>16}{'words':>8}"
            + "".join(f"{m:>10}" for m in shown)
        )
        for kind, of in metrics["text"].items():
            generated = of.get("generated", {})
            cells = [
                "-" if generated.get(name) is None else f"{generated[name]:.3f}" for name in shown
            ]
            words = f"{of['mean_words']:.1f}" if "mean_words" in of else "-"
            lines.append(
                f"{kind:<22}{of['n']:>7}{of['loss_per_answer_token']:>16.3f}{words:>8}"
                + "".join(f"{c:>10}" for c in cells)
            )
        for kind, of in metrics["text"].items():
            if of["control_loss"]:
                lines.append(
                    f"{kind}: loss per token under "
                    + ", ".join(f"{c} {v:.3f}" for c, v in of["control_loss"].items())
                )
    if "official" in metrics:
        lines += _official(metrics["official"])
    not_run = {**metrics.get("not_run", {})}
    for of in metrics["text"].values():
        not_run |= of.get("generated", {}).get("not_run", {})
    lines += [f"not run: {name} ({why})" for name, why in not_run.items()]
    return "\n".join(lines)


def columns_of(comparison: dict) -> dict[str, dict]:
    """The comparison's columns: the arms, and the majority baseline where it was run."""
    return {
        **comparison["arms"],
        **({MAJORITY: comparison[MAJORITY]} if comparison[MAJORITY] else {}),
    }


def table_rows(comparison: dict) -> list[dict]:
    """The comparison's table: `section`, `name`, `n` and `cells` by column (the arms, then the majority baseline, if it was
    run).

    A cell of a closed question is a group of metrics.json, of a text type `{"loss": per answer token}`, or None.
    """
    columns = columns_of(comparison)

    def row(section, name, cells):
        return {
            "section": section,
            "name": name,
            "n": max((c.get("n", 0) for c in cells.values() if c), default=0),
            "cells": cells,
        }

    def names(group):
        return {name: None for column in columns.values() for name in column.get(group, {})}

    rows = []
    others = [name for name in names("category") if name not in CATEGORIES]
    for section, order in (("question_type", SCORED), ("category", (*CATEGORIES, *others))):
        for name in order:
            if name in names(section):
                rows.append(
                    row(
                        section, name, {c: m.get(section, {}).get(name) for c, m in columns.items()}
                    )
                )
    if any("micro" in m for m in columns.values()):
        rows.append(
            row("overall", "all closed rows", {c: m.get("micro") for c, m in columns.items()})
        )
        mean = {
            c: m.get("macro")
            or ({"accuracy": m["macro_accuracy"]} if "macro_accuracy" in m else None)
            for c, m in columns.items()
        }
        rows.append({**row("overall", "mean of types", mean), "n": 0})
    for kind in names("text"):
        found = {c: m.get("text", {}).get(kind) for c, m in columns.items()}
        cells = {
            c: g and {"n": g["n"], "loss": g["loss_per_answer_token"]} for c, g in found.items()
        }
        rows.append(row("text", kind, cells))
    return rows


def main(argv=None):
    from .scores import score  # which imports more than a table needs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", help="predictions.jsonl of run_eval.py")
    parser.add_argument(
        "--protocol",
        default="likelihood",
        choices=tuple(PROTOCOL_NAMES),
        help="how closed questions are answered",
    )
    parser.add_argument(
        "--max_audio_seconds", type=float, default=10.0, help="seconds that were used of each clip"
    )
    args = parser.parse_args(argv)
    try:
        rows = [
            json.loads(line)
            for line in Path(args.predictions).read_text(encoding="utf-8").split("\n")
            if line
        ]
    except (OSError, ValueError) as error:
        sys.exit(f"tables: {args.predictions}: {error}")
    if any(row["question_type"] in SCORED and args.protocol not in row["answers"] for row in rows):
        sys.exit(f"tables: {args.predictions} holds no answers by {args.protocol}")
    print(table(score(rows, args.protocol, args.max_audio_seconds)))


if __name__ == "__main__":
    main()
