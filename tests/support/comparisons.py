"""Evaluations of eight questions about four tones, and comparisons of them, without a model."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm.comparison import compare as compare_module
from audiolm.comparison.compare import compare
from audiolm.comparison.report.build import write_report
from audiolm.comparison.runs import Run
from audiolm.evaluation.scores import score

MCQ = "Which tone? A) low B) high C) none"
YES_NO = "Is it low? Answer only using yes or no."
# question type, category, question, correct option, clips
QUESTIONS = [
    ("mcq", "count", MCQ, "b", (0,)),
    ("mcq", "sound event", MCQ, "a", (1,)),
    ("mcq", "sound event", MCQ, "b", (2,)),
    ("mcq", "count", MCQ, "a", (0,)),
    ("yes_no", "count", YES_NO, "no", (1,)),
    ("yes_no", "sound event", YES_NO, "yes", (2,)),
    ("difference", "comparison", "explain the difference", None, (0, 1)),
    ("caption", "other", "caption first audio", None, (3,)),
]
# Of each arm and seed, 1 where the question with this index is answered correctly.
VERDICTS = {
    "htsat": ("111010", "111110"),
    "mimi_full": ("110011", "010011"),
    "text_only": ("100010", "100010"),
}
LEARNING_CURVES = {
    "train_loss": [[10, 2.0], [20, 1.0]],
    "eval_loss": {"mcq": [[10, 1.5], [20, 1.25]]},
}
CLIP_SECONDS = (0.6, 0.8, 1.0, 1.6)
OPTIONS = {"mcq": ["a", "b", "c"], "yes_no": ["no", "yes"]}
OPTION_TEXTS = {"a": "A) low", "b": "B) high"}
# The relabelling control was run on fewer examples than the arm.
NUM_RELABELLED = 3


def write_tones(folder: Path) -> None:
    """Writes tones of 300, 600, 1200 and 2400 Hz."""
    (folder / "audio").mkdir()
    for number, seconds in enumerate(CLIP_SECONDS):
        time = np.arange(int(24000 * seconds)) / 24000
        samples = 0.3 * np.sin(2 * np.pi * 300 * 2**number * time)
        soundfile.write(folder / "audio" / f"{number}.flac", samples, 24000)


def build_answers(question_type: str, correct_option: str, is_correct: bool, share: float) -> dict:
    """Answers of a model that gives one option this probability and another the rest."""
    options = OPTIONS[question_type]
    picked = correct_option
    if not is_correct:
        picked = next(option for option in options if option != correct_option)
    second = next(option for option in options if option != picked)
    probabilities = {**dict.fromkeys(options, 1e-9), picked: share, second: 1 - share}
    scores = {option: [math.log(value), 2] for option, value in probabilities.items()}
    answer = {"parsed": picked, "correct": is_correct}
    return {"likelihood": {**answer, "scores": scores}, "likelihood_normalised": answer}


def build_row(number: int, arm: str, seed: int, no_audio: bool) -> dict:
    question_type, category, question, correct_option, clips = QUESTIONS[number]
    row = {
        "taskname": "",
        "caption1": "",
        "caption2": "",
        "input": question,
        "subtype": f"T-{question_type}",
        "question_type": question_type,
        "filepath1": f"audio/{clips[0]}.flac",
        "filepath2": f"audio/{clips[1]}.flac" if len(clips) > 1 else "",
        "seconds": [CLIP_SECONDS[clip] for clip in clips],
        "category": category,
        "reference": correct_option,
        "n_tokens": 2,
        "loss": 3.0,
        "answer": OPTION_TEXTS.get(correct_option, correct_option or "a tone"),
        "controls": {},
    }
    if correct_option is None:
        row["answers"] = {"generate": {"text": f"a tone of {arm}", "parsed": None, "correct": None}}
        row["controls"] = {} if no_audio else {"noise": {"loss": 4.0, "answers": {}}}
        return row
    is_correct = VERDICTS[arm][seed][number] == "1"
    row["answers"] = {
        **build_answers(question_type, correct_option, is_correct, 0.75),
        "generate": {"text": "B", "parsed": None, "correct": False},
    }
    first_option = OPTIONS[question_type][0]
    majority = {"parsed": first_option, "correct": correct_option == first_option}
    row["controls"]["majority"] = {"answers": dict.fromkeys(row["answers"], majority)}
    noise = build_answers(question_type, correct_option, number == 1, 0.6)
    row["controls"]["noise"] = {"loss": 4.0, "answers": noise}
    if not no_audio and number < NUM_RELABELLED:
        relabelled = build_answers(question_type, correct_option, number < 2, 0.6)
        row["controls"]["option_relabel"] = {"loss": 4.0, "answers": relabelled}
    return row


def build_rows(arm: str, seed: int = 0, no_audio: bool = False) -> list[dict]:
    return [build_row(number, arm, seed, no_audio) for number in range(len(QUESTIONS))]


def build_run(
    folder: Path, arm: str, seed: int = 0, no_audio: bool = False, rows: list[dict] | None = None
) -> Run:
    rows = build_rows(arm, seed, no_audio) if rows is None else rows
    metrics = score([row for row in rows if row["reference"]], "likelihood", 1.0)
    generated = {"bleu_4": 0.111, "rouge_l": 0.222, "cider_d": 0.333, "spice": None, "by": {}}
    metrics["text"] = {
        row["question_type"]: {
            "n": 1,
            "loss_per_answer_token": 1.5,
            "generated": generated,
            "control_loss": {} if no_audio else {"noise": 2.0},
        }
        for row in rows
        if not row["reference"]
    }
    model = {"encoder_type": arm, "no_audio": no_audio, "training": {"seed": seed}}
    metrics["settings"] = {"model": model}
    return Run(folder / arm / f"seed-{seed}" / "evaluation", metrics, rows)


def compare_runs(runs: dict[str, list[Run]], **more) -> dict:
    """A comparison with few resamples and what run_compare.py adds to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "RESAMPLES", 200)
        comparison = compare(runs)
    command = {"command": "run_compare.py --config x.yaml", "note": "", "corpus": None}
    return {**command, "train": {}, "eval": {}, **comparison, **more}


def render_report(folder: Path, comparison: dict, runs: dict[str, list[Run]], audio_dir) -> str:
    write_report(folder / "report.html", comparison, runs, audio_dir)
    return (folder / "report.html").read_text(encoding="utf-8")
