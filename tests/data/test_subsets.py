"""Subsets and mixtures of a corpus with the real shares of subtypes, against counts by hand."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from support import full_size
from support.builders import arguments

from audiolm.data.reasonaqa import load_reasonaqa
from audiolm.data.subsets import mix_rows, select_rows
from audiolm.run_train import main as train
from audiolm.runtime import UserError


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "train.json"
    full_size.main(str(file), "0.01")
    return load_reasonaqa({"train": file}, "/nowhere")["train"]


def test_select_rows_subtypes_keep_order(rows):
    selected = select_rows(rows, ["Clotho-MCQ", "CLE.json"])
    assert Counter(selected["subtype"]) == {"Clotho-MCQ.json": 955, "CLE.json": 115}
    subtypes = ("Clotho-MCQ.json", "CLE.json")
    assert selected["input"] == [row["input"] for row in rows if row["subtype"] in subtypes]


def test_select_rows_question_types_select_their_subtypes(rows):
    selected = select_rows(rows, question_types=["yes_no", "caption"])
    assert set(selected["subtype"]) == {"ClothoAQA.json", "Clotho.json", "AudioCaps.json"}


def test_select_rows_of_a_selection(rows):
    selected = select_rows(rows, question_types=["yes_no", "caption"])
    selected_again = select_rows(selected, ["Clotho"])
    assert set(selected_again["subtype"]) == {"Clotho.json"}
    assert len(selected_again) == 191


def test_select_rows_without_conditions_returns_the_same_rows(rows):
    assert select_rows(rows) is rows


@pytest.mark.parametrize("limit", [1, 3])
def test_select_rows_limit_per_clip_is_reached(limit, rows):
    before = Counter(rows["filepath1"])
    after = Counter(select_rows(rows, max_rows_per_clip=limit, seed=0)["filepath1"])
    assert after == {clip: min(count, limit) for clip, count in before.items()}
    assert max(before.values()) > limit


@pytest.mark.parametrize("limit", [1, 3])
def test_select_rows_limit_per_clip_depends_on_the_seed(limit, rows):
    selected = select_rows(rows, max_rows_per_clip=limit, seed=0).to_list()
    assert selected == select_rows(rows, max_rows_per_clip=limit, seed=0).to_list()
    assert selected != select_rows(rows, max_rows_per_clip=limit, seed=1).to_list()


@pytest.mark.parametrize("limit", [1, 3])
def test_select_rows_limit_per_clip_keeps_order_and_draws_any_row(limit, rows):
    keys = [tuple(row[k] for k in ("filepath1", "filepath2", "input", "answer")) for row in rows]
    number_by_key = {key: number for number, key in enumerate(keys)}
    numbers = [
        number_by_key[tuple(row[k] for k in ("filepath1", "filepath2", "input", "answer"))]
        for row in select_rows(rows, max_rows_per_clip=limit, seed=0)
    ]
    assert numbers == sorted(numbers)
    clips = rows["filepath1"][:]
    first_rows = {clips.index(clip) for clip in set(clips)}
    assert len(set(numbers) - first_rows) > 100


# 9,680 rows, of them 677 captions, 140 yes or no and 115 entailments. Entailments limit the first
# mixture, yes or no the second, captions the third.
MIXES = [
    (["yes_no=0.5", "entailment=0.5"], {"yes_no": 115, "entailment": 115}),
    (["yes_no=0.25,mcq=0.75"], {"yes_no": 140, "mcq": 420}),
    (["caption=1"], {"caption": 677}),
    (["CLE=0.1", "Clotho-MCQ.json=0.9"], {"entailment": 106, "mcq": 955}),
]


@pytest.mark.parametrize(("mix", "counts"), MIXES)
def test_mix_rows_has_the_shares(mix, counts, rows):
    assert Counter(mix_rows(rows, mix, seed=0)["question_type"]) == counts


@pytest.mark.parametrize(("mix", "counts"), MIXES)
def test_mix_rows_repeats_no_row(mix, counts, rows):
    mixed = mix_rows(rows, mix, seed=0)
    assert len({tuple(row.values()) for row in mixed.remove_columns("audio")}) == len(mixed)


@pytest.mark.parametrize(("mix", "counts"), MIXES)
def test_mix_rows_same_seed_gives_the_same_rows(mix, counts, rows):
    assert mix_rows(rows, mix, seed=0).to_list() == mix_rows(rows, mix, seed=0).to_list()


def test_mix_rows_other_seed_gives_other_rows(rows):
    mix, _ = MIXES[0]
    assert mix_rows(rows, mix, seed=0).to_list() != mix_rows(rows, mix, seed=1).to_list()


def test_mix_rows_small_share_keeps_all_other_rows(rows):
    before = Counter(rows["question_type"])
    after = Counter(mix_rows(rows, ["caption=0.035"], seed=3)["question_type"])
    assert after["caption"] / sum(after.values()) == pytest.approx(0.035, abs=1e-3)
    assert after["detail"] == before["detail"]
    assert after["mcq"] == before["mcq"]


def test_mix_rows_large_share_thins_out_the_rest_evenly(rows):
    before = Counter(rows["question_type"])
    after = Counter(mix_rows(rows, ["caption=0.5"], seed=3)["question_type"])
    assert after["caption"] == before["caption"]
    assert after["caption"] == sum(after.values()) - after["caption"]
    # 0.25 are three standard deviations.
    ratio = before["mcq"] / before["detail"]
    assert after["mcq"] / after["detail"] == pytest.approx(ratio, abs=0.25)


def test_mix_rows_share_of_zero_drops_the_part(rows):
    assert "caption" not in mix_rows(rows, ["caption=0"])["question_type"]


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (["captions=0.1"], "--mix captions: choose from ACD-1, .*yes_no"),
        (["caption"], "--mix caption: expected PART=SHARE"),
        (["caption=x"], "--mix caption=x: expected PART=SHARE"),
        (["caption=1.2"], "expected a share between 0 and 1"),
        (["caption=-1"], "expected a share between 0 and 1"),
        (["caption=nan"], "expected a share between 0 and 1"),
        (["caption=0.6,mcq=0.6"], "sum to 1.2, more than 1"),
        (["mcq=0.1", "Clotho-MCQ=0.1"], "--mix Clotho-MCQ: mcq has rows in common with it"),
        (
            ["caption=0,mcq=0,detail=0,difference=0,yes_no=0,entailment=0"],
            "there are no other rows",
        ),
    ],
)
def test_mix_rows_impossible_shares_are_refused(mix, message, rows):
    with pytest.raises(UserError, match=message):
        mix_rows(rows, mix)


@pytest.mark.parametrize(
    ("subtypes", "question_types", "message"),
    [
        (["Klotho", "CLE"], None, r"--subtypes Klotho: choose from ACD-1, .*Clotho-MCQ"),
        (
            None,
            ["mcqs"],
            "--question_types mcqs: choose from caption, detail, difference, entailment",
        ),
        (["CLE"], ["mcq"], "no row has these subtypes and question types"),
    ],
)
def test_select_rows_unknown_names_are_refused(subtypes, question_types, message, rows):
    with pytest.raises(UserError, match=message):
        select_rows(rows, subtypes, question_types)


def test_clotho_config_selects_the_rows_about_clotho():
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "clotho.yaml").read_text())
    assert sum(full_size.ROWS[f"{name}.json"][0] for name in config["subtypes"]) == 292_768
    assert not any(name.startswith("A") for name in config["subtypes"])


def test_training_uses_the_selected_rows_only(corpus, tokenizer):
    options = ["--max_steps", "1", "--question_types", "mcq"]
    argv = arguments(corpus, "mimi_semantic", tokenizer, *options)
    # The clips of the other questions are not needed.
    for i in range(8, 16):
        (corpus / f"{i}.wav").unlink()
    train(argv)
    card = (corpus / "out" / "README.md").read_text()
    assert "8 rows about 8 clips" in card
    assert "| question types | mcq |" in card


def test_training_unknown_subtype_is_one_line(corpus, tokenizer):
    argv = arguments(corpus, "mimi_semantic", tokenizer, "--max_steps", "1", "--subtypes", "CLE")
    message = r"run_train.py: --subtypes CLE: choose from T-MCQ, TAQA"
    with pytest.raises(SystemExit, match=message):
        train(argv)
