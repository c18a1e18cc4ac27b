"""Label fixes: answers follow their options, labels follow AudioEntailment, the rest stays."""

import json
from collections import Counter

import pytest
from support.builders import SHARED, arguments, needs_shared

from audiolm.data.answer_parsing import option_texts, parse_answer
from audiolm.data.label_fixes import RowFixes, entailment_labels, fix_cle_label, shuffle_options
from audiolm.data.reasonaqa import load_reasonaqa
from audiolm.run_train import main as train
from audiolm.runtime import UserError

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
        ',ClothoV2,Mom&Dad.wav,"[\'x\']","A door, old, closes.",Two people come  home.,'
        '"She says ""no"".",\n'
    )
    return str(file)


HYPOTHESES = {
    "A door, old, closes.": "a) It is definitely true",
    "Two people come home.": "c) It is plausible",
    'She says "no".': "b) It is definitely false",
}


@pytest.mark.parametrize(
    "answer", ["a) It is definitely true", "b) It is definitely false", "c) It is plausible"]
)
@pytest.mark.parametrize(("hypothesis", "correct"), HYPOTHESES.items())
def test_fix_cle_label_follows_the_csv(hypothesis, correct, answer, csv_file):
    row = cle(hypothesis, answer)
    assert fix_cle_label(row, entailment_labels([csv_file])) == {**row, "answer": correct}


@pytest.mark.parametrize(
    "row",
    [
        cle("Nobody knows this.", "b) x"),
        cle("Two people come home.", "b) x", "ClothoV21/development/other.wav"),
        cle("Two people come home.", "b) It is definitely false", subtype="ACE.json"),
    ],
)
def test_fix_cle_label_unknown_row_does_not_change(row, csv_file):
    assert fix_cle_label(row, entailment_labels([csv_file])) == row


SWAPS = [
    ("a) It is definitely true", "a) It is definitely true"),
    ("b) It is definitely false", "c) It is plausible"),
    ("c) It is plausible", "b) It is definitely false"),
    ("d) I cannot determine", "d) I cannot determine"),
]


@pytest.mark.parametrize(("before", "after"), SWAPS)
def test_fix_cle_label_without_labels_swaps_two(before, after):
    row = cle("x", before)
    assert fix_cle_label(row, None) == {**row, "answer": after}


@pytest.mark.parametrize(("before", "after"), SWAPS)
def test_fix_cle_label_twice_without_labels_changes_nothing(before, after):
    row = cle("x", before)
    assert fix_cle_label(fix_cle_label(row, None), None) == row


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "has the columns a, b: expected Audio file, Entailment"),
        (b"\xff\xfe\x00", "not a readable table"),
        (b"", "not a readable table"),
        (b"Audio file,Entailment,Neutral,Contradiction\n", "no labels found"),
    ],
)
def test_entailment_labels_other_file_is_refused(content, message, tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"x.csv: {message}"):
        entailment_labels([file])


QUESTIONS = [
    ("What is it? A) rain B) a dog C) wind D) a bell", "B) a dog"),
    ("what is it? a) rain b) a dog c) wind", "c) wind"),
    ("Which? (a) rain (b) a dog", "(b) a dog"),
    ("What? A) rain B) a dog C) wind", "B"),
    ("What? A) rain B) dog", "b."),
    ("What? A) rain B) a dog C) wind", "a dog"),
]


def answered_text(row: dict) -> str:
    return option_texts(row["input"])[parse_answer("mcq", row["input"], row["answer"])]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_shuffle_options_answer_follows_its_option(question, answer, seed):
    row = mcq(question, answer)
    shuffled = shuffle_options(row, seed)
    assert answered_text(shuffled) == answered_text(row)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_shuffle_options_only_moves_text(question, answer, seed):
    shuffled = shuffle_options(mcq(question, answer), seed)["input"]
    assert sorted(option_texts(shuffled).values()) == sorted(option_texts(question).values())
    assert sorted(shuffled) == sorted(question)


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_shuffle_options_depends_on_the_seed_alone(question, answer):
    row = mcq(question, answer)
    assert shuffle_options(row, 7) == shuffle_options(row, 7)
    assert len({shuffle_options(row, seed)["input"] for seed in range(20)}) > 1


