"""Formats the main numbers of a comparison as text. The report has all of them."""

from itertools import chain

from ..evaluation.answering import PROTOCOL_NAMES
from ..evaluation.tables import contradiction_lines, format_table
from .conclusion import has_text_only_baseline

MAJORITY = "majority"


def comparison_table(comparison: dict) -> str:
    """Returns accuracies, audio gains and differences of a comparison as text."""
    statistics = comparison["statistics"]
    lines = []
    if statistics:
        counts = f"{statistics['rows']:,} closed examples about {statistics['clips']:,} clips"
        protocol = PROTOCOL_NAMES[comparison["protocol"]]
        lines.append(f"{counts}, scored by {protocol}; ± half of the 95 % interval")
    lines += [*_accuracy_lines(comparison), *_audio_gain_lines(comparison)]
    lines += _difference_lines(statistics.get("primary", []))
    for arm, results in comparison["arms"].items():
        lines += contradiction_lines(results.get("contradictions", {}), arm)
    return "\n".join(lines)


def comparison_columns(comparison: dict) -> dict[str, dict]:
    """Returns the columns of a comparison: the arms, and the majority baseline if it was run."""
    columns = dict(comparison["arms"])
    if comparison[MAJORITY]:
        columns[MAJORITY] = comparison[MAJORITY]
    return columns


def _accuracy_lines(comparison: dict) -> list[str]:
    columns = comparison_columns(comparison)
    types = dict.fromkeys(chain(*(arm.get("question_type", {}) for arm in columns.values())))
    open_types = dict.fromkeys(chain(*(arm.get("text", {}) for arm in columns.values())))
    rows = []
    for name, arm in columns.items():
        macro = arm.get("macro") or {"accuracy": arm.get("macro_accuracy")}
        cells = [_accuracy(cell) for cell in (macro, *map(arm.get("question_type", {}).get, types))]
        for open_type in open_types:
            loss = arm.get("text", {}).get(open_type, {}).get("loss_per_answer_token")
            cells.append("-" if loss is None else f"{loss:.3f}")
        rows.append((name, *cells))
    losses = [f"loss, {open_type}" for open_type in open_types]
    return format_table(("accuracy", "macro", *types, *losses), rows)


def _accuracy(cell: dict | None) -> str:
    if cell is None or cell["accuracy"] is None:
        return "-"
    if "ci95_low" not in cell:
        return f"{cell['accuracy']:.3f}"
    return f"{cell['accuracy']:.3f} ±{(cell['ci95_high'] - cell['ci95_low']) / 2:.3f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(result: dict, name: str = "ci95") -> str:
    return f"({_points(result[f'{name}_low'])} to {_points(result[f'{name}_high'])})"


def _audio_gain_lines(comparison: dict) -> list[str]:
    lines = []
    for arm, results in comparison["arms"].items():
        gain = results["audio_gain"].get("macro")
        if gain:
            difference = f"{_points(gain['difference']):>6} {_interval(gain)}"
            lines.append(f"  {arm:<26}{difference}, over {gain['best_control']}")
    if has_text_only_baseline(comparison):
        title = "audio gain over the strongest no-audio baseline, in points of macro accuracy"
    else:
        title = "points of macro accuracy above a control; no text-only model, so no audio gain"
    return [title, *lines] if lines else []


def _difference_lines(pairs: list[dict]) -> list[str]:
    lines = [
        "differences in points of macro accuracy (above 0, the first arm is better): 95 % "
        "interval, p; the same after Holm"
    ]
    for pair in pairs:
        by_seed = ", ".join(_points(value) for value in pair["by_seed"])
        detectable = 100 * pair["minimum_detectable_difference"]
        name = f"{pair['b']} - {pair['a']}"
        lines.append(
            f"  {name:<40}{_points(pair['difference']):>6} {_interval(pair)}  "
            f"p {pair['p']:.4f}; {_interval(pair, 'holm')} p {pair['p_holm']:.4f}; by seed "
            f"{by_seed}; minimum detectable {detectable:.1f}"
        )
    return lines if pairs else []
