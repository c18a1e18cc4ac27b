"""Draws the figures of the documentation: `python docs/draw_figures.py`."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent
GREY = "#7a7f87"  # readable on light and dark pages
BOXES = (  # x, y, width, title, second line, fill
    (0.0, 1.3, 1.5, "audio", "1 or 2 clips", None),
    (2.1, 1.3, 2.4, "encoder (frozen)", "HTSAT or Mimi", "#4c78a8"),
    (5.1, 1.3, 2.4, "mapper (trained)", "Linear, GELU, Linear", "#f58518"),
    (0.0, 0.0, 1.5, "question", "text", None),
    (8.1, 0.65, 2.6, "SmolLM2-135M", "frozen by default", "#4c78a8"),
    (11.3, 0.65, 1.5, "answer", "text", None),
)
# Colours that colour-blind readers can tell apart, on light and dark pages.
MARKERS = (("o", "#4c78a8"), ("s", "#f58518"), ("D", "#54a24b"), ("^", "#b279a2"), ("v", "#9d755d"))
BASELINE_MARKERS = {"text-only model": ("|", GREY), "majority answer": ("x", GREY)}
ARROWS = (  # from, to
    ((1.5, 1.75), (2.1, 1.75)),
    ((4.5, 1.75), (5.1, 1.75)),
    ((7.5, 1.75), (8.1, 1.3)),
    ((1.5, 0.45), (8.1, 0.9)),
    ((10.7, 1.1), (11.3, 1.1)),
)


def draw_architecture() -> plt.Figure:
    """Returns the figure: boxes from left to right, and arrows between them."""
    figure, axes = plt.subplots(figsize=(9, 1.9))
    for x, y, width, title, subtitle, fill in BOXES:
        style = {"boxstyle": "round,pad=0,rounding_size=0.12", "edgecolor": GREY, "linewidth": 1.2}
        axes.add_patch(FancyBboxPatch((x, y), width, 0.9, facecolor=fill or "none", **style))
        color = "white" if fill else GREY
        center = x + width / 2
        axes.text(center, y + 0.58, title, ha="center", va="center", color=color, size=9)
        axes.text(center, y + 0.25, subtitle, ha="center", va="center", color=color, size=7)
    for start, end in ARROWS:
        arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1.2, "shrinkA": 2, "shrinkB": 2}
        axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
    labels = (
        (4.8, 2.3, "frames"),
        (8.5, 1.75, "audio tokens"),
        (12.05, 0.35, "loss on its tokens only"),
    )
    for x, y, text in labels:
        axes.text(x, y, text, ha="center", color=GREY, size=7)
    axes.set(xlim=(-0.1, 13.2), ylim=(-0.1, 2.5))
    axes.axis("off")
    return figure


def draw_results(name: str) -> plt.Figure:
    """Returns the figure of a results file: accuracy of each model, with its interval, by row."""
    accuracy = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["accuracy"]
    rows = list(next(iter(accuracy.values())))
    figure, axes = plt.subplots(figsize=(7, 0.57 * len(rows) + 0.12 * len(accuracy)))
    for lane, (model, values_by_row) in enumerate(accuracy.items()):
        marker, color = BASELINE_MARKERS.get(model) or MARKERS[lane]
        cells = [values_by_row[row] for row in rows]
        shift = 0.75 / len(accuracy) * (lane - (len(accuracy) - 1) / 2)
        heights = [number + shift for number in range(len(rows))]
        values = [100 * value for value, _, _ in cells]
        low = [100 * (value - (value if end is None else end)) for value, end, _ in cells]
        high = [100 * ((value if end is None else end) - value) for value, _, end in cells]
        style = {"fmt": marker, "color": color, "elinewidth": 1, "markersize": 5}
        axes.errorbar(values, heights, xerr=[low, high], label=model, **style)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in % (bar: 95 % interval)", color=GREY)
    axes.set_xlim(10, 100)
    axes.tick_params(colors=GREY)
    axes.spines[:].set_color(GREY)
    axes.grid(axis="x", color=GREY, alpha=0.3)
    legend = axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.42, 1), frameon=False)
    for text in legend.get_texts():
        text.set(color=GREY, size=8)
    return figure


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "audiolm"  # equal figures give equal files
    figures = {"architecture": draw_architecture()}
    figures |= {name: draw_results(name) for name in ("results", "results_esc50")}
    for name, figure in figures.items():
        options = {"bbox_inches": "tight", "transparent": True, "metadata": {"Date": None}}
        figure.savefig(FOLDER / f"{name}.svg", **options)
