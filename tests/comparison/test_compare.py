"""comparison/compare.py: the numbers of a comparison and its conclusion, worked out by hand."""

import json

import pytest
from support.small_comparisons import make_seeds

from audiolm.comparison.compare import compare
from audiolm.comparison.conclusion import REASONAQA_CAVEAT, caveats, conclusion
from audiolm.comparison.tables import comparison_table


def group(correct, n, unparsed=0):
    return {
        "n": n,
        "accuracy": correct / n,
        "ci95_low": 0.25,
        "ci95_high": 0.75,
        "n_unparsed": unparsed,
    }


@pytest.fixture
def comparison():
    """Two arms of 8 mcq and 4 yes_no rows and a text type, with a majority baseline."""
    htsat = {
        "question_type": {"mcq": group(6, 8), "yes_no": group(2, 4)},
        "category": {"count": group(8, 12)},
        "micro": group(8, 12),
        "macro": {"n": 12, "accuracy": 0.625},
        "macro_accuracy": 0.625,
        "audio_gain": {},
        "no_audio": False,
        "text": {"caption": {"n": 3, "loss_per_answer_token": 1.25, "mean_words": 4.0}},
    }
    chance = {
        "question_type": {"mcq": group(2, 8), "yes_no": group(2, 4)},
        "category": {"count": group(4, 12)},
        "micro": group(4, 12),
        "macro": {"n": 12, "accuracy": 0.375},
        "macro_accuracy": 0.375,
    }
    text_only = {**chance, "text": {}, "audio_gain": {}, "no_audio": True}
    return {
        "arms": {"htsat": htsat, "text_only": text_only},
        "majority": chance,
        "statistics": {},
    }


def test_comparison_table_shows_accuracy_with_its_interval(comparison):
    header, htsat, text_only, majority = comparison_table(comparison).split("\n")
    assert header.split() == ["accuracy", "macro", "mcq", "yes_no", "loss,", "caption"]
    assert htsat.split() == ["htsat", "0.625", "0.750", "±0.250", "0.500", "±0.250", "1.250"]
    assert text_only.split() == ["text_only", "0.375", "0.250", "±0.250", "0.500", "±0.250", "-"]
    assert majority.split()[0] == "majority"
    assert len(header) == len(htsat) == len(majority)


def test_comparison_table_without_majority_has_no_row_for_it(comparison):
    assert "majority" not in comparison_table({**comparison, "majority": {}})


@pytest.fixture(scope="module")
def shown():
    """A comparison of an arm that is right more often in every seed."""
    better, worse = [1, 1, 1, 1, 1, 0] * 20, [1, 0, 0, 1, 0, 0] * 20
    mimi = make_seeds(better, better, better, model={"encoder_type": "mimi_full"})
    return compare({"htsat": make_seeds(worse, worse, worse), "mimi_full": mimi})


