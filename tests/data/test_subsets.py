"""Parts of a corpus: which rows stay, by figures counted by hand and by those of the real corpus."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from support import full_size
from support.builders import arguments

from audiolm.data import load_reasonaqa, select_rows
from audiolm.data.subsets import mix_rows
from audiolm.training.train import main as train


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "train.json"
    full_size.main(str(file), "0.01")
    return load_reasonaqa({"train": file}, "/nowhere")["train"]


def test_by_subtype_and_question_type(rows):
    chosen = select_rows(rows, ["Clotho-MCQ", "CLE.json"])
    assert Counter(chosen["subtype"]) == {"Clotho-MCQ.json": 955, "CLE.json": 115}
    assert chosen["input"] == [
        row["input"] for row in rows if row["subtype"] in ("Clotho-MCQ.json", "CLE.json")
    ]
    chosen = select_rows(rows, question_types=["yes_no", "caption"])
    assert set(chosen["subtype"]) == {"ClothoAQA.json", "Clotho.json", "AudioCaps.json"}
    again = select_rows(chosen, ["Clotho"])  # of a selection
    assert set(again["subtype"]) == {"Clotho.json"} and len(again) == 191
    assert select_rows(rows) is rows


@pytest.mark.parametrize("limit", [1, 3])
def test_so_many_rows_of_a_clip(rows, limit):
    chosen = select_rows(rows, max_rows_per_clip=limit, seed=0)
    before, after = Counter(rows["filepath1"]), Counter(chosen["filepath1"])
    assert (
        after == {clip: min(count, limit) for clip, count in before.items()}
        and max(before.values()) > limit
    )
    others = select_rows(rows, max_rows_per_clip=limit, seed=1)
    assert (
        chosen.to_list()
        == select_rows(rows, max_rows_per_clip=limit, seed=0).to_list()
        != others.to_list()
    )
    # in their order, and not only the first of a clip
    number = {
        tuple(row[k] for k in ("filepath1", "filepath2", "input", "answer")): i
        for i, row in enumerate(rows)
    }
    places = [
        number[tuple(row[k] for k in ("filepath1", "filepath2", "input", "answer"))]
        for row in chosen
    ]
    firsts = {row["filepath1"]: i for i, row in reversed(list(enumerate(rows)))}
    assert places == sorted(places) and sum(firsts[rows[i]["filepath1"]] != i for i in places) > 100


@pytest.mark.parametrize(
    ("mix", "counts"),
    [
        # 9,680 rows: 677 captions, 140 yes or no, ...; 115 of entailment limit the first, 140 the second, 677 the third
        (["yes_no=0.5", "entailment=0.5"], {"yes_no": 115, "entailment": 115}),
        (["yes_no=0.25,mcq=0.75"], {"yes_no": 140, "mcq": 420}),
        (["caption=1"], {"caption": 677}),
        (["CLE=0.1", "Clotho-MCQ.json=0.9"], {"entailment": 106, "mcq": 955}),
    ],
)
def test_shares(mix, counts, rows):
    chosen = mix_rows(rows, mix, seed=0)
    assert Counter(chosen["question_type"]) == counts
    kept = [tuple(row.values()) for row in chosen.remove_columns("audio")]
    assert len(set(kept)) == len(kept)  # none twice
    assert chosen.to_list() == mix_rows(rows, mix, seed=0).to_list()
    if len(mix) > 1 and "CLE" not in mix[0]:
        assert chosen.to_list() != mix_rows(rows, mix, seed=1).to_list()


def test_what_is_not_named_shares_the_rest(rows):
    before, after = (
        Counter(rows["question_type"]),
        Counter(mix_rows(rows, ["caption=0.035"], seed=3)["question_type"]),
    )
    total = sum(after.values())
    assert (
        abs(after["caption"] / total - 0.035) < 1e-3
        and after["detail"] == before["detail"]
        and after["mcq"] == before["mcq"]
    )
    after = Counter(mix_rows(rows, ["caption=0.5"], seed=3)["question_type"])
    assert after["caption"] == before["caption"] == sum(after.values()) - after["caption"]
    assert (
        abs(after["mcq"] / after["detail"] - before["mcq"] / before["detail"]) < 0.25
    )  # 3 deviations
    assert mix_rows(rows, ["caption=0"])["question_type"].count("caption") == 0


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        (["captions=0.1"], "--mix captions: there are ACD-1, .*yes_no"),
        (["caption"], "--mix caption: PART=SHARE is wanted"),
        (["caption=x"], "--mix caption=x: PART=SHARE"),
        (["caption=1.2"], "a share between 0 and 1"),
        (["caption=-1"], "a share between 0 and 1"),
        (["caption=nan"], "a share between 0 and 1"),
        (["caption=0.6,mcq=0.6"], "sum to 1.2, more than 1"),
        (["mcq=0.1", "Clotho-MCQ=0.1"], "its rows are in mcq too"),
        (["caption=0,mcq=0,detail=0,difference=0,yes_no=0,entailment=0"], "no other row is there"),
    ],
)
def test_shares_that_cannot_be(mix, said, rows):
    with pytest.raises(ValueError, match=said):
        mix_rows(rows, mix)


def test_names_that_are_not_there(rows):
    with pytest.raises(ValueError, match=r"--subtypes Klotho: there are ACD-1, .*Clotho-MCQ"):
        select_rows(rows, ["Klotho", "CLE"])
    with pytest.raises(
        ValueError, match="--question_types mcqs: there are caption, detail, difference, entailment"
    ):
        select_rows(rows, question_types=["mcqs"])
    with pytest.raises(ValueError, match="no row has the subtypes and question types"):
        select_rows(rows, ["CLE"], ["mcq"])


def test_clotho_alone():
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "clotho.yaml").read_text())
    assert sum(full_size.ROWS[f"{name}.json"][0] for name in config["subtypes"]) == 292_768
    assert not any(name.startswith("A") for name in config["subtypes"])


def test_a_run_trains_on_what_was_chosen(corpus, tokenizer):
    words = arguments(
        corpus, "mimi_semantic", tokenizer, "--max_steps", "1", "--question_types", "mcq"
    )
    for i in range(8, 16):
        (corpus / f"{i}.wav").unlink()  # of the other questions: nobody asks for them
    train(words)
    card = (corpus / "out" / "README.md").read_text()
    assert "8 rows about 8 clips" in card and "| question types | mcq |" in card
    with pytest.raises(SystemExit, match=r"run_train.py: --subtypes CLE: there are T-MCQ, TAQA"):
        train([*words, "--subtypes", "CLE"])
