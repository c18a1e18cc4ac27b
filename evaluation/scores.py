"""Turns a model's answers into the rows of predictions.jsonl and the numbers of metrics.json."""

import html
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise

import numpy as np
from scipy.special import softmax

from ..data.answer_parsing import parse_answer
from ..data.audio_check import ClipFacts
from ..data.reasonaqa import CLOSED_QUESTION_TYPES, FIELDS
from .answering import PROTOCOL_NAMES, most_likely_option
from .audio_gain import NO_AUDIO_CONTROLS, gain_over_best_baseline
from .categories import category
from .controls import CONTROLS, shift_option_letters
from .metric import ReasonAQAMetric
from .named_options import contradictions, unparsed_warnings
from .text_metrics import TEXT_TYPES, text_metrics

# Upper bounds of the groups of answers by their number of words.
WORD_LIMITS = (1, 3, 6, 12)
# Two ways to score options should not differ by more, in groups of at least so many rows.
MAX_LENGTH_DIFFERENCE = 0.1
MIN_LENGTH_ROWS = 20


def parse_answers(
    row: Mapping, output: Mapping, question: str, old_letters: Mapping[str, str] | None = None
) -> dict:
    """Returns the option that each protocol chose (`parsed`) and whether it is `correct`.

    An open question has its text only. `old_letters` has the original letter of each option, if the
    options were relabelled.
    """
    if row["question_type"] not in CLOSED_QUESTION_TYPES:
        if "text" not in output:
            return {}
        return {"generate": {"text": output["text"], "parsed": None, "correct": None}}

    def judge(option: str | None) -> dict:
        parsed = old_letters.get(option) if old_letters and option else option
        return {"parsed": parsed, "correct": parsed is not None and parsed == row["reference"]}

    answers = {}
    if "scores" in output:
        scores = output["scores"]
        letters = old_letters or {}
        original = {letters.get(option, option): list(score) for option, score in scores.items()}
        answers["likelihood"] = judge(most_likely_option(scores))
        answers["likelihood"]["scores"] = dict(sorted(original.items()))
        answers["likelihood_normalised"] = judge(most_likely_option(scores, normalised=True))
    if "text" in output:
        answers["generate"] = judge(parse_answer(row["question_type"], question, output["text"]))
        answers["generate"]["text"] = output["text"]
    return answers


def predicted_rows(
    rows: Iterable[Mapping],
    outputs: list[dict[str, dict]],
    facts: Mapping[str, ClipFacts],
    commonest: Mapping[tuple[str, str | None], str] | None = None,
) -> list[dict]:
    """Builds the rows of `predictions.jsonl` from the outputs of `answer_rows`.

    `facts` are those of each clip. With the result of [`commonest_answers`] the control `majority`
    is added. A subtype that training lacks gets the answer of its question type.
    """
    predictions = [_predicted_row(row, output, facts) for row, output in zip(rows, outputs)]
    if commonest is not None:
        for row in predictions:
            kind = row["question_type"]
            if kind in CLOSED_QUESTION_TYPES:
                answer = commonest.get((kind, row["subtype"]), commonest.get((kind, None)))
                is_correct = answer is not None and answer == row["reference"]
                majority = {"parsed": answer, "correct": is_correct}
                row["controls"]["majority"] = {"answers": dict.fromkeys(row["answers"], majority)}
    return predictions


def _predicted_row(row: Mapping, outputs: dict[str, dict], facts: Mapping[str, ClipFacts]) -> dict:
    prediction = {name: row[name] for name in (*FIELDS, "question_type")}
    prediction["category"] = category(row)
    prediction["seconds"] = [round(facts[clip].seconds, 3) for clip in row["audio"]]
    prediction["audio_digests"] = [facts[clip].digest for clip in row["audio"]]
    prediction["reference"] = parse_answer(row["question_type"], row["input"], row["answer"])
    audio = outputs["audio"]
    prediction["loss"] = audio["loss"]
    prediction["n_tokens"] = audio["n_tokens"]
    prediction["answers"] = parse_answers(prediction, audio, row["input"])
    prediction["controls"] = {}
    for control, output in outputs.items():
        if control == "audio":
            continue
        question, old_letters = row["input"], None
        if control == "option_relabel":
            shifted = shift_option_letters(dict(row))
            if shifted:
                question, old_letters = shifted[0]["input"], shifted[1]
        prediction["controls"][control] = {
            "loss": output["loss"],
            "answers": parse_answers(prediction, output, question, old_letters),
        }
    return prediction


