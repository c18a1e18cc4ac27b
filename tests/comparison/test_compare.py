"""Evaluations beside each other: what may be compared, the numbers of a comparison and what is concluded, by hand."""

from pathlib import Path

import pytest
from support.builders import MCQ, YES_NO

from audiolm.comparison.compare import compare, conclusion
from audiolm.comparison.runs import Run, check_comparable, learning_curves
from audiolm.comparison.tables import comparison_table
from audiolm.evaluation.metric import wilson
from audiolm.evaluation.scores import predicted_rows, score
from audiolm.evaluation.tables import table_rows


def group(correct, n, unparsed=0):
    low, high = wilson(correct, n)
    return {
        "n": n,
        "accuracy": correct / n,
        "ci95_low": low,
        "ci95_high": high,
        "n_unparsed": unparsed,
    }


def hand_made():
    """Two arms of 8 mcq and 4 yes_no rows and a text type, with a majority baseline."""
    heard = {
        "question_type": {"mcq": group(6, 8), "yes_no": group(2, 4)},
        "category": {"count": group(8, 12)},
        "micro": group(8, 12),
        "macro_accuracy": 0.625,
        "audio_gain": {},
        "text": {"caption": {"n": 3, "loss_per_answer_token": 1.25, "mean_words": 4.0}},
    }
    chance = {
        "question_type": {"mcq": group(2, 8), "yes_no": group(2, 4)},
        "category": {"count": group(4, 12)},
        "micro": group(4, 12),
        "macro_accuracy": 0.375,
    }
    return {
        "arms": {"htsat": heard, "deaf": {**chance, "text": {}, "audio_gain": {}}},
        "majority": chance,
        "statistics": {},
    }


def test_table_by_hand():
    rows = {row["name"]: row for row in table_rows(hand_made())}
    assert list(rows) == ["mcq", "yes_no", "count", "all closed rows", "mean of types", "caption"]
    assert rows["mcq"]["n"] == 8 and rows["mcq"]["cells"]["htsat"]["accuracy"] == 0.75
    assert rows["caption"]["cells"] == {
        "htsat": {"n": 3, "loss": 1.25},
        "deaf": None,
        "majority": None,
    }
    lines = comparison_table(hand_made()).split("\n")
    assert lines[0].split() == ["n", "htsat", "deaf", "majority"]
    # Wilson's interval of 6 of 8 and 2 of 8
    expected = [
        "mcq",
        "8",
        "0.750",
        "(0.409-0.929)",
        "0.250",
        "(0.071-0.591)",
        "0.250",
        "(0.071-0.591)",
    ]
    assert next(line.split() for line in lines if line.startswith("  mcq")) == expected
    assert next(line.split() for line in lines if line.startswith("  caption")) == [
        "caption",
        "3",
        "1.250",
        "-",
        "-",
    ]
    assert len({len(line) for line in lines if line.startswith("  ")}) == 1
    assert comparison_table({**hand_made(), "majority": {}}).split("\n")[0].split() == [
        "n",
        "htsat",
        "deaf",
    ]


def test_learning_curves_of_a_log():
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


QUESTION = {**MCQ, "question_type": "mcq", "answer": "A) low"}
TRAINING = {"learning rate": 1e-4, "steps": 20000, "seed": 0, "data": {"sha256": "x", "rows": 5}}


def made_run(
    right,
    name="x",
    training=TRAINING,
    clips=None,
    encoder_type="htsat",
    no_audio=False,
    step=20000,
    **settings,
) -> Run:
    """An evaluation of one-clip questions of three types in turn, answered right or wrong as given."""
    hypothesis = "the hypothesis is definitely true or not? A) low B) high"
    kinds = (
        {"question_type": "mcq"},
        {"question_type": "yes_no", **YES_NO, "answer": "yes"},
        {"question_type": "entailment", "input": hypothesis, "subtype": "TE.json"},
    )
    rows = []
    for i in range(len(right)):
        clip_name = f"{i if clips is None else clips[i]}.wav"
        rows.append({**QUESTION, **kinds[i % 3], "filepath1": clip_name, "audio": [clip_name]})
    said = [
        {
            "audio": {
                "loss": 1.0,
                "n_tokens": 1,
                "scores": {
                    option: (-1.0 if (i == 0) == bool(hit) else -2.0, 1)
                    for i, option in enumerate(
                        ("yes", "no") if row["question_type"] == "yes_no" else ("a", "b")
                    )
                },
            }
        }
        for row, hit in zip(rows, right)
    ]
    made = predicted_rows(rows, said, {row["audio"][0]: 5.0 for row in rows})
    model = {
        "encoder_type": encoder_type,
        "no_audio": no_audio,
        "training": training,
        "weights_sha256": name,
        "step": step,
    }
    metrics = score(made, "likelihood", 10.0)
    return Run(
        Path(name),
        {
            **metrics,
            "settings": {"model": model, "rows_sha256": "r", "precision": "fp32", **settings},
        },
        made,
    )


