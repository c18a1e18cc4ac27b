"""What the report's pictures draw, as positions in per cent, so that marks and letters keep their size at any width."""

import math
from collections.abc import Mapping

from ...data.reasonaqa import QUESTION_TYPES
from ...evaluation.tables import MAJORITY, table_rows

MEAN = "mean of types"
MINUS = "\N{MINUS SIGN}"  # as wide as the plus
SHAPES = 5  # marks and colours of arms; the text-only arm has a mark of its own
LANE, BENEATH = 14, 11  # px that an arm takes in a dot plot, and that its controls take under it


def arm_styles(comparison: Mapping) -> dict[str, str]:
    """Style of each arm: colour and mark; arms without audio look alike and unlike the others."""
    styles, used = {}, 0
    for arm, options in comparison["arms"].items():
        styles[arm] = "deaf" if options["no_audio"] else f"arm{used % SHAPES}"
        used += not options["no_audio"]
    return styles


def of_control(arm: Mapping, control: Mapping, section: str, name: str) -> float | None:
    """A control's accuracy in one row of the table; None where it was not run, or not on all the rows that the arm heard."""
    if name == MEAN:
        return (
            control["macro_accuracy"]
            if control.get("question_type", {}).keys() == arm["question_type"].keys()
            else None
        )
    if not (cell := control.get(section, {}).get(name)) or cell["n"] != arm[section][name]["n"]:
        return None  # other letters, which only some rows have
    return cell["accuracy"]


def in_order(rows: list[dict], sections: tuple[str, ...]) -> list[dict]:
    """Rows of the table in the order of `sections`, the others left out, and the primary endpoint first."""
    rows = [row for row in rows if row["section"] in sections]
    return sorted(
        rows,
        key=lambda row: (
            sections.index(row["section"]),
            row["section"] == "overall" and row["name"] != MEAN,
        ),
    )


def dot_rows(comparison: Mapping, sections: tuple[str, ...]) -> list[dict]:
    """Accuracies by the sections of the table: a lane for each arm with its controls beneath, and the majority's line.

    An arm that hears nothing has no controls.
    """
    rows = []
    for row in in_order(table_rows(comparison), sections):
        lanes, height = [], 12
        for arm, cell in row["cells"].items():
            if arm == MAJORITY or not cell:
                continue
            of = comparison["arms"][arm]
            given = (
                {}
                if of["no_audio"]
                else {
                    name: of_control(of, one, row["section"], row["name"])
                    for name, one in of["controls"].items()
                    if name != MAJORITY
                }
            )
            controls = [(name, 100 * value) for name, value in given.items() if value is not None]
            lanes.append(
                {
                    "arm": arm,
                    "y": height,
                    "at": 100 * cell["accuracy"],
                    "low": 100 * cell["ci95_low"],
                    "high": 100 * cell["ci95_high"],
                    "controls": controls,
                }
            )
            height += LANE + (BENEATH if controls else 0)
        baseline = row["cells"].get(MAJORITY)
        rows.append(
            {
                "section": row["section"],
                "name": row["name"],
                "n": row["n"],
                "lanes": lanes,
                "height": height,
                "majority": baseline and 100 * baseline["accuracy"],
            }
        )
    return rows


def forest(rows: list[dict]) -> dict:
    """Differences around 0 in points, by an axis that they share.

    Args:
        rows: `lanes`, each a dictionary with `difference`, `ci95_low` and `ci95_high`, beside whatever else.

    Returns:
        `rows`, whose lanes have `at`, `low` and `high` too, and `x`: place and label of the axis' marks.
    """
    ends = [
        abs(lane[key])
        for row in rows
        for lane in row["lanes"]
        for key in ("difference", "ci95_low", "ci95_high")
    ]
    most = (
        ticks(0, 100 * max(0.01, *(end for end in ends if math.isfinite(end))), 2)[-1]
        if ends
        else 1
    )

    def place(value):
        return 50 + 50 * 100 * value / most if math.isfinite(value) else 50

    placed = [
        {
            **row,
            "lanes": [
                {
                    **lane,
                    "at": place(lane["difference"]),
                    "low": place(lane["ci95_low"]),
                    "high": place(lane["ci95_high"]),
                }
                for lane in row["lanes"]
            ],
        }
        for row in rows
    ]
    labels = [
        f"{step * most / 2:+g}".replace("-", MINUS) if step else "0" for step in (-2, -1, 0, 1, 2)
    ]
    return {"rows": placed, "x": list(zip((0, 25, 50, 75, 100), labels))}


def reliability(calibration: Mapping) -> dict:
    """Points of a reliability diagram: place from the left and from the top, and radius in px by the share of rows."""
    rows = sum(of["n"] for of in calibration["bins"])
    return {
        **calibration,
        "n": rows,
        "points": [
            {
                **of,
                "x": 100 * of["confidence"],
                "y": 100 - 100 * of["accuracy"],
                "fair": 100 - 100 * of["confidence"],
                "radius": 2.5 + 8 * math.sqrt(of["n"] / rows),
            }
            for of in calibration["bins"]
        ],
    }


def smooth(points: list[list], windows: int = 25) -> list[list]:
    """Moving average over a 25th of the points, centred and narrower at the ends."""
    half = len(points) // windows // 2
    parts = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [
        [step, sum(loss for _, loss in part) / len(part)] for (step, _), part in zip(points, parts)
    ]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers whose first and last enclose the range."""
    span = max(high - low, 1e-6) / count
    power = 10 ** math.floor(math.log10(span))
    step = next(power * m for m in (1, 2, 5, 10) if span <= power * m * 1.0001)
    return [
        round(step * i, 10)
        for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    ]


def line_chart(lines: dict[str, list[list]]) -> dict:
    """Axes and lines in per cent of a chart's width and height, from [step, loss] pairs of each arm.

    Losses that are not numbers are left out. `lines` holds arm, points, and the last point with its value.
    """
    lines = {
        arm: [(step, loss) for step, loss in points if math.isfinite(loss)]
        for arm, points in lines.items()
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return {"x": [], "y": [], "lines": []}
    y = ticks(min(loss for _, loss in points), max(loss for _, loss in points))
    if len(y) == 1:
        y.append(y[0] + 1)
    digits = max(0, -math.floor(math.log10(y[1] - y[0]) + 1e-9))
    last = max(step for step, _ in points) or 1
    x = [tick for tick in ticks(0, last) if tick <= last]

    def place(step, loss):
        return 100 * step / last, 100 - 100 * (loss - y[0]) / (y[-1] - y[0])

    return {
        "x": [(100 * tick / last, f"{tick:g}") for tick in x],
        "y": [(place(0, tick)[1], f"{tick:.{digits}f}") for tick in y],
        "lines": [
            {"arm": arm, "points": [place(*point) for point in line], "end": f"{line[-1][1]:.3f}"}
            for arm, line in lines.items()
            if line
        ],
    }


def learning_charts(
    curves: Mapping[str, Mapping], names: Mapping[str, str]
) -> list[tuple[str, dict]]:
    """The chart of the training loss, smoothed, and of the validation loss of each question type that has one."""
    if not curves:
        return []
    by_type = [
        (names[kind], {arm: of["eval_loss"].get(kind, []) for arm, of in curves.items()})
        for kind in QUESTION_TYPES
    ]
    return [
        (
            "training loss",
            line_chart({arm: smooth(of["train_loss"]) for arm, of in curves.items()}),
        ),
        *((name, line_chart(of)) for name, of in by_type if any(of.values())),
    ]