def clip_paths(row: Mapping) -> list[str]:
    """Returns the paths of a row's clips, written with slashes and without HTML entities."""
    paths = [row[name] for name in ("filepath1", "filepath2") if row[name]]
    return [html.unescape(path.replace("\\", "/")) for path in paths]


def mark_training_clips(rows: list[dict], training_clips: Collection[str]) -> None:
    """Says of each predicted row whether one of its clips occurs in training.

    Args:
        rows: Rows of `predictions.jsonl`.
        training_clips: Paths and digests of the clips of training.
    """
    for row in rows:
        names = (*clip_paths(row), *row["audio_digests"])
        row["in_training"] = any(name in training_clips for name in names)


def recording_names(row: Mapping) -> tuple[str, ...]:
    """Returns the digests of a row's clips, or the full paths in predictions without digests."""
    return tuple(row.get("audio_digests") or clip_paths(row))


def softmax_scores(scores: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Returns the probability of each option: the softmax of the log-likelihoods."""
    if not scores:
        return {}
    return dict(zip(scores, softmax([total for total, _ in scores.values()]).tolist()))


def option_probabilities(row: Mapping) -> dict[str, float]:
    """Returns [`softmax_scores`] of a predicted row. Empty without the protocol `likelihood`."""
    return softmax_scores(row["answers"].get("likelihood", {}).get("scores") or {})


def groups_of_rows(rows: list[dict], max_audio_seconds: float) -> dict[str, list[str]]:
    """Returns the group of each row, by grouping."""
    bounds = [f"{low + 1}-{high} words" for low, high in pairwise(WORD_LIMITS)]
    word_groups = ["1 word", *bounds, f"{WORD_LIMITS[-1] + 1}+ words"]
    counts = [len(row["answer"].split()) for row in rows]
    is_truncated = [max(row["seconds"]) > max_audio_seconds for row in rows]
    groups = {
        "subtype": [row["subtype"] for row in rows],
        "category": [row["category"] for row in rows],
        "clips": ["2 clips" if row["filepath2"] else "1 clip" for row in rows],
        "answer_words": [word_groups[int(np.searchsorted(WORD_LIMITS, n))] for n in counts],
        "truncation": ["truncated" if truncated else "full" for truncated in is_truncated],
    }
    if all("in_training" in row for row in rows):
        names = {True: "clip in training", False: "new clip"}
        groups["training_clips"] = [names[row["in_training"]] for row in rows]
    return groups


def length_warning(metrics: Mapping) -> str | None:
    """Returns where the sum and the mean of an option's log-likelihoods disagree, or None.

    The sum favours options with few tokens. A weakly trained model may know the answer and still
    score far below chance where right answers are long.
    """
    normalised = metrics["other_protocols"].get("likelihood_normalised")
    if metrics["protocol"] != "likelihood" or not normalised:
        return None
    accuracies = {"macro accuracy": (metrics["macro_accuracy"], normalised["macro_accuracy"])}
    for name, group in metrics["answer_words"].items():
        if group["n"] >= MIN_LENGTH_ROWS:
            other = normalised["answer_words"][name]["accuracy"]
            accuracies[f"answers of {name}"] = (group["accuracy"], other)
    differing = [
        f"{name} {100 * by_sum:.1f} and {100 * by_mean:.1f} %"
        for name, (by_sum, by_mean) in accuracies.items()
        if abs(by_sum - by_mean) > MAX_LENGTH_DIFFERENCE
    ]
    if not differing:
        return None
    return (
        "the sum of an option's log-likelihoods, which decides, and the length-normalised score "
        f"differ by more than {100 * MAX_LENGTH_DIFFERENCE:.0f} points: {', '.join(differing)}"
    )


def find_answer(row: Mapping, protocol: str, control: str | None = None) -> dict | None:
    """Returns a row's answer with audio or under a control, or None if that was not run."""
    condition = row["controls"].get(control, {}) if control else row
    return condition.get("answers", {}).get(protocol)


def closed_metrics(
    rows: list[dict], protocol: str, max_audio_seconds: float, control: str | None = None
) -> dict:
    """Returns the metrics of closed questions by one protocol.

    Those of a control are of the rows that have an answer under it.
    """
    answers = [find_answer(row, protocol, control) for row in rows]
    rows = [row for row, answer in zip(rows, answers) if answer is not None]
    if not rows:
        return {}
    metrics = ReasonAQAMetric().compute(
        predictions=[answer["parsed"] or "" for answer in answers if answer is not None],
        # A reference that cannot be parsed stays as its text, which no parsed answer equals.
        references=[row["reference"] or row["answer"] for row in rows],
        question_type=[row["question_type"] for row in rows],
        groups=groups_of_rows(rows, max_audio_seconds),
        clips=[recording_names(row) for row in rows],
    )
    return metrics or {}


def relabel_consistency(rows: list[dict], protocol: str) -> dict[str, dict]:
    """Returns how often the same option is chosen after relabelling, by question type.

    An unparsed answer counts as another option.
    """
    is_same = defaultdict(list)
    for row in rows:
        relabelled = find_answer(row, protocol, "option_relabel")
        if relabelled is not None:
            option = row["answers"][protocol]["parsed"]
            is_same[row["question_type"]].append(
                option is not None and option == relabelled["parsed"]
            )
    return {
        name: {"n": len(same), "same_option": sum(same) / len(same)}
        for name, same in is_same.items()
    }


def audio_gain(rows: list[dict], protocol: str) -> dict[str, dict]:
    """Returns [`gain_over_best_baseline`] of one evaluation.

    The intervals hold for this trained model and other clips, not for another training. Controls
    without an answer to every closed question are left out.
    """
    rows = [row for row in rows if row["question_type"] in CLOSED_QUESTION_TYPES]
    present = {row["question_type"] for row in rows}
    question_types = [name for name in CLOSED_QUESTION_TYPES if name in present]
    correct = np.array([[row["answers"][protocol]["correct"] for row in rows]], float)
    baselines = {}
    for name in NO_AUDIO_CONTROLS:
        answers = [find_answer(row, protocol, name) for row in rows]
        outcomes = [answer["correct"] for answer in answers if answer is not None]
        if len(outcomes) == len(rows):
            baselines[name] = np.array([outcomes], float)
    type_index = np.array([question_types.index(row["question_type"]) for row in rows])
    clips = [recording_names(row) for row in rows]
    return gain_over_best_baseline(correct, baselines, question_types, type_index, clips)


def open_metrics(rows: list[dict]) -> dict[str, dict]:
    """Returns the loss per answer token and the text metrics of each open question type."""
    is_generated = any("generate" in row["answers"] for row in rows)
    texts = text_metrics(rows) if is_generated else {}
    metrics = {}
    for question_type in TEXT_TYPES:
        selected = [row for row in rows if row["question_type"] == question_type]
        if not selected:
            continue
        num_tokens = sum(row["n_tokens"] for row in selected)
        control_loss = {
            name: sum(row["controls"][name]["loss"] for row in selected) / num_tokens
            for name in CONTROLS
            if "loss" in selected[0]["controls"].get(name, {})
        }
        entry = {
            "n": len(selected),
            "loss_per_answer_token": sum(row["loss"] for row in selected) / num_tokens,
            "control_loss": control_loss,
        }
        if question_type in texts:
            counts = [len(row["answers"]["generate"]["text"].split()) for row in selected]
            entry["mean_words"] = sum(counts) / len(counts)
            entry["generated"] = texts[question_type]
        metrics[question_type] = entry
    return metrics


def score(rows: list[dict], protocol: str, max_audio_seconds: float) -> dict:
    """Returns the numbers of `metrics.json`.

    Closed questions are scored by `protocol`. The others are under `other_protocols`.
    """
    closed = [row for row in rows if row["question_type"] in CLOSED_QUESTION_TYPES]
    metrics: dict = {
        "n": len(rows),
        "protocol": protocol,
        "protocol_name": PROTOCOL_NAMES[protocol],
        "max_audio_seconds": max_audio_seconds,
        "warnings": unparsed_warnings(closed),
    }
    if closed:
        metrics |= closed_metrics(closed, protocol, max_audio_seconds)
        metrics["other_protocols"] = {
            name: closed_metrics(closed, name, max_audio_seconds)
            for name in closed[0]["answers"]
            if name != protocol
        }
        metrics["length_warning"] = length_warning(metrics)
        controls = {
            name: closed_metrics(closed, protocol, max_audio_seconds, name) for name in CONTROLS
        }
        metrics["controls"] = {name: values for name, values in controls.items() if values}
        if "option_relabel" in metrics["controls"]:
            consistency = relabel_consistency(closed, protocol)
            metrics["controls"]["option_relabel"]["consistency"] = consistency
        metrics["audio_gain"] = audio_gain(closed, protocol)
        metrics["contradictions"] = contradictions(closed)
    return metrics | {"text": open_metrics(rows)}