def test_a_model_that_was_trained_elsewhere_stands_beside_others():
    """Mellow's checkpoint: nothing is known of its training, but it must be asked and scored as the others are."""
    ours = [made_run([1, 0, 1] * 4, training={**TRAINING, "seed": seed}) for seed in (0, 1)]
    mellow = made_run(
        [1, 1, 0] * 4,
        "m",
        training={"published": "soham97/mellow"},
        encoder_type="mellow",
        step=None,
    )
    assert mellow.published and not ours[0].published
    for found in ({"htsat": ours, "mellow": [mellow] * 2}, {"mellow": [mellow] * 2, "htsat": ours}):
        check_comparable(found)
        assert set(compare(found)["arms"]) == {"htsat", "mellow"}
    with pytest.raises(ValueError, match="precision"):
        other = made_run(
            [1, 0, 1] * 4, "m", training={"published": "x"}, encoder_type="mellow", precision="bf16"
        )
        check_comparable({"htsat": ours[:1], "mellow": [other]})
    asked = made_run([1, 0, 1] * 4, "other prompt")
    asked.metrics["settings"]["model"]["prompt_format"] = "mellow"
    with pytest.raises(ValueError, match=r"prompt_format \(audiolm and mellow\)"):
        check_comparable({"htsat": ours[:1], "mimi": [asked]})


def test_what_differs_in_more_than_the_arm_is_refused_and_named():
    one = made_run([1, 0, 1] * 4, "one")
    fine = made_run([1, 1, 1] * 4, "fine", encoder_type="mimi_full")
    check_comparable({"a": [one], "b": [fine]})
    check_comparable(
        {"a": [one], "b": [made_run([1] * 12, controls=["noise"], batch_size=3)]}
    )  # no answer depends on these
    wrongs = {
        r"training.learning rate \(0.0001 and 0.001\)": made_run(
            [1] * 12, training={**TRAINING, "learning rate": 1e-3}
        ),
        r"training.steps \(20000 and 5\)": made_run([1] * 12, training={**TRAINING, "steps": 5}),
        r"training.data.sha256 \(x and y\)": made_run(
            [1] * 12, training={**TRAINING, "data": {"sha256": "y", "rows": 5}}
        ),
        r"precision \(fp32 and bf16\)": made_run([1] * 12, precision="bf16"),
        r"step \(20000 and 1000\)": made_run([1] * 12, step=1000),
        "answers to different rows": made_run([1] * 13),
        "the same seeds in the same order": made_run([1] * 12, training={**TRAINING, "seed": 3}),
    }
    for message, wrong in wrongs.items():
        with pytest.raises(ValueError, match=message):
            check_comparable({"a": [one], "b": [wrong]})
    other = made_run([1] * 12)
    other.metrics["protocol"] = "generate"
    with pytest.raises(ValueError, match=r"protocol \(likelihood and generate\)"):
        check_comparable({"a": [one], "b": [other]})
    with pytest.raises(ValueError, match="the seed 0 is there twice"):
        check_comparable({"a": [one, one], "b": [fine, fine]})
    faster = made_run([1] * 12, training={**TRAINING, "learning rate": 1e-3})
    check_comparable({"a": [one], "b": [faster]}, may_differ=("learning rate",))
    second = made_run([1] * 12, training={**TRAINING, "seed": 1, "shuffle options": "by seed 1"})
    first = made_run([1] * 12, training={**TRAINING, "seed": 0, "shuffle options": "by seed 0"})
    check_comparable({"a": [first, second], "b": [first, second]})


def seeds(*outcomes, **more) -> list[Run]:
    return [
        made_run(right, f"s{i}", training={**TRAINING, "seed": i}, **more)
        for i, right in enumerate(outcomes)
    ]


