"""Fixes two known defects of ReasonAQA: wrong labels of CLE, and answer-position bias."""

import html
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import UserError, read_table
from .answer_parsing import Option, find_options, parse_answer, replace_texts

if TYPE_CHECKING:
    from datasets import Dataset

# The option for each column of github.com/microsoft/AudioEntailment, data/CLE/*.csv.
LABELS = {
    "Entailment": "it is definitely true",
    "Contradiction": "it is definitely false",
    "Neutral": "it is plausible",
}
_SWAPPED = {LABELS["Contradiction"]: LABELS["Neutral"], LABELS["Neutral"]: LABELS["Contradiction"]}
_HYPOTHESIS = re.compile(r'the hypothesis - "(.*)"\s*\?', re.S)
_ANSWER_LETTER = re.compile(r"^(\s*\(?)[a-zA-Z](?=[).:]|\s*$)")
_OTHER_OPTIONS = re.compile(
    r"\b(above|below|both|all|none|neither|either|[a-d] (and|or) [a-d])\b", re.I
)
_NEEDED_COLUMNS = {"subtype", "input", "answer", "question_type", "filepath1"}

# The correct option by file name and hypothesis.
EntailmentLabels = Mapping[tuple[str, str], str]


def entailment_labels(files: Iterable[str | Path]) -> dict[tuple[str, str], str]:
    """Reads the correct options from AudioEntailment's CSV files.

    Raises:
        UserError: A file is not one of them. The message names it.
    """
    labels: dict[tuple[str, str], str] = {}
    for file in files:
        for row in read_table(file, "Audio file", *LABELS).to_dict("records"):
            for column, label in LABELS.items():
                labels[_label_key(row["Audio file"], row[column])] = label
    if not labels:
        raise UserError(f"{', '.join(map(str, files))}: no labels found")
    return labels


def _label_key(file: str, hypothesis: str) -> tuple[str, str]:
    name = html.unescape(re.split(r"[/\\]", file)[-1])
    name = unicodedata.normalize("NFC", name)
    return name.casefold(), " ".join(html.unescape(hypothesis).split()).casefold()


def _answered_option(row: Mapping) -> tuple[list[Option], int] | None:
    """Returns the options of a question and the index of the one that its answer names."""
    options = find_options(row["input"])
    letters = [option.letter.lower() for option in options]
    letter = parse_answer("mcq", row["input"], row["answer"])
    return (options, letters.index(letter)) if letter in letters else None


def fix_cle_label(row: dict, labels: EntailmentLabels | None) -> dict:
    """Returns a CLE row with the correct answer. Other rows do not change.

    Args:
        row: A row of ReasonAQA.
        labels: Correct options. Rows without one do not change. None swaps "definitely false"
            and "plausible".
    """
    is_cle = row["subtype"].removesuffix(".json") == "CLE"
    answered = _answered_option(row) if is_cle else None
    if answered is None:
        return row
    options, index = answered
    texts = [option.text.strip().rstrip(".").lower() for option in options]
    hypothesis = _HYPOTHESIS.search(row["input"])
    label = _SWAPPED.get(texts[index]) if labels is None else None
    if labels is not None and hypothesis:
        label = labels.get(_label_key(row["filepath1"], hypothesis[1]))
    if label not in texts:
        return row
    option = options[texts.index(label)]
    return {**row, "answer": f"{option.letter}) {option.text.strip()}"}


def refers_to_options(options: list[Option]) -> bool:
    """Whether an option refers to others ("none of the above"), so that none may be moved."""
    return any(_OTHER_OPTIONS.search(option.text) for option in options)


def shuffle_options(row: dict, seed: int) -> dict:
    """Returns a multiple-choice row with its options in a random order. The answer follows.

    The order depends on the seed and the row. A row does not change if an option refers to others
    or its answer names no option.
    """
    answered = _answered_option(row) if row["question_type"] == "mcq" else None
    if answered is None or refers_to_options(answered[0]):
        return row
    options, answer_index = answered
    order = list(range(len(options)))
    random.Random(f"{seed}|{row['filepath1']}|{row['input']}").shuffle(order)
    question = replace_texts(row["input"], options, [options[index].text for index in order])
    letter = options[order.index(answer_index)].letter
    # An answer without a letter is the option's text, which stays the same.
    answer = _ANSWER_LETTER.sub(lambda match: match[1] + letter, row["answer"])
    return {**row, "input": question, "answer": answer}


class RowFixes:
    """Fixes rows one by one before training.

    Args:
        fix_cle_labels: AudioEntailment's CSV files, an empty list to swap labels as
            `fix_cle_label` does, or None to leave them.
        shuffle_seed: Seed for the order of options, or None to leave it.

    Raises:
        UserError: A CSV file is not readable.
    """

    def __init__(self, fix_cle_labels: list[str] | None = None, shuffle_seed: int | None = None):
        self.fixes_labels = fix_cle_labels is not None
        self.shuffle_seed = shuffle_seed
        self.labels = entailment_labels(fix_cle_labels) if fix_cle_labels else None

    def __call__(self, row: dict) -> dict:
        """Returns the fixed row."""
        if self.fixes_labels:
            row = fix_cle_label(row, self.labels)
        if self.shuffle_seed is not None:
            row = shuffle_options(row, self.shuffle_seed)
        return row

    def apply(self, rows: "Dataset") -> "Dataset":
        """Returns rows that are fixed when they are read. Single columns are not fixed."""
        if not self.fixes_labels and self.shuffle_seed is None:
            return rows
        return rows.with_transform(self._fix_batch)

    def _fix_batch(self, batch: dict[str, list]) -> dict[str, list]:
        if not batch.keys() >= _NEEDED_COLUMNS:
            return batch
        rows = [self(dict(zip(batch, values))) for values in zip(*batch.values())]
        return {name: [row[name] for row in rows] for name in batch}