def test_compare_of_a_better_arm_gives_the_difference_of_macro_accuracies(shown):
    (pair,) = shown["statistics"]["primary"]
    # mcq is 1 and 1, yes_no is 1 and 0, entailment is 1/2 and 0.
    assert pair["difference"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert pair["by_seed"] == [pytest.approx(0.5)] * 3
    assert pair["ci95_low"] > 0.4
    assert pair["p_holm"] == pair["p"]
    assert pair["holm_low"] == pair["ci95_low"]
    assert pair["p"] < 0.001


def test_compare_of_a_better_arm_corrects_question_types_as_a_family(shown):
    by_type = {entry["question_type"]: entry for entry in shown["statistics"]["by_type"]}
    assert by_type["mcq"]["p"] == 1
    assert by_type["yes_no"]["mcnemar"]["only_second"] == 40
    assert by_type["yes_no"]["p_holm"] >= by_type["yes_no"]["p"]


@pytest.mark.parametrize(
    "text",
    [
        "mimi_full is more accurate than htsat by 50.0 points",
        "both corrected by Holm",
        "No text-only model was compared, so nothing is claimed about the use of the audio",
    ],
)
def test_conclusion_of_a_better_arm_states_it(shown, text):
    assert text in shown["conclusion"]


def test_caveats_name_published_encoders_only_if_they_ran(shown):
    arms = {"a": {"encoder_type": "mimi_full"}, "b": {"encoder_type": "htsat"}}
    assert "MS-CLAP" not in " ".join(shown["caveats"])
    assert "MS-CLAP" in " ".join(caveats(shown, arms))
    own = {arm: {**options, "encoder_name_or_path": "demo/x"} for arm, options in arms.items()}
    assert "MS-CLAP" not in " ".join(caveats(shown, own))
    assert "The weights of the encoders are those of demo/x." in caveats(shown, own)


def test_caveats_name_the_defects_of_reasonaqa_for_its_rows(shown):
    rows = [{"filepath1": "ClothoAQA/test/rain.wav"}]
    assert REASONAQA_CAVEAT in caveats(shown, rows=rows)
    assert REASONAQA_CAVEAT not in caveats(shown, rows=[{"filepath1": "mine/rain.wav"}])


@pytest.mark.parametrize(
    ("recordings", "note"),
    [
        ({}, "The sounds are synthetic."),
        ({"recordings": {"csv": "a.csv"}}, "The scenes are composed of recordings."),
    ],
)
def test_caveats_say_what_the_corpus_is_made_of(shown, recordings, note):
    corpus = {"rows": 80, "seed": 0, **recordings}
    assert note in caveats({**shown, "corpus": corpus}, {})


def test_conclusion_of_three_seeds_is_not_exploratory(shown):
    assert "exploratory" not in shown["conclusion"]


def test_conclusion_has_short_sentences(shown):
    sentences = shown["conclusion"].split(". ")
    assert len(sentences) <= 3
    assert max(len(sentence.split()) for sentence in sentences) <= 25


def test_conclusion_of_a_worse_arm_gives_the_interval_of_its_lead():
    better, worse = [1, 1, 1, 1, 1, 0] * 20, [1, 0, 0, 1, 0, 0] * 20
    comparison = compare({"a": make_seeds(better), "b": make_seeds(worse)})
    (pair,) = comparison["statistics"]["primary"]
    ends = f"{-100 * pair['holm_high']:.1f} to {-100 * pair['holm_low']:.1f}"
    assert f"a is more accurate than b by 50.0 points ({ends}, p" in comparison["conclusion"]


def test_conclusion_without_a_difference_does_not_claim_equality():
    first, second = [1, 0, 1, 0, 1, 0] * 5, [0, 1, 0, 1, 0, 1] * 5
    text = compare({"a": make_seeds(first), "b": make_seeds(second)})["conclusion"]
    assert "No difference in macro accuracy was shown between a and b" in text
    assert "minimum detectable effect" in text
    assert "With one seed, no claim about another training is possible" in text
    assert "equal" not in text


def test_conclusion_with_a_seed_of_the_other_sign_shows_no_difference():
    """The clips alone would show one."""
    mostly, rest = [1, 1, 1, 1, 1, 0] * 20, [0, 0, 0, 0, 0, 1] * 20
    first = make_seeds([0] * 120, [0] * 120, [1] * 120)
    comparison = compare({"a": first, "b": make_seeds(mostly, mostly, rest)})
    (pair,) = comparison["statistics"]["primary"]
    assert pair["difference"] > 4 * pair["clip_error"]
    assert min(pair["by_seed"]) < 0 < max(pair["by_seed"])
    assert "No difference in macro accuracy was shown" in comparison["conclusion"]


@pytest.fixture(scope="module")
def with_text_only():
    """A comparison of two arms, of which `b` is as accurate as a text-only arm."""
    better, worse = [1, 1, 1, 1, 0, 0] * 10, [1, 1, 0, 1, 0, 0] * 10
    text_only = make_seeds(worse, no_audio=True)
    runs = {"a": make_seeds(better), "text_only": text_only, "b": make_seeds(worse)}
    return compare(runs)


def test_compare_with_a_text_only_arm_uses_it_as_a_baseline(with_text_only):
    gain = with_text_only["arms"]["a"]["audio_gain"]["macro"]
    assert gain["best_control"] == "text_only"
    assert gain["difference"] == pytest.approx(0.5 / 3)
    assert with_text_only["arms"]["text_only"]["audio_gain"] == {}


def test_compare_with_a_text_only_arm_leaves_it_out_of_the_pairs(with_text_only):
    pairs = with_text_only["statistics"]["primary"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("a", "b")]


def test_conclusion_of_an_arm_without_audio_gain_says_so(with_text_only):
    text = with_text_only["conclusion"]
    assert "b is not shown to use the audio, unlike a" in text
    assert conclusion(with_text_only) == text


def test_conclusion_names_categories_in_which_an_arm_beats_every_baseline(with_text_only):
    comparison = json.loads(json.dumps(with_text_only))
    for arm, low in (("b", 0.8), ("text_only", 0.3)):
        cell = {"n": 9, "accuracy": low + 0.1, "ci95_low": low, "ci95_high": 1.0}
        comparison["arms"][arm]["category"] = {"sound event": cell}
    assert "(exploratory: yet they gain from it on sound event)" in conclusion(comparison)


def test_compare_with_ten_rows_of_a_clip_has_a_wider_interval():
    a, b = [1, 1, 1] * 40, ([1, 1, 1] * 4 + [0, 0, 0] * 4) * 5
    pairs = []
    for clips in (range(120), [i // 12 for i in range(120)]):
        runs = {"a": make_seeds(a, clips=clips), "b": make_seeds(b, clips=clips)}
        pairs += compare(runs)["statistics"]["primary"]
    apart, together = pairs
    widths = [pair["ci95_high"] - pair["ci95_low"] for pair in pairs]
    detectable = [pair["minimum_detectable_difference"] for pair in pairs]
    assert apart["difference"] == together["difference"]
    assert widths[1] > 2 * widths[0]
    assert detectable[1] > 2 * detectable[0]


def test_compare_of_seeds_that_scatter_has_a_wider_interval():
    """Both worlds have equal means. In one, a seed of `b` is better and another is worse."""
    a, b = [1, 1, 0, 0, 1, 0] * 20, [1, 1, 1, 1, 1, 0] * 20
    apart = ([1, 1, 1, 1, 1, 1] * 20, [1, 1, 1, 1, 1, 0] * 20, [1, 1, 1, 1, 0, 0] * 20)
    pairs = []
    for seeds in ((b, b, b), apart):
        (pair,) = compare({"a": make_seeds(a, a, a), "b": make_seeds(*seeds)})["statistics"][
            "primary"
        ]
        pairs.append(pair)
    assert pairs[0]["difference"] == pytest.approx(pairs[1]["difference"])
    assert pairs[0]["p"] < 0.05 < pairs[1]["p"]
    assert pairs[1]["training_error"] == pytest.approx((1 / 6) / 3**0.5)
    detectable = [pair["minimum_detectable_difference"] for pair in pairs]
    assert detectable[1] > 2 * detectable[0]


def test_audio_gain_has_the_scatter_of_the_text_only_trainings():
    better, worse = [1, 1, 1, 1, 1, 0] * 20, [1, 1, 0, 0, 1, 0] * 20
    gains = []
    for text_only in ((worse, worse, worse), (better, worse, [0] * 120)):
        runs = {
            "a": make_seeds(better, better, better),
            "text_only": make_seeds(*text_only, no_audio=True),
        }
        gains.append(compare(runs)["arms"]["a"]["audio_gain"]["macro"])
    assert gains[0]["ci95_low"] > 0 > gains[1]["ci95_low"]


def test_conclusion_of_many_pairs_corrects_interval_and_p_alike():
    rows = {"a": [1, 0, 0] * 40, "b": [1, 1, 0] * 40, "c": [1, 0, 1] * 20 + [1, 1, 0] * 20}
    comparison = compare({arm: make_seeds(right) for arm, right in rows.items()})
    for pair in comparison["statistics"]["primary"]:
        holds_zero = pair["holm_low"] <= 0 <= pair["holm_high"]
        assert holds_zero == (pair["p_holm"] >= 0.05)
        assert pair["holm_low"] <= pair["ci95_low"]


def test_conclusion_without_controls_names_them():
    runs = {"a": make_seeds([1, 1, 0] * 10), "b": make_seeds([1, 0, 1] * 10)}
    text = compare(runs)["conclusion"]
    assert "Not checked: majority, no_audio, noise, mismatched_audio, option_relabel." in text


def test_conclusion_with_majority_alone_claims_no_use_of_the_audio():
    """The text gives the answer away. The majority answer does not know that."""
    runs = {"a": make_seeds([1] * 60), "b": make_seeds([1] * 60)}
    for seeds in runs.values():
        for row in seeds[0].rows:
            majority = {"parsed": "b", "correct": False}
            row["controls"]["majority"] = {"answers": dict.fromkeys(row["answers"], majority)}
    comparison = compare(runs)
    assert comparison["arms"]["a"]["audio_gain"]["macro"]["ci95_low"] > 0.5
    assert "nothing is claimed about the use of the audio" in comparison["conclusion"]
    assert "no text-only model, so no audio gain" in comparison_table(comparison)


def test_compare_with_a_published_model_has_one_evaluation_of_it():
    rows = [1, 1, 1, 1, 1, 0] * 20
    mellow = make_seeds([1, 0, 0, 1, 0, 0] * 20)
    mellow[0].training["published"] = "soham97/mellow"
    del mellow[0].training["seed"]
    comparison = compare({"mellow": mellow, "a": make_seeds(rows, rows, [1] * 120)})
    (pair,) = comparison["statistics"]["primary"]
    assert comparison["seeds"] == [0, 1, 2]
    assert len(comparison["arms"]["mellow"]["macro_by_seed"]) == 1
    # Its one checkpoint adds no error, as there is no other training of it.
    assert pair["training_error"] == pytest.approx((1 / 6) / 3**0.5 / 3**0.5)


@pytest.mark.parametrize("digests", [["x"] * 3, ["x", "y", "z"]])
def test_one_text_only_model_beside_all_seeds_is_one_training(digests):
    rows = [1, 1, 1, 1, 1, 0] * 20
    seeds = make_seeds(rows, rows, [1] * 120)
    for run, digest in zip(seeds, digests):
        run.metrics["settings"]["question_only"] = {"weights_sha256": digest}
        for row in run.rows:
            answer = {"parsed": "b", "correct": row["question_type"] == "mcq"}
            row["controls"]["question_only"] = {"answers": dict.fromkeys(row["answers"], answer)}
    gain = compare({"a": seeds})["arms"]["a"]["audio_gain"]["macro"]
    width = gain["ci95_high"] - gain["ci95_low"]
    # One training is taken to scatter as the arm does, three that agree do not scatter.
    assert (width > 0.5) == (len(set(digests)) == 1)


def test_compare_of_clips_with_one_file_name_has_as_many_clips():
    runs = {"a": make_seeds([1, 1, 0] * 20), "b": make_seeds([1, 0, 1] * 20)}
    for seeds in runs.values():
        for number, row in enumerate(seeds[0].rows):
            row["filepath1"] = f"{number:04d}/audio.wav"
            row["audio_digests"] = [f"{number}"]
    assert compare(runs)["statistics"]["clips"] == 60
