"""ReasonAQA's two known defects, mended on request: labels of CLE on wrong hypotheses, and options whose place tells."""

import csv
import html
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .answer_parsing import option_spans, parse_answer

if TYPE_CHECKING:
    from datasets import Dataset

# AudioEntailment's columns (github.com/microsoft/AudioEntailment, data/CLE/*.csv), and the option that each stands for
LABELS = {
    "Entailment": "it is definitely true",
    "Contradiction": "it is definitely false",
    "Neutral": "it is plausible",
}
_SWAPPED = {
    "it is definitely false": "it is plausible",
    "it is plausible": "it is definitely false",
}
_HYPOTHESIS = re.compile(r'the hypothesis - "(.*)"\s*\?', re.S)
_LETTER = re.compile(r"^(\s*\(?)[a-zA-Z](?=[).:]|\s*$)")  # of an answer
# an option that speaks of others cannot stand in another place
_OF_OTHERS = re.compile(
    r"\b(above|below|both|all|none|neither|either|[a-d] (and|or) [a-d])\b", re.I
)


def _key(file: str, hypothesis: str) -> tuple[str, str]:
    name = html.unescape(re.split(r"[/\\]", file)[-1])
    return name.casefold(), " ".join(html.unescape(hypothesis).split()).casefold()


def entailment_labels(files: Iterable[str | Path]) -> dict[tuple[str, str], str]:
    """The right option of each clip and hypothesis, from AudioEntailment's csv files.

    Raises:
        ValueError: naming the file, if it is none of them.
    """
    labels: dict[tuple[str, str], str] = {}
    for file in files:
        try:
            with open(file, encoding="utf-8", newline="") as lines:
                rows = csv.DictReader(lines)
                if missing := {"Audio file", *LABELS} - set(rows.fieldnames or ()):
                    raise ValueError(
                        f"{file}: no csv of AudioEntailment (no column {', '.join(sorted(missing))})"
                    )
                for row in rows:
                    labels.update(
                        (_key(row["Audio file"] or "", row[column] or ""), LABELS[column])
                        for column in LABELS
                    )
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file}: not a readable csv ({error})") from error
    if not labels:
        raise ValueError(f"{', '.join(map(str, files))}: no label is in there")
    return labels


def is_cle(row: Mapping) -> bool:
    """Whether a row is of the subtype whose labels are in doubt."""
    return row["subtype"].removesuffix(".json") == "CLE"


def right_label(row: Mapping, labels: Mapping[tuple[str, str], str]) -> str | None:
    """The option that a row of CLE ought to have, or None if its clip and hypothesis are not among `labels`."""
    hypothesis = _HYPOTHESIS.search(row["input"])
    return labels.get(_key(row["filepath1"], hypothesis[1])) if hypothesis else None


def _named_option(row: Mapping) -> tuple[list, int] | None:
    """The options inside a row's question, and which of them its answer names."""
    options = option_spans(row["input"])
    letters = [option.letter.lower() for option in options]
    named = parse_answer("mcq", row["input"], row["answer"])
    return (options, letters.index(named)) if named in letters else None


def fix_cle_label(row: dict, labels: Mapping[tuple[str, str], str] | None) -> dict:
    """The row with the answer that `labels` has; without them, "definitely false" and "plausible" change places.

    Rows of other subtypes, and rows that `labels` do not know, stay as they are.
    """
    if not is_cle(row) or (found := _named_option(row)) is None:
        return row
    options, named = found
    texts = [option.text.strip().rstrip(".").lower() for option in options]
    wanted = right_label(row, labels) if labels is not None else _SWAPPED.get(texts[named])
    if wanted not in texts:
        return row
    option = options[texts.index(wanted)]
    return {**row, "answer": f"{option.letter}) {option.text.strip()}"}


def speaks_of_others(options: list) -> bool:
    """Whether an option's text speaks of other options ("both A and B", "none of the above"), which thus cannot be moved."""
    return any(_OF_OTHERS.search(option.text) for option in options)


def shuffle_options(row: dict, seed: int) -> dict:
    """The row with the options of a multiple-choice question in an order drawn by `seed` and the row; the answer follows.

    Questions with an option that speaks of others ("both A and B", "none of the above") stay as they are, and answers that
    name no option.
    """
    if row["question_type"] != "mcq" or (found := _named_option(row)) is None:
        return row
    options, named = found
    if speaks_of_others(options):
        return row
    order = list(range(len(options)))
    random.Random(f"{seed}|{row['filepath1']}|{row['input']}").shuffle(
        order
    )  # of a row, wherever it is read
    question, at = [], 0
    for option, taken in zip(options, order):
        question += [row["input"][at : option.start], options[taken].text]
        at = option.end
    letter = options[order.index(named)].letter
    answer = _LETTER.sub(
        lambda found: found[1] + letter, row["answer"]
    )  # an answer without one is the option's text
    return {**row, "input": "".join(question) + row["input"][at:], "answer": answer}


class RowFixes:
    """What is done to rows before they are trained on, one by one.

    Args:
        fix_cle_labels: None leaves them; an empty list swaps them as [`fix_cle_label`] does; else AudioEntailment's csv files.
        shuffle_seed: of the options' order; None leaves it.

    Raises:
        ValueError: if a csv cannot be read.
    """

    def __init__(self, fix_cle_labels: list[str] | None = None, shuffle_seed: int | None = None):
        self.fixes, self.shuffle_seed = fix_cle_labels is not None, shuffle_seed
        self.labels = entailment_labels(fix_cle_labels) if fix_cle_labels else None

    def __call__(self, row: dict) -> dict:
        row = fix_cle_label(row, self.labels) if self.fixes else row
        return row if self.shuffle_seed is None else shuffle_options(row, self.shuffle_seed)

    def rows(self, rows: "Dataset") -> "Dataset":
        """The rows, mended when they are read whole; single columns stay as they are."""
        return (
            rows.with_transform(self._batch)
            if self.fixes or self.shuffle_seed is not None
            else rows
        )

    def _batch(self, batch: dict[str, list]) -> dict[str, list]:
        if not {"subtype", "input", "answer", "question_type", "filepath1"} <= batch.keys():
            return batch
        mended = [self(dict(zip(batch, values))) for values in zip(*batch.values())]
        return {name: [row[name] for row in mended] for name in batch}
