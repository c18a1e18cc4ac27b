"""From what a model said to each row to the rows of `predictions.jsonl` and the numbers of `metrics.json`."""

import html
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ..data.answer_parsing import parse_answer
from ..data.reasonaqa import FIELDS, QUESTION_TYPES
from .answering import PROTOCOL_NAMES, most_likely_option
from .categories import categories
from .controls import CONTROLS, commonest_answers, shift_option_letters
from .metric import SCORED, ReasonAQAMetric
from .statistics import clip_bootstrap, interval
from .text_metrics import text_metrics

NO_AUDIO_CONTROLS = tuple(
    control for control in CONTROLS if control != "option_relabel"
)  # what an answer without listening scores
WORDS = (1, 3, 6, 12)


def answers(row: Mapping, said: Mapping, letters: Mapping[str, str] | None = None) -> dict:
    """The option that each protocol answers, `parsed`, and whether it is `correct`; of an open question the text alone.

    Args:
        said: of `answer_batch`. letters: of options that were moved, the old letter of each new one.
    """
    kind, found = row["question_type"], {}

    def add(name, parsed, **more):
        parsed = letters.get(parsed) if letters and parsed else parsed
        found[name] = {
            "parsed": parsed,
            "correct": parsed is not None and parsed == row["reference"],
            **more,
        }

    if "scores" in said and kind in SCORED:
        scores = {option: tuple(score) for option, score in said["scores"].items()}
        shown = {
            letters.get(option, option) if letters else option: score
            for option, score in scores.items()
        }
        add(
            "likelihood",
            most_likely_option(scores),
            scores={option: list(shown[option]) for option in sorted(shown)},
        )
        add("likelihood_normalised", most_likely_option(scores, normalised=True))
    if "text" in said and kind in SCORED:
        add("generate", parse_answer(kind, said["asked"], said["text"]), text=said["text"])
    elif "text" in said:
        found["generate"] = {"text": said["text"], "parsed": None, "correct": None}
    return found


def predicted_rows(
    rows: Iterable[Mapping],
    said: list[dict[str, dict]],
    seconds: Mapping[str, float],
    training: list[dict] | None = None,
) -> list[dict]:
    """The rows of `predictions.jsonl`.

    Args:
        said: of `answer_rows`. seconds: length of each clip's file. training: the training split, for the control `majority`.
    """
    made = []
    for row, conditions in zip(rows, said):
        of = {field: row[field] for field in FIELDS} | {"question_type": row["question_type"]}
        of["seconds"] = [round(seconds[clip], 3) for clip in row["audio"]]
        of["reference"] = parse_answer(row["question_type"], row["input"], row["answer"])
        heard, controls = conditions["audio"], {}
        of |= {
            "loss": heard["loss"],
            "n_tokens": heard["n_tokens"],
            "answers": answers(of, {**heard, "asked": row["input"]}),
        }
        for control, other in conditions.items():
            moved, letters = (
                shift_option_letters(dict(row)) or (row, None)
                if control == "option_relabel"
                else (row, None)
            )
            if control != "audio":
                controls[control] = {
                    "loss": other["loss"],
                    "answers": answers(of, {**other, "asked": moved["input"]}, letters),
                }
        made.append({**of, "controls": controls})
    about = categories(
        *(pa.chunked_array([[row[field] for row in made]]) for field in ("input", "filepath2"))
    )
    for row, category in zip(made, about):
        row["category"] = category
    if training is not None:
        for row, answer in zip(made, commonest_answers(training, made)):
            if row["question_type"] in SCORED:
                given = {
                    "parsed": answer,
                    "correct": answer is not None and answer == row["reference"],
                }
                row["controls"]["majority"] = {"answers": {name: given for name in row["answers"]}}
    return made


