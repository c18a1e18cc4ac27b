"""Formats the metrics of an evaluation as text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .answering import PROTOCOL_NAMES
from .audio_gain import TEXT_ONLY_CONTROL

MEAN = "macro accuracy"
TEXT_METRICS = ("bleu_4", "rouge_l", "cider_d")
# The protocol trains on 320,000 examples. A model that saw far fewer may be sure and wrong.
FEW_EXAMPLES = 50_000


def training_notes(training: Mapping | None) -> list[str]:
    """Returns what limits the answers of a model, from `training` of its configuration.

    A published model of other authors has no such record, and so no notes.
    """
    training = training or {}
    data = training.get("data") or {}
    notes = []
    examples = None
    if training.get("steps") and training.get("rows a step"):
        examples = training["steps"] * training["rows a step"]
    elif training.get("epochs") and data.get("rows"):
        examples = round(training["epochs"] * data["rows"])
    if examples is not None and examples < FEW_EXAMPLES:
        notes.append(f"barely trained, on {examples:,} examples")
    if data.get("synthetic"):
        notes.append("trained on synthetic sounds alone")
    return notes


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Formats a table as lines. Cells are right-aligned, except those of the first column."""
    lines = [header, *rows]
    widths = [max(8, *(len(line[column]) for line in lines)) for column in range(len(header))]
    widths[0] = max(22, widths[0])
    texts = []
    for first, *cells in lines:
        padded = [f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:])]
        texts.append((f"{first:<{widths[0]}}" + "".join(padded)).rstrip())
    return texts


def format_share(value: float | None) -> str:
    """Formats an accuracy or a loss with three decimals."""
    return "-" if value is None else f"{value:.3f}"


def format_metrics(metrics: dict) -> str:
    """Formats the content of `metrics.json`."""
    lines = [f"note: the model was {note}" for note in metrics.get("training_notes", [])]
    if "micro" in metrics:
        lines += _closed_lines(metrics)
        lines += _other_protocol_lines(metrics)
        lines += contradiction_lines(metrics["contradictions"])
        if metrics["controls"]:
            lines += _control_lines(metrics)
    if metrics["text"]:
        lines += _text_lines(metrics["text"])
    not_run = dict(metrics.get("not_run", {}))
    for entry in metrics["text"].values():
        not_run |= entry.get("generated", {}).get("not_run", {})
    lines += [f"not run: {name} ({reason})" for name, reason in not_run.items()]
    lines += [f"warning: {warning}" for warning in metrics.get("warnings", ())]
    return "\n".join(lines)


def _closed_lines(metrics: dict) -> list[str]:
    protocol = PROTOCOL_NAMES[metrics["protocol"]]
    lines = [f"closed questions, by {protocol}; intervals over clips, for this training"]
    groups = {**metrics["question_type"], "all (micro)": metrics["micro"]}
    macro = metrics["macro"]
    mean = (MEAN, "", format_share(macro["accuracy"]), _format_interval(macro), "", "")
    lines += _group_table("question type", groups, [mean])
    for grouping in ("category", "truncation", "clips"):
        if grouping == "category" or len(metrics[grouping]) > 1:
            lines += _group_table(grouping, metrics[grouping])
    leaking_rows = metrics.get("training_clips", {}).get("clip in training")
    if leaking_rows:
        lines += _group_table("training", metrics["training_clips"])
        lines.append(f"warning: the clips of {leaking_rows['n']} rows occur in training")
    normalised = metrics["other_protocols"].get("likelihood_normalised", {})
    lengths = normalised.get("answer_words", {})
    lines += _group_table("answer words", metrics["answer_words"], normalised=lengths)
    if metrics["length_warning"]:
        lines.append(f"warning: {metrics['length_warning']}")
    return lines


