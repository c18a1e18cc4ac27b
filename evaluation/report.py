"""`report.html` of a comparison: one file that needs no network and runs no script, for a phone as well as for a screen.

Everything is drawn by the template of report_page.py, which escapes every string. Here is what it draws: pictures as
positions in per cent, so that marks and letters keep their size at any width, and clips as data URIs.
"""

import base64
import math
import mimetypes
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from audiolm.data.reasonaqa import QUESTION_TYPES
from audiolm.evaluation.comparison import MAJORITY, table_rows
from audiolm.evaluation.report_page import PAGE

NAMES = {"mcq": "multiple choice", "yes_no": "yes or no", "entailment": "entailment", "difference": "difference of two clips",
         "caption": "caption", "detail": "detail"}  # fmt: skip
SECTIONS = {"question_type": "By question type", "category": "By category", "overall": "Overall",
            "text": "Loss per answer token, lower is better"}  # fmt: skip
AUDIO_TYPES = {".flac": "audio/flac", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
SHAPES = 5  # marks and colours of the page; the text-only arm has a mark of its own


def write_report(path: str | Path, comparison: dict, examples: list[dict]) -> None:
    """Writes the page.

    Args:
        comparison: what `comparison.json` holds. examples: of [`choose_examples`][audiolm.evaluation.comparison].
    """
    arms = arm_styles(comparison)
    curves = {arm: of["learning_curves"] for arm, of in comparison["arms"].items()}
    trained = {arm: smooth(of["train_loss"]) for arm, of in curves.items()}
    by_type = [(kind, {arm: of["eval_loss"].get(kind, []) for arm, of in curves.items()}) for kind in QUESTION_TYPES]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string(PAGE)
    html = page.render(
        comparison=comparison, arms=arms, text_only=[arm for arm, style in arms.items() if style == "deaf"],
        sections=SECTIONS, names=NAMES, majority=MAJORITY, rows=table_rows(comparison),
        dots=dot_rows(comparison), train_chart=line_chart(trained),
        eval_charts=[(NAMES[kind], line_chart(of)) for kind, of in by_type if any(of.values())],
        examples=[{**example, "clips": [audio_uri(clip) for clip in example["clips"]]} for example in examples],
    )  # fmt: skip
    Path(path).write_text(html, encoding="utf-8")


def arm_styles(comparison: dict) -> dict[str, str]:
    """Style of each arm: colour and mark; arms without audio look alike and unlike the others."""
    styles, used = {}, 0
    for arm, options in comparison["arms"].items():
        styles[arm] = "deaf" if options.get("no_audio") else f"arm{used % SHAPES}"
        used += not options.get("no_audio")
    return styles


def dot_rows(comparison: dict) -> list[dict]:
    """Accuracies as positions in per cent of the width: a lane for each arm, and the majority baseline's line."""
    rows = []
    for row in table_rows(comparison):
        if row["section"] == "text" or row["name"] == "mean of types":
            continue
        lanes = [{"arm": arm, "at": 100 * cell["accuracy"], "low": 100 * cell["ci95_low"], "high": 100 * cell["ci95_high"]}
                 for arm, cell in row["cells"].items() if cell and arm != MAJORITY]  # fmt: skip
        baseline = row["cells"][MAJORITY]
        rows.append({"section": row["section"], "name": row["name"], "n": row["n"], "lanes": lanes,
                     "majority": baseline and 100 * baseline["accuracy"]})  # fmt: skip
    return rows


def smooth(points: list[list], windows: int = 25) -> list[list]:
    """Moving average over a 25th of the points, centred and narrower at the ends."""
    half = len(points) // windows // 2
    parts = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [[step, sum(loss for _, loss in part) / len(part)] for (step, _), part in zip(points, parts)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers whose first and last enclose the range."""
    span = max(high - low, 1e-6) / count
    power = 10 ** math.floor(math.log10(span))
    step = next(power * m for m in (1, 2, 5, 10) if span <= power * m * 1.0001)
    return [round(step * i, 10) for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def line_chart(lines: dict[str, list[list]]) -> dict:
    """Axes and lines in per cent of a chart's width and height, from [step, loss] pairs of each arm.

    Losses that are not numbers are left out. `lines` holds arm, points, and the last point with its value.
    """
    lines = {arm: [(step, loss) for step, loss in points if math.isfinite(loss)] for arm, points in lines.items()}
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
            for arm, line in lines.items() if line
        ],
    }  # fmt: skip


def audio_uri(path: str) -> dict:
    """A clip's file name and its bytes as a data URI."""
    kind = AUDIO_TYPES.get(Path(path).suffix.lower()) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {"name": Path(path).name, "uri": f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"}
