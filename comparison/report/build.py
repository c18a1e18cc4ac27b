"""`report.html` of a comparison: one file that needs no network and runs no script, for a phone as well as for a screen.

Everything is drawn by the template of report_page.py, which escapes every string. Here is gathered what it draws.
"""

import os
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ...data.reasonaqa import QUESTION_TYPES, AudioDir
from ...evaluation.answering import PROTOCOL_NAMES as PROTOCOLS
from ...evaluation.controls import CONTROLS
from ...evaluation.tables import MAJORITY, table_rows
from ..runs import Run
from .charts import (
    MEAN,
    MINUS,
    arm_styles,
    dot_rows,
    forest,
    in_order,
    learning_charts,
    of_control,
    reliability,
)
from .examples import browsed_rows, filters
from .figure import CAPTION, panels
from .report_page import PAGE

PROTOCOL_NAMES = {
    "mcq": "multiple choice",
    "yes_no": "yes or no",
    "entailment": "entailment",
    "difference": "difference of two clips",
    "caption": "caption",
    "detail": "detail",
    "macro": "mean of types",
    "majority": "majority",
    "no_audio": "no audio",
    "noise": "noise",
    "mismatched_audio": "another row's audio",
    "option_relabel": "other letters",
    "question_only": "text-only model",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
    "spider": "SPIDEr",
}
SECTIONS = {"overall": "Overall", "question_type": "By question type", "category": "By category"}
GROUPINGS = {
    "truncation": "truncation",
    "clips": "clips a row",
    "answer_words": "length of the right answer",
}
ROWS = 60  # to look through


def write_report(
    path: str | Path,
    comparison: dict,
    runs: Mapping[str, list[Run]],
    audio_dir: AudioDir | None,
    count: int = ROWS,
) -> None:
    """Writes the page.

    Args:
        comparison: what `comparison.json` holds. runs: of each arm, one for each seed.
        audio_dir: where the clips are; None leaves them and their spectrograms out.
        count: test rows to look through.
    """
    arms, first = arm_styles(comparison), next(iter(runs.values()))[0]
    hearing = {arm: of for arm, of in comparison["arms"].items() if not of["no_audio"]}
    rows = browsed_rows(runs, audio_dir, count)
    columns = [
        name
        for name in CONTROLS
        if any(name in of["controls"] for of in comparison["arms"].values())
    ]
    curves = {
        arm: of["learning_curves"]
        for arm, of in comparison["arms"].items()
        if "learning_curves" in of
    }
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "points": points}
    html = environment.from_string(PAGE).render(
        comparison=comparison,
        arms=arms,
        text_only=[arm for arm, style in arms.items() if style == "deaf"],
        sections=SECTIONS,
        groupings=GROUPINGS,
        names=PROTOCOL_NAMES,
        protocols=PROTOCOLS,
        majority=MAJORITY,
        controls=columns,
        rows=in_order(table_rows(comparison), tuple(SECTIONS)),
        dots=dot_rows(comparison, tuple(SECTIONS)),
        listening=forest(listening_rows(hearing)),
        pairs={
            family: forest(pair_rows(comparison, family))
            for family in ("primary", "by_type", "by_category")
        },
        control_rows=control_rows(comparison, columns),
        by_protocol=protocol_rows(runs),
        open=open_columns(comparison),
        calibration={
            arm: reliability(of["calibration"])
            for arm, of in comparison["arms"].items()
            if of["calibration"]
        },
        panels=panels(comparison),
        caption=CAPTION,
        charts=learning_charts(curves, PROTOCOL_NAMES),
        asked=rows,
        filters=filters(rows),
        has_audio=audio_dir is not None,
        seconds=first.metrics["max_audio_seconds"],
        of_all=len(first.rows),
        folders={
            arm: [(run.seed, shown_folder(run.folder, Path(path).parent)) for run in of]
            for arm, of in runs.items()
        },
    )
    Path(path).write_text(
        html.lstrip(), encoding="utf-8", errors="replace"
    )  # JSON may hold half a character


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A signed difference in points, with a minus that is as wide as the plus."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS)


