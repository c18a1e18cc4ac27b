"""Draws architecture.svg: `python docs/draw_architecture.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

FILE = Path(__file__).parent / "architecture.svg"
GREY = "#7a7f87"  # readable on light and dark pages
BOXES = (  # x, y, width, title, second line, fill
    (0.0, 1.3, 1.5, "audio", "1 or 2 clips", None),
    (2.1, 1.3, 2.4, "encoder (frozen)", "HTSAT or Mimi", "#4c78a8"),
    (5.1, 1.3, 2.4, "mapper (trained)", "Linear, GELU, Linear", "#f58518"),
    (0.0, 0.0, 1.5, "question", "text", None),
    (8.1, 0.65, 2.6, "SmolLM2-135M", "frozen at first", "#4c78a8"),
    (11.3, 0.65, 1.5, "answer", "text", None),
)
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


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "audiolm"  # equal figures give equal files
    metadata = {"Date": None}
    draw_architecture().savefig(FILE, bbox_inches="tight", transparent=True, metadata=metadata)
