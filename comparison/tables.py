"""A comparison as text tables."""

from ..evaluation.tables import columns_of, table_rows


def comparison_table(comparison: dict) -> str:
    """The comparison as text: accuracy with its 95 % interval, loss per answer token of open questions, and the differences."""
    titles = {
        "question_type": "accuracy by question type",
        "category": "accuracy by category",
        "overall": "accuracy overall",
        "text": "loss per answer token",
    }

    def cell(value):
        if value is None:
            return "-"
        if "loss" in value:
            return f"{value['loss']:.3f}"
        interval = (
            f" ({value['ci95_low']:.3f}-{value['ci95_high']:.3f})"
            if "ci95_low" in value
            else " " * 14
        )
        return f"{value['accuracy']:.3f}{interval}"

    rows, columns = table_rows(comparison), columns_of(comparison)
    first = max(28, *(len(row["name"]) + 2 for row in rows))
    widths = [max(len(name), 19) + 2 for name in columns]
    lines = [f"{'':<{first}}{'n':>6}" + "".join(f"{name:>{w}}" for name, w in zip(columns, widths))]
    section = None
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            lines.append(titles[section])
        cells = "".join(f"{cell(row['cells'][name]):>{w}}" for name, w in zip(columns, widths))
        lines.append(f"{'  ' + row['name']:<{first}}{row['n'] or '':>6}{cells}")
    return "\n".join(
        [
            *lines,
            *_of_listening(comparison),
            *_of_budgets(comparison),
            *_of_pairs(comparison),
            *_of_probes(comparison),
        ]
    )


def _of_listening(comparison: dict) -> list[str]:
    lines = ["above the best control, in points of macro accuracy"]
    for arm, of in comparison["arms"].items():
        if above := of["audio_gain"].get("macro"):
            interval = f"({100 * above['ci95_low']:+.1f} to {100 * above['ci95_high']:+.1f})"
            lines.append(
                f"  {arm:<26}{100 * above['difference']:+6.1f} {interval}, over {above['best_control']}"
            )
    return lines if len(lines) > 1 else []


def _of_budgets(comparison: dict) -> list[str]:
    budgets, lines = comparison.get("budgets", {}), []
    for arm in comparison["arms"] if budgets else ():
        macros = [found.get(arm, {}).get("macro") for found in budgets.values()]
        cells = [f"{macro['accuracy']:.3f}" if macro else "-" for macro in macros]
        lines.append(f"  {arm:<26}" + "".join(f"{cell:>10}" for cell in cells))
    return (
        [
            f"{'macro accuracy by steps':<28}" + "".join(f"{int(steps):>10,}" for steps in budgets),
            *lines,
        ]
        if lines
        else []
    )


def _of_probes(comparison: dict) -> list[str]:
    lines = []
    for kind, of in comparison.get("probes", {}).items():
        for pooling, arms in of["results"].items():
            cells = ", ".join(
                f"{arm} {found['accuracy']:.3f} ({found['ci95_low']:.3f}-{found['ci95_high']:.3f})"
                for arm, found in arms.items()
            )
            lines.append(
                f"  {kind}, {pooling} pooling: {cells}; majority {of['majority']['accuracy']:.3f}"
            )
    return ["accuracy of linear probes on the encoders' features", *lines] if lines else []


def _of_pairs(comparison: dict) -> list[str]:
    lines = []
    for title, family in (("macro accuracy", "primary"), ("one question type", "by_type")):
        pairs = comparison["statistics"].get(family, [])
        if pairs:
            lines.append(
                f"differences in points of {title}, with 95 % interval over clips, p, and p after Holm"
            )
        for pair in pairs:
            name = " ".join(filter(None, (pair.get("question_type"), f"{pair['b']} - {pair['a']}")))
            interval = f"({100 * pair['ci95_low']:+.1f} to {100 * pair['ci95_high']:+.1f})"
            line = f"  {name:<40}{100 * pair['difference']:+6.1f} {interval}"
            line += f"  p {pair['p']:.4f}, {pair['p_holm']:.4f}"
            if family == "primary":
                seeds = ", ".join(f"{100 * value:+.1f}" for value in pair["by_seed"])
                line += f"; by seed {seeds}; detectable {100 * pair['minimum_detectable_difference']:.1f}"
            else:
                line += f"; McNemar {pair['mcnemar']['p_holm']:.4f}"
            lines.append(line)
    return lines