def test_a_real_difference_is_found_and_said():
    better, worse = [1, 1, 1, 1, 1, 0] * 20, [1, 0, 0, 1, 0, 0] * 20
    found = compare(
        {
            "htsat": seeds(worse, worse, worse),
            "mimi_full": seeds(better, better, better, encoder_type="mimi_full"),
        }
    )
    (pair,) = found["statistics"]["primary"]
    # mcq 1 and 1, yes_no 1 and 0, entailment 1/2 and 0
    assert (
        pair["difference"] == pytest.approx((0 + 1 + 0.5) / 3)
        and pair["by_seed"] == [pytest.approx(0.5)] * 3
    )
    assert pair["ci95_low"] > 0.4 and pair["p_holm"] == pair["p"] < 0.001
    by_type = {of["question_type"]: of for of in found["statistics"]["by_type"]}
    assert by_type["mcq"]["p"] == 1 and by_type["yes_no"]["mcnemar"]["only_second"] == 40
    assert by_type["yes_no"]["p_holm"] >= by_type["yes_no"]["p"]
    assert (
        "mimi_full answers better than htsat by 50.0 points of macro accuracy"
        in found["conclusion"]
    )
    assert "in every seed" in found["conclusion"] and "was trained on speech" in found["conclusion"]
    assert "exploratory" not in found["conclusion"] and found["conclusion"].count(". ") <= 1


def test_no_difference_is_not_called_equality():
    one, other = [1, 0, 1, 0, 1, 0] * 5, [0, 1, 0, 1, 0, 1] * 5
    found = compare({"a": seeds(one), "b": seeds(other)})
    assert (
        "no difference was shown between a and b" in found["conclusion"]
        and "would have been found" in found["conclusion"]
    )
    assert "with one seed, fewer than the protocol's 3, this is exploratory" in found["conclusion"]
    assert "equal" not in found["conclusion"]


def test_a_lead_that_a_seed_takes_back_is_no_difference():
    mostly, rest = [1, 1, 1, 1, 1, 0] * 20, [0, 0, 0, 0, 0, 1] * 20
    found = compare({"a": seeds([0] * 120, [0] * 120, [1] * 120), "b": seeds(mostly, mostly, rest)})
    (pair,) = found["statistics"]["primary"]
    assert pair["p_holm"] < 0.05 and min(pair["by_seed"]) < 0 < max(pair["by_seed"])
    assert "but not in every seed: no difference was shown" in found["conclusion"]


def test_a_model_without_audio_is_a_control_of_those_with_it():
    heard, deaf = [1, 1, 1, 1, 0, 0] * 10, [1, 1, 0, 1, 0, 0] * 10
    found = compare({"a": seeds(heard), "text_only": seeds(deaf, no_audio=True), "b": seeds(deaf)})
    above = found["arms"]["a"]["audio_gain"]["macro"]
    assert above["best_control"] == "text_only" and above["difference"] == pytest.approx(0.5 / 3)
    assert found["arms"]["text_only"]["audio_gain"] == {}
    assert [(pair["a"], pair["b"]) for pair in found["statistics"]["primary"]] == [
        ("a", "b")
    ]  # no arm of the family
    assert "b is not shown to listen: text_only does as well" in found["conclusion"]
    assert conclusion(found) == found["conclusion"]


def test_rows_of_one_clip_are_drawn_together():
    """The same outcomes with 10 rows a clip leave a wider interval than with one."""
    a, b = [1, 1, 1] * 40, ([1, 1, 1] * 4 + [0, 0, 0] * 4) * 5
    apart, together = (
        compare({"a": seeds(a, clips=clips), "b": seeds(b, clips=clips)})["statistics"]["primary"][
            0
        ]
        for clips in (range(120), [i // 12 for i in range(120)])
    )
    widths = [pair["ci95_high"] - pair["ci95_low"] for pair in (apart, together)]
    assert apart["difference"] == together["difference"] and widths[1] > 2 * widths[0]
    assert together["minimum_detectable_difference"] > 2 * apart["minimum_detectable_difference"]


def test_questions_about_two_clips_do_not_hide_a_difference():
    """Pairs that chain all clips to one another leave no set that could be flipped; each row goes with its first clip."""
    better, worse = [1, 1, 1] * 40, [1, 0, 1] * 40
    runs = {"a": seeds(worse), "b": seeds(better)}
    for run in (run for of in runs.values() for run in of):
        for i, row in enumerate(run.rows):
            row["filepath2"] = f"{(i + 1) % 120}.wav"
    (pair,) = compare(runs)["statistics"]["primary"]
    assert pair["p"] < 0.001 and pair["difference"] == pytest.approx(1 / 3)