def _group_table(
    title: str,
    groups: dict,
    more: Sequence[Sequence[str]] = (),
    normalised: dict | None = None,
) -> list[str]:
    header = (title, "n", "accuracy", "95 % interval", "balanced", "unparsed")
    if normalised:
        header += ("length-normalised",)
    rows = []
    for name, group in groups.items():
        interval = _format_interval(group)
        balanced = f"{group['balanced_accuracy']:.3f}" if "balanced_accuracy" in group else ""
        accuracy = format_share(group["accuracy"])
        row = (name, str(group["n"]), accuracy, interval, balanced, str(group["n_unparsed"]))
        if normalised:
            row += (format_share(normalised[name]["accuracy"]),)
        rows.append(row)
    return format_table(header, [*rows, *more])


def _format_interval(group: dict) -> str:
    return f"{group['ci95_low']:.3f} - {group['ci95_high']:.3f}"


def _other_protocol_lines(metrics: dict) -> Iterator[str]:
    for protocol, other in metrics["other_protocols"].items():
        accuracies = ", ".join(
            f"{name} {group['accuracy']:.3f}" for name, group in other["question_type"].items()
        )
        yield (
            f"by {PROTOCOL_NAMES[protocol]}: {accuracies}, mean {other['macro_accuracy']:.3f}, "
            f"{other['micro']['n_unparsed']} unparsed"
        )


def contradiction_lines(contradictions: dict, arm: str = "") -> Iterator[str]:
    """Yields a line for each question type: how often texts contradict themselves."""
    for name, entry in contradictions.items():
        title = f"{arm}, {name}" if arm else name
        yield (
            f"{title}: {100 * entry['contradictory']:.1f} % of {entry['n']} generated texts name "
            f"one option's letter and another's words; accuracy by letter "
            f"{entry['by_letter']:.3f}, by words {entry['by_words']:.3f}"
        )


def _control_lines(metrics: dict) -> list[str]:
    conditions = {"audio": metrics, **metrics["controls"]}
    rows = []
    for name in metrics["question_type"]:
        groups = [condition["question_type"].get(name, {}) for condition in conditions.values()]
        rows.append((name, *(format_share(group.get("accuracy")) for group in groups)))
    means = [format_share(condition["macro_accuracy"]) for condition in conditions.values()]
    lines = format_table(("under controls", *conditions), [*rows, (MEAN, *means)])
    relabelled = metrics["controls"].get("option_relabel", {})
    for name, entry in relabelled.get("consistency", {}).items():
        share = 100 * entry["same_option"]
        lines.append(
            f"{name}: the same option after relabelling in {share:.1f} % of {entry['n']} rows"
        )
    has_text_only = TEXT_ONLY_CONTROL in metrics["controls"]
    if metrics["audio_gain"] and not has_text_only:
        lines.append("no text-only model: the points below are not shown to come from the audio")
    for name, gain in metrics["audio_gain"].items():
        low, high = 100 * gain["ci95_low"], 100 * gain["ci95_high"]
        title = MEAN if name == "macro" else name
        lines.append(
            f"{title}: {100 * gain['difference']:+.1f} points above the strongest baseline, "
            f"{gain['best_control']} ({low:+.1f} to {high:+.1f})"
        )
    return lines


def _text_lines(text: dict) -> list[str]:
    rows = []
    for name, entry in text.items():
        generated = entry.get("generated", {})
        mean_words = f"{entry['mean_words']:.1f}" if "mean_words" in entry else "-"
        loss = format_share(entry["loss_per_answer_token"])
        scores = [format_share(generated.get(metric)) for metric in TEXT_METRICS]
        rows.append((name, str(entry["n"]), loss, mean_words, *scores))
    lines = format_table(("open questions", "n", "loss per token", "words", *TEXT_METRICS), rows)
    for name, entry in text.items():
        if entry["control_loss"]:
            losses = [f"{control} {loss:.3f}" for control, loss in entry["control_loss"].items()]
            lines.append(f"{name}: loss per token under {', '.join(losses)}")
    return lines