def shown_folder(folder: Path, output: Path) -> str:
    """As the footer names it: under the report's own folder without that."""
    inside = os.path.relpath(folder, output)
    return Path(folder if inside.startswith(os.pardir) else inside).as_posix()


def listening_rows(hearing: Mapping[str, Mapping]) -> list[dict]:
    """What arms get right above their best control: of the mean of types and of each type, a lane for each arm."""
    names = dict.fromkeys(
        name for of in hearing.values() for name in ("macro", *of["audio_gain"]) if of["audio_gain"]
    )
    return [
        {
            "name": name,
            "lanes": [
                {"arm": arm, **of["audio_gain"][name]}
                for arm, of in hearing.items()
                if of["audio_gain"]
            ],
        }
        for name in names
    ]


def control_rows(comparison: Mapping, columns: list[str]) -> list[dict]:
    """Accuracy of each arm, heard and under controls: the mean of types, of controls that have them all, and by type."""
    arms = {arm: of for arm, of in comparison["arms"].items() if "macro" in of}
    names = dict.fromkeys(name for of in arms.values() for name in (MEAN, *of["question_type"]))
    return [
        {
            "name": name,
            "arm": arm,
            "accuracy": (of["macro"] if name == MEAN else of["question_type"][name])["accuracy"],
            "n": 0 if name == MEAN else of["question_type"][name]["n"],
            "controls": [
                {"accuracy": of_control(of, given, "question_type", name), "n": 0}
                if name == MEAN
                else given.get("question_type", {}).get(name)
                for given in map(of["controls"].get, columns, repeat({}))
            ],
            "same": of["controls"].get("option_relabel", {}).get("same_option", {}).get(name),
        }
        for name in names
        for arm, of in arms.items()
    ]


def pair_rows(comparison: Mapping, family: str) -> list[dict]:
    """Differences of pairs of arms, each in a row of its own: of the mean of types, by type, or by category."""
    found = [
        {"name": entry.get("question_type") or entry.get("category") or "macro", "lanes": [entry]}
        for entry in comparison["statistics"].get(family, [])
    ]
    order = list(dict.fromkeys(row["name"] for row in found))
    return sorted(found, key=lambda row: order.index(row["name"]))


def protocol_rows(runs: Mapping[str, list[Run]]) -> list[dict]:
    """Accuracies by each protocol that was run, the one that decides first: means over an arm's seeds."""

    def mean(values):
        return sum(values) / len(values)

    found = []
    first = next(iter(runs.values()))[0].metrics
    for name in (
        (first["protocol"], *first.get("other_protocols", {})) if "question_type" in first else ()
    ):
        for arm, of in runs.items():
            metrics = [
                run.metrics if name == first["protocol"] else run.metrics["other_protocols"][name]
                for run in of
            ]
            found.append(
                {
                    "protocol": name,
                    "arm": arm,
                    "unparsed": mean([one["micro"]["n_unparsed"] for one in metrics]),
                    "types": {
                        kind: mean([one["question_type"][kind]["accuracy"] for one in metrics])
                        for kind in first["question_type"]
                    },
                    "macro": mean([one["macro_accuracy"] for one in metrics]),
                }
            )
    return found


def open_columns(comparison: Mapping) -> dict[str, list[str]]:
    """The metrics of text and the controls that any arm has for open questions."""
    texts = [of for arm in comparison["arms"].values() for of in arm["text"].values()]
    return {
        "kinds": [
            kind
            for kind in QUESTION_TYPES
            if any(kind in arm["text"] for arm in comparison["arms"].values())
        ],
        "controls": [name for name in CONTROLS if any(name in of["control_loss"] for of in texts)],
        "metrics": list(
            dict.fromkeys(
                name
                for of in texts
                for name, value in of.get("generated", {}).items()
                if value is not None
            )
        ),
    }