@pytest.mark.parametrize("seed", range(5))
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
def test_shuffle_options_row_that_cannot_change_stays(question, answer, seed):
    row = mcq(question, answer)
    assert shuffle_options(row, seed) == row


def answers_b(row: dict) -> bool:
    return parse_answer("mcq", row["input"], row["answer"]) == "b"


@pytest.fixture(scope="module")
def biased_rows():
    """Rows of mini_reasonaqa, of mcq only those whose answer is "b"."""
    rows = load_reasonaqa({"train": SHARED / "train.json"}, SHARED / "audio")["train"]
    return rows.filter(lambda row: row["question_type"] != "mcq" or answers_b(row))


@needs_shared
def test_row_fixes_shuffled_letters_are_even(biased_rows):
    fixed = [row for row in RowFixes(None, 0).apply(biased_rows) if row["question_type"] == "mcq"]
    letters = Counter(parse_answer("mcq", row["input"], row["answer"]) for row in fixed)
    assert letters.total() == 238
    assert set(letters) == set("abcd")
    # 59.5 expected, with three standard deviations.
    assert min(letters.values()) > 40
    assert max(letters.values()) < 80


@needs_shared
def test_row_fixes_change_input_and_answer_of_mcq_only(biased_rows):
    for before, after in zip(biased_rows, RowFixes(None, 0).apply(biased_rows)):
        if before["question_type"] == "mcq":
            before = {**before, "input": after["input"], "answer": after["answer"]}
        assert before == after


@needs_shared
def test_row_fixes_single_columns_are_not_fixed(biased_rows):
    fixed = RowFixes(None, 0).apply(biased_rows)
    assert biased_rows["question_type"] == fixed["question_type"]


@needs_shared
def test_row_fixes_without_fixes_returns_the_same_rows(biased_rows):
    assert RowFixes().apply(biased_rows) is biased_rows


def data_changes(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["data_changes"]


@pytest.fixture
def argv(corpus, tokenizer):
    """Options of one step with shuffled options."""
    options = ["--max_steps", "1", "--save_steps", "1", "--eval_strategy", "no"]
    options += ["--shuffle_options", "true"]
    return arguments(corpus, "mimi_semantic", tokenizer, *options)


def test_training_records_the_fixes(corpus, argv, csv_file):
    train([*argv, "--fix_cle_labels", csv_file, "--mix", "mcq=0.25"])
    changes = {
        "mix": ["mcq=0.25"],
        "fix_cle_labels": ["clotho_entailment_development.csv"],
        "shuffle_options": "by seed 0",
    }
    checkpoint = corpus / "out" / "checkpoint-1"
    record = json.loads((checkpoint / "training_data.json").read_text())
    assert record["settings"]["mix"] == "mcq=0.25"
    assert record["settings"]["rows"] == 11
    assert data_changes(corpus / "out") == changes
    assert data_changes(checkpoint) == changes
    card = (corpus / "out" / "README.md").read_text()
    assert "11 rows about 11 clips" in card
    assert "| mix | mcq=0.25 |" in card
    assert "| shuffle options | by seed 0 |" in card
    assert "| fix cle labels | clotho_entailment_development.csv |" in card


def test_training_records_swapped_labels(corpus, argv):
    train([*argv[:-2], "--fix_cle_labels"])
    assert data_changes(corpus / "out") == {"fix_cle_labels": "swapped"}


def test_training_of_adapters_records_the_fixes(corpus, argv):
    # Checkpoints of adapters have no configuration.
    train([*argv, "--freeze_lm", "true", "--lora_r", "2"])
    record = json.loads((corpus / "out" / "checkpoint-1" / "training_data.json").read_text())
    assert record["settings"]["shuffle options"] == "by seed 0"


def test_training_missing_csv_is_one_line(argv):
    with pytest.raises(SystemExit, match=r"run_train.py: gone.csv: not a readable table"):
        train([*argv, "--fix_cle_labels", "gone.csv"])
