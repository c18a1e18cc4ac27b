"""Small evaluations: a corpus of two tones, outputs of a model, and the rows made of them."""

import json
from pathlib import Path

import soundfile
from support.builders import EMPTY, clip

from audiolm.data.audio_check import ClipFacts
from audiolm.evaluation.controls import commonest_answers
from audiolm.evaluation.scores import predicted_rows

MCQ_QUESTION = "What is it? A) rain B) heavy rain C) a dog barking D) wind"
RAIN = {"question_type": "mcq", "input": MCQ_QUESTION, "answer": "A) rain", "subtype": "X-MCQ"}
CAPTION = {
    "question_type": "caption",
    "input": "caption first audio",
    "answer": "It rains on a roof",
    "subtype": "X",
}


def make_tone_corpus(folder: Path, rows: list[dict]) -> Path:
    """Writes a clip per row: row i is about a low tone if i is even, about a high one if it is odd.

    All clips have one length, which a text-only model knows too. Each is a recording of its own.
    """
    for i, row in enumerate(rows):
        row["filepath1"] = f"{i}.wav"
        soundfile.write(folder / f"{i}.wav", clip(0.4, seed=i % 2 * 9) * (1 - i / 1000), 24000)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def make_output(text: str, **log_likelihoods: float) -> dict:
    """Returns an output of `answer_batch`."""
    scores = {option: (total, 2) for option, total in log_likelihoods.items()}
    return {"loss": 1.0, "n_tokens": 2, "text": text, "scores": scores}


def make_predictions(
    *answered: tuple[dict, dict[str, dict]], seconds: float = 5.0, training_rows=None
) -> list[dict]:
    """Returns predicted rows of pairs: a row, and its outputs by condition."""
    rows = [
        {**EMPTY, "filepath1": f"{i}.wav", "audio": [f"{i}.wav"], **row}
        for i, (row, _) in enumerate(answered)
    ]
    outputs = [by_condition for _, by_condition in answered]
    facts = {row["audio"][0]: ClipFacts(None, seconds, 0.5, row["audio"][0]) for row in rows}
    commonest = None if training_rows is None else commonest_answers(training_rows)
    return predicted_rows(rows, outputs, facts, commonest)


def read_jsonl(path: Path) -> list[dict]:
    """Reads the rows of a predictions.jsonl."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
