"""`figure.svg` of a comparison: what arms get from listening against the bits and the tokens that they take.

Drawn as markup alone, for an eye that may prefer dark pages; report.html shows the same panels.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from .charts import MINUS, arm_styles, ticks
from .report_macros import PANEL
from .report_style import COLOURS, MARKS

CAPTION = (
    "Macro accuracy above the arm's best control, in points, with its 95 % interval over clips. Bits/s: of codes, frames/s "
    "times levels times log2(codebook size); of continuous features, frames/s times channels times 16, as they are kept in "
    "bfloat16. Tokens/s: what the language model reads of a clip of full length."
)
AXES = {"bits_per_second": "bits/s of the representation", "tokens_per_second": "tokens/s"}
WIDTH, HEIGHT = 480, 400  # px of a panel
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 46  # px around what is drawn in it
LETTER, LINE = 6.9, 13  # px: width of a letter at 12 px, rather too wide, and height of a line


class Box(NamedTuple):
    """A rectangle in px."""

    left: float
    top: float
    right: float
    bottom: float

    def over(self, other: "Box") -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def short(number: float) -> str:
    """A number of an axis: 300, 1k, 20k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in a range: powers of ten, and 2 and 5 times those if they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 200 else (1,)
    return [
        number
        for power in powers
        for step in steps
        if low <= (number := step * 10.0**power) <= high
    ]


def place_labels(points: list[dict], area: Box) -> None:
    """Gives each point `label`, where its name begins, and `lead`, where a line to that ends if it stands apart.

    Of the places around a point, nearest first, each name takes the first that is free; else the one that covers least.
    """
    taken = [Box(p["x"] - 6, p["y"] - 6, p["x"] + 6, p["y"] + 6) for p in points]
    thin = [Box(p["x"] - 1, p["high"], p["x"] + 1, p["low"]) for p in points]
    for point in sorted(points, key=lambda p: (p["y"], p["x"])):
        width, best = LETTER * len(point["arm"]), (math.inf,)
        for distance in range(9, 130, 11):
            for dx, dy in (
                (1, 0),
                (-1, 0),
                (0.8, -0.8),
                (0.8, 0.8),
                (-0.8, -0.8),
                (-0.8, 0.8),
                (0, -1),
                (0, 1),
            ):
                x, y = point["x"] + distance * dx, point["y"] + distance * dy
                left = x - width * (0.5 if not dx else 0 if dx > 0 else 1)
                box = Box(left, y - LINE / 2, left + width, y + LINE / 2)
                outside = width * LINE - box.over(area)
                cost = (
                    20 * outside
                    + 4 * sum(box.over(other) for other in taken)
                    + sum(box.over(other) for other in thin)
                )
                if cost < best[0]:
                    best = (cost, box, distance > 12)
            if best[0] < 1:
                break
        _, box, apart = best
        taken.append(box)
        near = min(max(point["x"], box.left), box.right), min(max(point["y"], box.top), box.bottom)
        point |= {"label": (box.left, box.bottom - 3.5), "lead": near if apart else None}


def panel(comparison: Mapping, field: str) -> dict | None:
    """Points, axes and labels of accuracy above control against a field of [`AXES`], in px; None if no arm has both.

    A value of 0, which has no logarithm, stands at the left end behind a gap.
    """
    arms, styles = comparison["arms"], arm_styles(comparison)
    found = {
        arm: (of[field], of["audio_gain"]["macro"])
        for arm, of in arms.items()
        if not of["no_audio"] and of.get(field) is not None and of["audio_gain"].get("macro")
    }
    if not any(value for value, _ in found.values()):
        return None
    ends = [
        100 * of[key] for _, of in found.values() for key in ("difference", "ci95_low", "ci95_high")
    ]
    ends = [end for end in ends if math.isfinite(end)]
    y, known = (
        ticks(min(0, *ends), max(1, *ends), 5),
        [value for value, _ in found.values() if value],
    )
    low, high, none = min(known) / 1.5, max(known) * 1.5, len(known) < len(found)
    area = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    start = area.left + 40 * none

    def across(value):
        return (
            start + math.log(value / low) / math.log(high / low) * (area.right - start)
            if value
            else area.left + 16
        )

    def down(value):
        return area.bottom - (value - y[0]) / (y[-1] - y[0]) * (area.bottom - area.top)

    points = []
    for arm, (value, of) in found.items():
        middle, *interval = (100 * of[key] for key in ("difference", "ci95_low", "ci95_high"))
        worst, best = (end if math.isfinite(end) else middle for end in interval)
        points.append(
            {
                "arm": arm,
                "style": styles[arm],
                "x": across(value),
                "y": down(middle),
                "low": down(worst),
                "high": down(best),
                "says": f"{arm}: {middle:+.1f} points ({worst:+.1f} to {best:+.1f}), {value:,.4g} "
                f"{AXES[field].split()[0]}",
            }
        )
    place_labels(points, area)
    return {
        "title": AXES[field],
        "width": WIDTH,
        "height": HEIGHT,
        "area": area,
        "points": points,
        "zero": down(0),
        "x": [
            (across(value), short(value)) for value in ([0] if none else []) + log_ticks(low, high)
        ],
        "y": [(down(v), f"{v:+g}".replace("-", MINUS) if v else "0") for v in y],
    }


def panels(comparison: Mapping) -> list[dict]:
    """Those of [`AXES`] that can be drawn."""
    return [found for field in AXES if (found := panel(comparison, field))]


FIGURE = f"""\
{PANEL}
<svg xmlns="http://www.w3.org/2000/svg" width="{{{{ width }}}}" height="{{{{ height }}}}"
 viewBox="0 0 {{{{ width }}}} {{{{ height }}}}">
<style>
{COLOURS}{MARKS}.page {{ fill: var(--page); }}
</style>
<rect width="100%" height="100%" class="page"/>
{{% for of in panels %}}<svg x="{{{{ loop.index0 * of.width }}}}">{{{{ panel(of) }}}}</svg>{{% endfor %}}
{{% for line in caption %}}
<text x="16" y="{{{{ panels[0].height + 16 + 17 * loop.index0 }}}}">{{{{ line }}}}</text>
{{% endfor %}}
</svg>
"""


def wrapped(text: str, letters: int) -> list[str]:
    """Lines of at most so many letters."""
    return re.findall(rf"(.{{1,{letters}}})(?:\s|$)", text)


def write_figure(path: str | Path, comparison: Mapping) -> bool:
    """Writes the figure, unless no arm has what it draws, such as where no control was run; whether it did."""
    drawn = panels(comparison)
    if not drawn:
        return False
    width, lines = WIDTH * len(drawn), wrapped(CAPTION, int((WIDTH * len(drawn) - 32) / 7))
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    svg = environment.from_string(FIGURE).render(
        panels=drawn,
        width=width,
        height=HEIGHT + 17 * len(lines) + 12,
        caption=lines,
    )
    Path(path).write_text(svg.lstrip(), encoding="utf-8")
    return True