def groups(rows: list[dict], max_audio_seconds: float) -> dict[str, list[str]]:
    """What else rows are told apart by: each grouping's group of each row."""
    words = [len(row["answer"].split()) for row in rows]
    names = [
        "1 word",
        *(f"{low + 1}-{high} words" for low, high in pairwise(WORDS)),
        f"{WORDS[-1] + 1}+ words",
    ]
    return {
        "subtype": [row["subtype"] for row in rows],
        "category": [row["category"] for row in rows],
        "clips": ["2 clips" if row["filepath2"] else "1 clip" for row in rows],
        "answer_words": [names[int(np.searchsorted(WORDS, count))] for count in words],
        "truncation": [
            "truncated" if max(row["seconds"]) > max_audio_seconds else "full" for row in rows
        ],
    }


def closed_metrics(
    rows: list[dict], protocol: str, max_audio_seconds: float, control: str | None = None
) -> dict:
    """Metrics of closed questions by one protocol; of a control, of the rows that have it."""
    rows = [
        row
        for row in rows
        if row["question_type"] in SCORED and (control is None or control in row["controls"])
    ]
    if not rows:
        return {}
    given = [(row["controls"][control] if control else row)["answers"][protocol] for row in rows]
    return ReasonAQAMetric().compute(
        predictions=[answer["parsed"] or "" for answer in given],
        # a reference that cannot be parsed stays as its text, which no parsed answer equals
        references=[row["reference"] or row["answer"] for row in rows],
        question_type=[row["question_type"] for row in rows],
        groups=groups(rows, max_audio_seconds),
    )


def consistency(rows: list[dict], protocol: str) -> dict[str, dict]:
    """By question type: how often the same option is picked when all stand under other letters; no answer never is."""
    found = {}
    for kind in SCORED:
        pairs = [
            (
                row["answers"][protocol]["parsed"],
                row["controls"]["option_relabel"]["answers"][protocol]["parsed"],
            )
            for row in rows
            if row["question_type"] == kind and "option_relabel" in row["controls"]
        ]
        if pairs:
            found[kind] = {
                "n": len(pairs),
                "same_option": sum(a is not None and a == b for a, b in pairs) / len(pairs),
            }
    return found


def clips_of(row: Mapping) -> tuple[str, ...]:
    """File names of a row's clips, by which recordings are told apart: ClothoAQA's are Clotho's, in another folder."""
    paths = [row[field] for field in ("filepath1", "filepath2") if row[field]]
    return tuple(html.unescape(re.split(r"[/\\]", path)[-1]) for path in paths)


def gain_over_best_baseline(
    heard: np.ndarray,
    controls: Mapping[str, np.ndarray],
    kinds: list[str],
    kind: np.ndarray,
    clips: list[tuple[str, ...]],
) -> dict[str, dict]:
    """Accuracy minus the best control's, by question type and of their mean (`macro`), with its interval over clips.

    That is what a model gets from listening; rather too little, as the best control is picked on the same rows.

    Args:
        heard: (rows,), 1 where the answer is right. controls: the same of each control. kind: (rows,), numbers among `kinds`.
    """
    if not controls:
        return {}
    names, right = list(controls), np.stack([heard, *controls.values()], 1)
    means = np.array([right[kind == number].mean(0) for number in range(len(kinds))])
    drawn = clip_bootstrap(right[:, :1] - right[:, 1:], clips, kind)
    found = {}
    for name, mean, samples in (
        *zip(kinds, means, drawn.swapaxes(0, 1)),
        ("macro", means.mean(0), drawn.mean(1)),
    ):
        best = int(mean[1:].argmax())
        low, high = interval(samples[:, best])
        found[name] = {
            "accuracy": float(mean[0]),
            "best_control": names[best],
            "control_accuracy": float(mean[1 + best]),
            "difference": float(mean[0] - mean[1 + best]),
            "ci95_low": float(low),
            "ci95_high": float(high),
        }
    return found


