"""comparison/runs.py: what is read from folders, and which evaluations are comparable."""

import pytest
from support.small_comparisons import TRAINING, make_run, make_seeds

from audiolm.comparison.compare import compare
from audiolm.comparison.runs import check_comparable, learning_curves
from audiolm.runtime import UserError

OUTCOMES = [1, 0, 1] * 4
MELLOW = {"encoder_type": "mellow", "training": {"published": "soham97/mellow"}, "step": None}


def test_learning_curves_of_a_log_by_question_type():
    log = [
        {"step": 5, "loss": 2.0},
        {"step": 5, "eval_mcq_token_loss": 1.5, "eval_mcq_loss": 9.0},
        {"step": 10, "loss": 1.0},
        {"step": 10, "eval_mcq_token_loss": 1.0},
        {"step": 10, "train_loss": 1.5},
    ]
    assert learning_curves(log) == {
        "train_loss": [[5, 2.0], [10, 1.0]],
        "eval_loss": {"mcq": [[5, 1.5], [10, 1.0]]},
    }


@pytest.mark.parametrize("order", [("htsat", "mellow"), ("mellow", "htsat")])
def test_check_comparable_with_a_published_model_accepts_unknown_training(order):
    """How Mellow was trained is unknown, but it must be evaluated as the others are."""
    mellow = make_run([1, 1, 0] * 4, "m", model=MELLOW)
    runs = {"htsat": make_seeds(OUTCOMES, OUTCOMES), "mellow": [mellow]}
    runs = {arm: runs[arm] for arm in order}
    assert mellow.is_published
    assert not runs["htsat"][0].is_published
    check_comparable(runs)
    assert set(compare(runs)["arms"]) == {"htsat", "mellow"}


def test_check_comparable_with_a_repeated_published_model_is_an_error():
    mellow = make_run(OUTCOMES, "m", model=MELLOW)
    with pytest.raises(UserError, match="mellow: a published model has one evaluation, not 2"):
        check_comparable({"htsat": make_seeds(OUTCOMES), "mellow": [mellow] * 2})


def test_check_comparable_with_a_published_model_refuses_other_precision():
    mellow = make_run(OUTCOMES, "m", model=MELLOW, precision="bf16")
    with pytest.raises(UserError, match="precision"):
        check_comparable({"htsat": make_seeds(OUTCOMES), "mellow": [mellow]})


def test_check_comparable_with_another_encoder_accepts():
    other = make_run([1, 1, 1] * 4, "other", model={"encoder_type": "mimi_full"})
    check_comparable({"a": [make_run(OUTCOMES)], "b": [other]})


def test_check_comparable_ignores_settings_on_which_no_answer_depends():
    other = make_run([1] * 12, controls=["noise"], batch_size=3)
    check_comparable({"a": [make_run(OUTCOMES)], "b": [other]})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            make_run([1] * 12, model={"training": {**TRAINING, "learning rate": 1e-3}}),
            r"training.learning rate \(0.0001 and 0.001\)",
        ),
        (
            make_run([1] * 12, model={"training": {**TRAINING, "steps": 5}}),
            r"training.steps \(20000 and 5\)",
        ),
        (
            make_run([1] * 12, model={"training": {**TRAINING, "data": {"sha256": "y"}}}),
            r"training.data.sha256 \(x and y\)",
        ),
        (make_run([1] * 12, precision="bf16"), r"precision \(fp32 and bf16\)"),
        (make_run([1] * 12, model={"step": 1000}), r"step \(20000 and 1000\)"),
        (
            make_run([1] * 12, model={"prompt_format": "mellow"}),
            r"prompt_format \(None and mellow\)",
        ),
        (make_run([1] * 13), "answer different examples"),
        (
            make_run([1] * 12, model={"training": {**TRAINING, "seed": 3}}),
            "the same seeds in the same order",
        ),
    ],
)
def test_check_comparable_names_what_else_differs(other, message):
    with pytest.raises(UserError, match=message):
        check_comparable({"a": [make_run(OUTCOMES)], "b": [other]})


def test_check_comparable_with_another_protocol_refuses():
    other = make_run([1] * 12)
    other.metrics["protocol"] = "generate"
    with pytest.raises(UserError, match=r"protocol \(likelihood and generate\)"):
        check_comparable({"a": [make_run(OUTCOMES)], "b": [other]})


def test_check_comparable_with_one_seed_twice_names_it():
    training = [{**TRAINING, "seed": seed} for seed in (0, 1, 1)]
    runs = [make_run(OUTCOMES, model={"training": facts}) for facts in training]
    with pytest.raises(UserError, match="seed 1 occurs twice"):
        check_comparable({"a": runs, "b": runs})


def test_check_comparable_of_seeds_ignores_what_a_seed_changes():
    runs = []
    for seed in (0, 1):
        training = {**TRAINING, "seed": seed, "shuffle options": f"by seed {seed}"}
        runs.append(make_run([1] * 12, model={"training": training}))
    check_comparable({"a": runs, "b": runs})


def test_check_comparable_of_seeds_refuses_another_arm():
    runs = make_seeds(OUTCOMES, OUTCOMES)
    runs[1].metrics["settings"]["model"]["encoder_type"] = "dac"
    with pytest.raises(UserError, match=r"encoder_type \(htsat and dac\)"):
        check_comparable({"a": runs, "b": make_seeds(OUTCOMES, OUTCOMES)})
