"""Plots by matplotlib: audio gain against costs, learning curves and reliability diagrams."""

import math
import textwrap
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ...data.reasonaqa import QUESTION_TYPES
from ...runtime import write_text
from .styles import (
    COLOURS,
    TOOLTIP,
    ArmStyle,
    Picture,
    encodable,
    export_picture,
    marker_options,
    shared_style,
    signed_points,
    signed_tick,
    style_arms,
    template_environment,
)

CAPTION = (
    "Audio gain: macro accuracy above the arm's strongest no-audio baseline, in points, with its "
    "95 % interval. Bits/s of codes: frame rate x codebooks x log2(codebook size). "
    "Bits/s of continuous features: frame rate x channels x 16, as they are cached in bfloat16. "
    "Tokens/s: what the language model reads per second of a clip of full length."
)
COST_LABELS = {
    "bits_per_second": "bits/s of the representation",
    "tokens_per_second": "audio tokens/s",
}
PANEL_INCHES = (4.4, 3.4)
SMALL_INCHES = (3.4, 2.5)
# Letters that fit into the width of a panel.
CAPTION_LETTERS = 76
LEGEND_LETTERS = 66
SMOOTHING_WINDOWS = 25


class CostPoint(NamedTuple):
    """Audio gain of an arm, in points, and what its audio costs."""

    arm: str
    cost: float
    gain: float
    low: float
    high: float


def cost_points(comparison: Mapping) -> dict[str, list[CostPoint]]:
    """Returns the arms that have an audio gain and a cost, by cost. No cost is zero for all."""
    points_by_cost = {}
    for field in COST_LABELS:
        points = []
        for arm, results in comparison["arms"].items():
            gain = results["audio_gain"].get("macro")
            if gain and not results["no_audio"] and results.get(field) is not None:
                values = (100 * gain[name] for name in ("difference", "ci95_low", "ci95_high"))
                points.append(CostPoint(arm, results[field], *values))
        if any(point.cost for point in points):
            points_by_cost[field] = points
    return points_by_cost


def draw_costs(axes: Axes, field: str, points: list[CostPoint], styles: Mapping) -> str:
    """Draws audio gain against a cost on a logarithmic axis. Zero stands apart at its left end.

    Returns:
        The text alternative.
    """
    unit = COST_LABELS[field].removesuffix(" of the representation")
    texts = []
    for arm, cost, gain, low, high in points:
        numbers = [signed_points(value / 100) for value in (gain, low, high)]
        texts.append("{}: {} points ({} to {}), {:,.6g} {}".format(arm, *numbers, cost, unit))
        options = marker_options(styles[arm])
        line = {"color": options["color"], "alpha": 0.6, "elinewidth": 1}
        axes.errorbar(cost, gain, [[gain - low], [high - gain]], **line)
        axes.plot(cost, gain, gid=TOOLTIP + texts[-1], clip_on=False, zorder=3, **options)
    axes.axhline(0, color=COLOURS["muted"].light, linewidth=1, zorder=1)
    _scale_cost_axis(axes, [point.cost for point in points])
    axes.yaxis.set_major_formatter(FuncFormatter(signed_tick))
    axes.set(xlabel=COST_LABELS[field], ylabel="audio gain (points)")
    return f"Audio gain by {COST_LABELS[field]}: {'; '.join(texts)}"