def audio_gain(rows: list[dict], protocol: str) -> dict[str, dict]:
    """[`gain_over_best_baseline`] of the rows of one evaluation; of controls that do not have all of them, none."""
    rows = [row for row in rows if row["question_type"] in SCORED]
    kinds = [kind for kind in SCORED if any(row["question_type"] == kind for row in rows)]
    controls = {
        name: np.array(
            [row["controls"][name]["answers"][protocol]["correct"] for row in rows], float
        )
        for name in NO_AUDIO_CONTROLS
        if all(name in row["controls"] for row in rows)
    }
    heard = np.array([row["answers"][protocol]["correct"] for row in rows], float)
    kind = np.array([kinds.index(row["question_type"]) for row in rows])
    return gain_over_best_baseline(heard, controls, kinds, kind, [clips_of(row) for row in rows])


def option_probabilities(row: Mapping) -> dict[str, float]:
    """What a model gives each option of a closed question, summing to 1; nothing without the protocol `likelihood`."""
    scores = row["answers"].get("likelihood", {}).get("scores")
    if not scores:
        return {}
    logits = np.array([total for total, _ in scores.values()])
    weights = np.exp(logits - logits.max())
    return dict(zip(scores, (weights / weights.sum()).tolist()))


def open_metrics(rows: list[dict], java: bool = False) -> dict[str, dict]:
    """Of each open question type: loss per token of the right answer, under controls too; metrics of generated text."""
    found, texts = (
        {},
        text_metrics(rows, java) if any("generate" in row["answers"] for row in rows) else {},
    )
    for kind in (kind for kind in QUESTION_TYPES if kind not in SCORED):
        of = [row for row in rows if row["question_type"] == kind]
        if not of:
            continue
        tokens = sum(row["n_tokens"] for row in of)
        controls = [name for name in CONTROLS if "loss" in of[0]["controls"].get(name, {})]
        found[kind] = {
            "n": len(of),
            "loss_per_answer_token": sum(row["loss"] for row in of) / tokens,
            "control_loss": {
                name: sum(row["controls"][name]["loss"] for row in of) / tokens for name in controls
            },
        }
        if kind in texts:
            words = [len(row["answers"]["generate"]["text"].split()) for row in of]
            found[kind] |= {"mean_words": sum(words) / len(words), "generated": texts[kind]}
    return found


def score(rows: list[dict], protocol: str, max_audio_seconds: float, java: bool = False) -> dict:
    """The numbers of `metrics.json`: of closed questions by `protocol`, by the others, under controls; of open questions.

    Args:
        rows: of [`predicted_rows`]. java: METEOR, SPICE and SPIDEr of open questions too.
    """
    closed = [row for row in rows if row["question_type"] in SCORED]
    metrics = {
        "n": len(rows),
        "protocol": protocol,
        "protocol_name": PROTOCOL_NAMES[protocol],
        "max_audio_seconds": max_audio_seconds,
    }
    if closed:
        metrics |= closed_metrics(rows, protocol, max_audio_seconds)
        others = [name for name in closed[0]["answers"] if name != protocol]
        metrics["other_protocols"] = {
            name: closed_metrics(rows, name, max_audio_seconds) for name in others
        }
        metrics["controls"] = {}
        for control in CONTROLS:
            if any(control in row["controls"] for row in closed):
                metrics["controls"][control] = closed_metrics(
                    rows, protocol, max_audio_seconds, control
                )
        if "option_relabel" in metrics["controls"]:
            metrics["controls"]["option_relabel"]["consistency"] = consistency(closed, protocol)
        metrics["audio_gain"] = audio_gain(rows, protocol)
    return metrics | {"text": open_metrics(rows, java)}


def probabilities(scores: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Of options by their log-likelihoods, (sum, tokens) each: softmax of the sums."""
    most = max((total for total, _ in scores.values()), default=0.0)
    weights = {option: math.exp(total - most) for option, (total, _) in scores.items()}
    return {option: weight / sum(weights.values()) for option, weight in weights.items()}
