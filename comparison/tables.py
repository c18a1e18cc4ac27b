"""Formats a comparison as text."""

from ..evaluation.tables import columns_of, table_rows

SECTION_TITLES = {
    "question_type": "accuracy by question type",
    "category": "accuracy by category",
    "overall": "accuracy overall",
    "text": "loss per answer token",
}
FAMILY_TITLES = {"primary": "macro accuracy", "by_type": "one question type"}


def comparison_table(comparison: dict) -> str:
    """Returns accuracies, audio gains, differences and probes of a comparison as text."""
    lines = [
        *_accuracy_lines(comparison),
        *_audio_gain_lines(comparison),
        *_budget_lines(comparison),
        *_difference_lines(comparison),
        *_probe_lines(comparison),
    ]
    return "\n".join(lines)


def _accuracy_lines(comparison: dict) -> list[str]:
    rows = table_rows(comparison)
    widths = {name: max(len(name), 19) + 2 for name in columns_of(comparison)}
    label_width = max(28, *(len(row["name"]) + 2 for row in rows))
    header = "".join(f"{name:>{width}}" for name, width in widths.items())
    lines = [f"{'':<{label_width}}{'n':>6}{header}"]
    section = None
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            lines.append(SECTION_TITLES[section])
        cells = [f"{_cell(row['cells'][name]):>{width}}" for name, width in widths.items()]
        lines.append(f"{'  ' + row['name']:<{label_width}}{row['n'] or '':>6}{''.join(cells)}")
    return lines


def _cell(value: dict | None) -> str:
    if value is None:
        return "-"
    if "loss" in value:
        return f"{value['loss']:.3f}"
    if "ci95_low" in value:
        return f"{value['accuracy']:.3f} ({value['ci95_low']:.3f}-{value['ci95_high']:.3f})"
    return f"{value['accuracy']:.3f}" + " " * len(" (0.000-0.000)")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _difference(result: dict) -> str:
    """Formats a difference in points with its interval."""
    ends = f"({_points(result['ci95_low'])} to {_points(result['ci95_high'])})"
    return f"{_points(result['difference']):>6} {ends}"


def _audio_gain_lines(comparison: dict) -> list[str]:
    lines = ["audio gain over the strongest no-audio baseline, in points of macro accuracy"]
    for arm, results in comparison["arms"].items():
        gain = results["audio_gain"].get("macro")
        if gain:
            lines.append(f"  {arm:<26}{_difference(gain)}, over {gain['best_control']}")
    return lines if len(lines) > 1 else []


def _budget_lines(comparison: dict) -> list[str]:
    budgets = comparison.get("budgets")
    if not budgets:
        return []
    header = "".join(f"{int(steps):>10,}" for steps in budgets)
    lines = [f"{'macro accuracy by steps':<28}{header}"]
    for arm in comparison["arms"]:
        line = f"  {arm:<26}"
        for results in budgets.values():
            macro = results.get(arm, {}).get("macro")
            line += f"{macro['accuracy']:>10.3f}" if macro else f"{'-':>10}"
        lines.append(line)
    return lines


def _difference_lines(comparison: dict) -> list[str]:
    lines = []
    for family, title in FAMILY_TITLES.items():
        pairs = comparison["statistics"].get(family, [])
        if pairs:
            lines.append(
                f"differences in points of {title}: 95 % interval over clips, p, corrected p"
            )
        for pair in pairs:
            name = f"{pair['b']} - {pair['a']}"
            if family == "by_type":
                name = f"{pair['question_type']} {name}"
            tests = f"p {pair['p']:.4f}, {pair['p_holm']:.4f}; {_details(pair)}"
            lines.append(f"  {name:<40}{_difference(pair)}  {tests}")
    return lines


def _details(pair: dict) -> str:
    if "mcnemar" in pair:
        return f"McNemar {pair['mcnemar']['p_holm']:.4f}"
    seeds = ", ".join(_points(value) for value in pair["by_seed"])
    detectable = 100 * pair["minimum_detectable_difference"]
    return f"by seed {seeds}; minimum detectable {detectable:.1f}"


def _probe_lines(comparison: dict) -> list[str]:
    lines = []
    for topic, probes in comparison.get("probes", {}).items():
        majority = probes["majority"]["accuracy"]
        for pooling, results in probes["results"].items():
            cells = ", ".join(f"{arm} {_cell(result)}" for arm, result in results.items())
            lines.append(f"  {topic}, {pooling} pooling: {cells}; majority {majority:.3f}")
    return ["accuracy of linear probes on the encoders' features", *lines] if lines else []