def _scale_cost_axis(axes: Axes, costs: list[float]) -> None:
    positive = [cost for cost in costs if cost]
    low, high = min(positive) / 1.5, max(positive) * 1.5
    if high / low < 6:
        locator = MaxNLocator(5)
    else:
        locator = LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,))
    ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    # Zero has no logarithm: it stands at the left end of a scale that is linear up to `low`.
    has_zero = len(positive) < len(costs)
    axes.set_xscale("symlog", linthresh=low, linscale=0.5)
    axes.set_xlim(-low / 3 if has_zero else low, high)
    axes.set_xticks([0, *ticks] if has_zero else ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_picture(inches: tuple[float, float], draw: Callable[..., str], *args: Any) -> Picture:
    """Returns a picture of one panel. `draw` gets its axes and returns the text alternative."""
    with shared_style():
        figure = Figure(inches, layout="constrained")
        return export_picture(figure, draw(figure.subplots(), *args))


def cost_pictures(comparison: Mapping) -> list[Picture]:
    """Draws audio gain against each cost that any arm has."""
    styles = style_arms(comparison)
    panels = cost_points(comparison).items()
    return [_draw_picture(PANEL_INCHES, draw_costs, *panel, styles) for panel in panels]


def write_figure(path: str | Path, comparison: Mapping) -> None:
    """Writes `figure.svg`: audio gain against bit rate and audio tokens per second.

    Nothing is written without an arm that has an audio gain and a cost.
    """
    styles = style_arms(comparison)
    panels = cost_points(comparison)
    if not panels:
        return
    width, height = PANEL_INCHES
    with shared_style():
        figure = Figure((width * len(panels), height + 1), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        texts = [draw_costs(axes, *panel, styles) for axes, panel in zip(all_axes, panels.items())]
        arms = [point.arm for point in chain.from_iterable(panels.values())]
        _draw_legend(figure, {arm: styles[arm] for arm in arms}, LEGEND_LETTERS * len(panels))
        caption = textwrap.fill(CAPTION, CAPTION_LETTERS * len(panels))
        figure.supxlabel(caption, x=0.01, horizontalalignment="left", fontsize="small")
        picture = export_picture(figure, ". ".join(texts))
    template = template_environment().get_template("figure.svg")
    write_text(path, template.render(picture=picture, colours=COLOURS))


def _draw_legend(figure: Figure, styles: Mapping[str, ArmStyle], letters: int) -> None:
    """Draws a legend above panels that are as wide as so many letters."""
    names = [encodable(arm) for arm in styles]
    columns = max(1, letters // (max(map(len, names)) + 8))
    # The same number of rows, as full as possible.
    columns = math.ceil(len(names) / math.ceil(len(names) / columns))
    marks = [Line2D([], [], **marker_options(arm_style)) for arm_style in styles.values()]
    options = {"loc": "outside upper left", "frameon": False, "handlelength": 1}
    figure.legend(marks, names, ncols=columns, **options)


def learning_curve_pictures(comparison: Mapping) -> dict[str, Picture]:
    """Draws the training loss ("training") and the validation loss of each question type."""
    curves = {
        arm: results["learning_curves"]
        for arm, results in comparison["arms"].items()
        if "learning_curves" in results
    }
    styles = style_arms(comparison)
    losses = {arm: moving_average(curve["train_loss"]) for arm, curve in curves.items()}
    pictures = {}
    if curves:
        title = "Training loss"
        pictures["training"] = _draw_picture(PANEL_INCHES, _draw_losses, title, losses, styles)
    for question_type in QUESTION_TYPES:
        losses = {arm: curve["eval_loss"].get(question_type, []) for arm, curve in curves.items()}
        if any(losses.values()):
            title = f"Validation loss, {question_type}"
            picture = _draw_picture(SMALL_INCHES, _draw_losses, title, losses, styles)
            pictures[question_type] = picture
    return pictures


def moving_average(points: list[list]) -> list[list]:
    """Averages [step, loss] pairs over a centred 25th of them. Windows are shorter at the ends."""
    window = 2 * (len(points) // SMOOTHING_WINDOWS // 2) + 1
    losses = pd.Series([loss for _, loss in points], dtype=float)
    averaged = losses.rolling(window, center=True, min_periods=1).mean()
    return [[step, loss] for (step, _), loss in zip(points, averaged)]


def _draw_losses(axes: Axes, title: str, losses: Mapping[str, list], styles: Mapping) -> str:
    description = f"{title} by step. At the last step:"
    for arm, points in losses.items():
        points = [(step, loss) for step, loss in points if math.isfinite(loss)]
        if points:
            steps, values = zip(*points)
            final = f"{arm} {values[-1]:.3f}"
            description += f" {final};"
            options = marker_options(styles[arm], has_line=True)
            axes.plot(steps, values, gid=TOOLTIP + final, markevery=[-1], **options)
    axes.set_xlim(left=0)
    axes.set(xlabel="optimizer step", ylabel="loss per answer token (nats)")
    return description


def reliability_picture(arm: str, arm_style: ArmStyle, calibration: Mapping) -> Picture:
    """Draws how often answers are correct against their probability, in bins of probability.

    The size of a mark shows the share of answers in its bin.
    """
    colour = COLOURS[arm_style.colour].light
    return _draw_picture(SMALL_INCHES, _draw_reliability, arm, colour, calibration["bins"])


def _draw_reliability(axes: Axes, arm: str, colour: str, bins: list[Mapping]) -> str:
    answers = sum(group["n"] for group in bins)
    description = f"Reliability of {arm}:"
    axes.plot([0, 100], [0, 100], color=COLOURS["muted"].light, linewidth=1)
    for group in bins:
        probability, correct = 100 * group["confidence"], 100 * group["accuracy"]
        text = f"{group['n']} answers of probability {probability:.1f} %, {correct:.1f} % correct"
        description += f" {text};"
        axes.vlines(probability, probability, correct, colour, alpha=0.5)
        size = 4 + 12 * math.sqrt(group["n"] / answers)
        options = {"color": colour, "alpha": 0.8, "clip_on": False, "gid": TOOLTIP + text}
        axes.plot(probability, correct, "o", markersize=size, **options)
    ticks = range(0, 101, 25)
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=ticks, yticks=ticks)
    axes.set(xlabel="probability of the answer (%)", ylabel="correct (%)")
    return description
