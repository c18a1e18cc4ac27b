"""Rows of the dot plots. Templates draw them, as wide as the screen allows."""

from collections.abc import Mapping
from itertools import chain

from matplotlib.ticker import MaxNLocator

from ...evaluation.tables import MAJORITY, comparison_rows

MINUS = "\N{MINUS SIGN}"  # as wide as the plus sign
SECTIONS = {"overall": "Overall", "question_type": "By question type", "category": "By category"}


def signed_points(share: float) -> str:
    """Formats a difference of accuracies in points, with a sign, such as "+1.2"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS)


def signed_tick(points: float, _position: int | None = None) -> str:
    """Formats a label of an axis of differences. Usable as a matplotlib formatter."""
    return f"{points:+g}".replace("-", MINUS) if points else "0"


def accuracy_rows(comparison: dict) -> list[dict]:
    """Returns the rows of `comparison_rows` for questions with options, in the order of `SECTIONS`.

    The rows of the section "overall" are renamed to "macro", the primary metric, and "micro". Each
    row gets `lanes`: the accuracy of each arm that has one, with its `controls`.
    """
    rows = [row for row in comparison_rows(comparison) if row["section"] in SECTIONS]
    for row in rows:
        if row["section"] == "overall":
            row["name"] = "micro" if row["n"] else "macro"
        row["lanes"] = {}
        for arm, results in comparison["arms"].items():
            if row["cells"][arm]:
                controls = _control_accuracies(results, row["section"], row["name"])
                row["lanes"][arm] = {**row["cells"][arm], "controls": controls}
    order = list(SECTIONS)
    return sorted(rows, key=lambda row: (order.index(row["section"]), row["name"] == "micro"))


def _control_accuracies(arm: Mapping, section: str, name: str) -> dict[str, float]:
    """Returns an arm's accuracy under each control that was run on exactly the examples of a row.

    For instance, options can only be relabelled where there are letters.
    """
    accuracies = {}
    for control, results in arm["controls"].items():
        if control == MAJORITY or arm["no_audio"]:
            continue
        cell = results.get(section, {}).get(name)
        if name == "macro":
            if results.get("question_type", {}).keys() == arm["question_type"].keys():
                accuracies[control] = results["macro_accuracy"]
        elif cell and cell["n"] == arm[section][name]["n"]:
            accuracies[control] = cell["accuracy"]
    return accuracies


def plot_differences(rows: list[dict]) -> dict:
    """Returns a plot of differences on an axis that they share, with zero in its middle.

    Args:
        rows: Rows with `lanes`: dictionaries with `difference`, `ci95_low` and `ci95_high`.

    Returns:
        `rows`, the `limit` of the axis as a share, and `ticks`: positions in per cent and labels.
    """
    largest = 1.0
    for lane in chain.from_iterable(row["lanes"] for row in rows):
        largest = max(largest, -100 * lane["ci95_low"], 100 * lane["ci95_high"])
    limit = float(MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(0, largest)[-1])
    ticks = [(50 + 25 * step, signed_tick(step * limit / 2)) for step in (-2, -1, 0, 1, 2)]
    return {"rows": rows, "limit": limit / 100, "ticks": ticks}
