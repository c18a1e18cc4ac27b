"""What a table says about a barely trained model, or one that knows synthetic sounds alone."""

import json

import pytest
from support.evaluation import RAIN, make_output, make_predictions

from audiolm.demo import FOLDER, MODEL_NAMES
from audiolm.evaluation.scores import score
from audiolm.evaluation.tables import format_metrics, training_notes

FULL = {"steps": 20_000, "rows a step": 16, "data": {"rows": 968_071}}


@pytest.mark.parametrize(
    ("training", "notes"),
    [
        (None, []),
        ({"published": "soham97/mellow"}, []),
        (FULL, []),
        ({**FULL, "steps": 2}, ["barely trained, on 32 examples"]),
        (
            {"steps": None, "epochs": 2.0, "rows a step": 16, "data": {"rows": 100}},
            ["barely trained, on 200 examples"],
        ),
        ({**FULL, "data": {"synthetic": True}}, ["trained on synthetic sounds alone"]),
    ],
)
def test_training_notes_by_hand(training, notes):
    assert training_notes(training) == notes


def test_demo_models_are_barely_trained_on_synthetic_sounds():
    for folder in (FOLDER / name for name in MODEL_NAMES):
        training = json.loads((folder / "config.json").read_text())["training"]
        notes = ["barely trained, on 9,600 examples", "trained on synthetic sounds alone"]
        assert training_notes(training) == notes


def test_table_of_a_barely_trained_model_says_so_first():
    rows = make_predictions((RAIN, {"audio": make_output("", a=-1, b=-2)}))
    metrics = score(rows, "likelihood", 10.0) | {"training_notes": ["barely trained"]}
    assert format_metrics(metrics).startswith("note: the model was barely trained\n")
