"""Positions of the marks in dot plots, in per cent of the width, so that they fit any screen."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from ...evaluation.tables import MAJORITY, comparison_rows

MINUS = "\N{MINUS SIGN}"  # as wide as the plus sign
SECTIONS = {"overall": "Overall", "question_type": "By question type", "category": "By category"}
TOP_MARGIN = 12  # px
LANE_HEIGHT = 14  # px of an arm in a dot plot
CONTROLS_HEIGHT = 11  # px of an arm's controls below it


class Lane(NamedTuple):
    """The marks of an arm in a row of the dot plot. Accuracies are in per cent."""

    arm: str
    y: int  # px from the top
    accuracy: float
    low: float  # lower end of the 95 % interval
    high: float
    controls: dict[str, float]


class DotRow(NamedTuple):
    """A row of the dot plot: a group of questions, a lane for each arm, the majority baseline."""

    section: str  # key of `SECTIONS`
    name: str  # question type or category, or "macro" or "micro"
    n: int  # number of examples, 0 for "macro"
    lanes: list[Lane]
    height: int  # px
    majority: float | None  # per cent


def signed_points(share: float) -> str:
    """Formats a difference of accuracies in points, with a sign, such as "+1.2"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS)


def signed_tick(points: float, _position: int | None = None) -> str:
    """Formats a label of an axis of differences. Usable as a matplotlib formatter."""
    return f"{points:+g}".replace("-", MINUS) if points else "0"


def control_accuracy(arm: Mapping, control: Mapping, section: str, name: str) -> float | None:
    """Returns an arm's accuracy under a control, in the row `name` of the table of accuracies.

    It is None if the control was not run on exactly these examples. For instance, options can
    only be relabelled where there are letters.
    """
    if name == "macro":
        same_types = control.get("question_type", {}).keys() == arm["question_type"].keys()
        return control["macro_accuracy"] if same_types else None
    cell = control.get(section, {}).get(name)
    if not cell or cell["n"] != arm[section][name]["n"]:
        return None
    return cell["accuracy"]


def accuracy_rows(comparison: dict) -> list[dict]:
    """Returns the rows of `comparison_rows` for questions with options, in the order of `SECTIONS`.

    The rows of the section "overall" are renamed to "macro", the primary metric, and "micro".
    """
    rows = [row for row in comparison_rows(comparison) if row["section"] in SECTIONS]
    for row in rows:
        if row["section"] == "overall":
            row["name"] = "micro" if row["n"] else "macro"
    order = list(SECTIONS)
    return sorted(rows, key=lambda row: (order.index(row["section"]), row["name"] == "micro"))


def place_dots(comparison: dict) -> list[DotRow]:
    """Returns the rows of the dot plot of accuracies. A text-only model has no controls."""
    dots = []
    for row in accuracy_rows(comparison):
        lanes, height = [], TOP_MARGIN
        for arm, cell in row["cells"].items():
            if arm == MAJORITY or not cell:
                continue
            ends = (100 * cell[end] for end in ("accuracy", "ci95_low", "ci95_high"))
            controls = _control_percentages(comparison["arms"][arm], row["section"], row["name"])
            lanes.append(Lane(arm, height, *ends, controls))
            height += LANE_HEIGHT + (CONTROLS_HEIGHT if controls else 0)
        baseline = row["cells"].get(MAJORITY)
        majority = 100 * baseline["accuracy"] if baseline else None
        dots.append(DotRow(row["section"], row["name"], row["n"], lanes, height, majority))
    return dots


def _control_percentages(arm: Mapping, section: str, name: str) -> dict[str, float]:
    if arm["no_audio"]:
        return {}
    accuracies = {
        control_name: control_accuracy(arm, control, section, name)
        for control_name, control in arm["controls"].items()
        if control_name != MAJORITY
    }
    return {control: 100 * value for control, value in accuracies.items() if value is not None}


def place_differences(rows: list[dict]) -> dict:
    """Places differences on an axis that they share, with zero in its middle.

    Args:
        rows: Rows with `lanes`: dictionaries with `difference`, `ci95_low` and `ci95_high`.

    Returns:
        `rows` whose lanes also have `at`, `low` and `high`, and `ticks`: positions and labels.
    """
    fields = {"at": "difference", "low": "ci95_low", "high": "ci95_high"}
    largest = 1.0
    for lane in chain.from_iterable(row["lanes"] for row in rows):
        ends = [100 * abs(lane[field]) for field in fields.values()]
        largest = max(largest, *filter(math.isfinite, ends))
    limit = float(MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(0, largest)[-1])

    def place(difference: float) -> float:
        return 50 + 50 * 100 * difference / limit if math.isfinite(difference) else 50

    def place_lane(lane: dict) -> dict:
        return lane | {position: place(lane[field]) for position, field in fields.items()}

    placed = [{**row, "lanes": list(map(place_lane, row["lanes"]))} for row in rows]
    ticks = [(50 + 25 * step, signed_tick(step * limit / 2)) for step in (-2, -1, 0, 1, 2)]
    return {"rows": placed, "ticks": ticks}
