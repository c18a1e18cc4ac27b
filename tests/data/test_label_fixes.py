"""ReasonAQA's defects, mended: the answer follows its option, labels follow AudioEntailment, and nothing else changes."""

import json
from collections import Counter

import pytest
from support.builders import SHARED, arguments, needs_shared

from audiolm.data import load_reasonaqa
from audiolm.data.answer_parsing import options, parse_answer
from audiolm.data.label_fixes import RowFixes, entailment_labels, fix_cle_label, shuffle_options
from audiolm.training.train import main as train

FOUR = "a) It is definitely true b) It is definitely false c) It is plausible d) I cannot determine"


def cle(
    hypothesis: str,
    answer: str,
    clip: str = "ClothoV21/development/Mom&amp;Dad.wav",
    subtype: str = "CLE.json",
) -> dict:
    question = f'Based on the audio, what can be said about the hypothesis - "{hypothesis}"? {FOUR}'
    return {
        "filepath1": clip,
        "input": question,
        "answer": answer,
        "subtype": subtype,
        "question_type": "entailment",
    }


def mcq(question: str, answer: str) -> dict:
    return {
        "filepath1": "x.wav",
        "input": question,
        "answer": answer,
        "subtype": "C-MCQ.json",
        "question_type": "mcq",
    }


@pytest.fixture
def csv_file(tmp_path):
    file = tmp_path / "clotho_entailment_development.csv"
    file.write_text(
        "Prompt,Dataset,Audio file,Caption,Entailment,Neutral,Contradiction,Full response\n"
        ',ClothoV2,Mom&Dad.wav,"[\'x\']","A door, old, closes.",Two people come  home.,"She says ""no"".",\n'
    )
    return str(file)


def test_labels_follow_the_csv(csv_file):
    labels = entailment_labels([csv_file])
    wanted = {
        "A door, old, closes.": "a) It is definitely true",
        "Two people come home.": "c) It is plausible",
        'She says "no".': "b) It is definitely false",
    }
    for hypothesis, answer in wanted.items():
        for stated in (
            "b) It is definitely false",
            "c) It is plausible",
            "a) It is definitely true",
        ):
            row = cle(hypothesis, stated)
            assert fix_cle_label(row, labels) == {**row, "answer": answer}
    for other in (
        cle("Nobody knows this.", "b) x"),
        cle("Two people come home.", "b) x", "ClothoV21/development/other.wav"),
        cle("Two people come home.", "b) It is definitely false", subtype="ACE.json"),
    ):
        assert fix_cle_label(other, labels) == other


def test_without_a_csv_two_labels_change_places():
    swapped = {
        "a) It is definitely true": "a) It is definitely true",
        "b) It is definitely false": "c) It is plausible",
        "c) It is plausible": "b) It is definitely false",
        "d) I cannot determine": "d) I cannot determine",
    }
    for before, after in swapped.items():
        row = cle("x", before)
        assert fix_cle_label(row, None) == {**row, "answer": after}
        assert fix_cle_label(fix_cle_label(row, None), None) == row


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "no csv of AudioEntailment"),
        (b"\xff\xfe\x00", "not a readable csv"),
        ("", "no csv of AudioEntailment"),
        ("Audio file,Entailment,Neutral,Contradiction\n", "no label is in there"),
    ],
)
def test_a_csv_that_is_none(content, said, tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"x.csv: {said}"):
        entailment_labels([file])


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is it? A) rain B) a dog C) wind D) a bell", "B) a dog"),
        ("what is it? a) rain b) a dog c) wind", "c) wind"),
        ("Which? (a) rain (b) a dog", "(b) a dog"),
        ("What? A) rain B) a dog C) wind", "B"),
        ("What? A) rain B) dog", "b."),
        ("What? A) rain B) a dog C) wind", "a dog"),
    ],
)
def test_the_answer_follows_its_option(question, answer):
    meant = options(question)[parse_answer("mcq", question, answer)]
    orders = set()
    for seed in range(20):
        row = shuffle_options(mcq(question, answer), seed)
        assert sorted(options(row["input"]).values()) == sorted(options(question).values())
        assert options(row["input"])[parse_answer("mcq", row["input"], row["answer"])] == meant
        assert sorted(row["input"]) == sorted(question) and row == shuffle_options(
            mcq(question, answer), seed
        )
        orders.add(tuple(options(row["input"]).values()))
    assert len(orders) > 1


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What? A) rain B) wind C) both A and B D) neither", "A) rain"),
        ("What? A) rain B) all of the above", "A) rain"),
        ("What is it? A bell", "A bell"),
        ("What? A) rain B) wind", "E) thunder"),
        ("What? A) rain B) wind", "it is loud"),
    ],
)
def test_what_cannot_be_moved_stays(question, answer):
    assert all(
        shuffle_options(mcq(question, answer), seed) == mcq(question, answer) for seed in range(5)
    )


@needs_shared
def test_letters_are_even_and_other_rows_stay():
    rows = load_reasonaqa({"train": SHARED / "train.json"}, SHARED / "audio")["train"]
    leaning = rows.filter(
        lambda row: (
            row["question_type"] != "mcq" or parse_answer("mcq", row["input"], row["answer"]) == "b"
        )
    )
    mended = RowFixes(None, 0).rows(leaning)
    letters = Counter()
    for before, after in zip(leaning, mended):
        if before["question_type"] == "mcq":
            letters[parse_answer("mcq", after["input"], after["answer"])] += 1
            assert {**before, "input": 0, "answer": 0} == {**after, "input": 0, "answer": 0}
        else:
            assert before == after
    assert sum(letters.values()) == 238 and all(
        40 < letters[letter] < 80 for letter in "abcd"
    )  # 59.5 each, by 3 deviations
    assert (
        leaning["question_type"] == mended["question_type"] and RowFixes().rows(leaning) is leaning
    )


def test_a_run_keeps_a_record(corpus, tokenizer, csv_file):
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        "--max_steps",
        "1",
        "--save_steps",
        "1",
        "--shuffle_options",
        "true",
    )
    train([*words, "--fix_cle_labels", csv_file, "--mix", "mcq=0.25", "--eval_strategy", "no"])
    kept = {
        "mix": ["mcq=0.25"],
        "fix_cle_labels": ["clotho_entailment_development.csv"],
        "shuffle_options": "by seed 0",
    }
    record = json.loads((corpus / "out" / "checkpoint-1" / "training_data.json").read_text())
    assert record["changes"] == kept and record["data"]["rows"] == 11 and record["stream"] is None
    for folder in (corpus / "out", corpus / "out" / "checkpoint-1"):
        assert json.loads((folder / "config.json").read_text())["data_changes"] == kept
    card = (corpus / "out" / "README.md").read_text()
    assert (
        "11 rows about 11 clips" in card
        and "| mix | mcq=0.25 |" in card
        and "| shuffle options | by seed 0 |" in card
    )
    assert "| fix cle labels | clotho_entailment_development.csv |" in card
    train([*words[:-2], "--fix_cle_labels", "--eval_strategy", "no"])
    assert json.loads((corpus / "out" / "config.json").read_text())["data_changes"] == {
        "fix_cle_labels": "swapped"
    }
    lora = [
        "--freeze_lm",
        "true",
        "--lora_r",
        "2",
        "--eval_strategy",
        "no",
        "--output_dir",
        str(corpus / "lora"),
    ]
    train([*words, *lora])  # its checkpoints hold no configuration
    record = json.loads((corpus / "lora" / "checkpoint-1" / "training_data.json").read_text())
    assert record["changes"] == {"shuffle_options": "by seed 0"}
    with pytest.raises(SystemExit, match=r"run_train.py: gone.csv: not a readable csv"):
        train([*words, "--fix_cle_labels", "gone.csv"])
