"""MMAU's own scoring (github.com/Sakshi113/MMAU, evaluation.py), which MMAR took over: a match of words, not of letters.

It is a protocol of its own, and its numbers are not those of [`parse_answer`]: of right answers written as in training
("b) text") it takes most, of right letters ("B") next to none. Always say which of the two a number comes from.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from ..data.answer_parsing import parse_answer
from ..data.benchmarks import (
    _CHOICES,
    _COLUMNS,
    _is_yes_no,
    _known,
    _majority,
    _named_choice,
    _pairs,
    _plain,
)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def string_match(answer: str, prediction: str, choices: list[str]) -> bool:
    """Whether `prediction` has every word of the right choice, and no word that only wrong choices have.

    Order, repetition and other words do not matter: "no man" matches "man". A prediction without words never matches.
    """
    said, right = _words(prediction), _words(answer)
    wrong = {word for choice in choices for word in _words(choice)} - right
    return bool(said) and right <= said and said.isdisjoint(wrong)


def official_accuracy(
    items: Iterable[Mapping],
    prediction_key: str = "model_output",
    groups: tuple[str, ...] = ("task", "difficulty", "sub-category"),
) -> dict:
    """What the script prints (there times 100), for all items and for each value of `groups`.

    The script leaves an item without a prediction out of the count, so that a model which answers 10 of 1000 items rightly, and
    nothing else, has 100 %. Hence beside its number stands the one in which such items are wrong.

    Args:
        items: with `answer`, `choices`, the `groups` (one that is missing or None counts nowhere) and the prediction; one whose
            prediction is missing or None has none. An empty text is a prediction, and wrong.

    Returns:
        "total" and one dict by value for each group, of `official_accuracy_of_answered` (0 of none, as there), `n_answered`,
        `n_without_prediction` and `accuracy_of_all` (without a prediction is wrong).
    """
    counts: dict[tuple[str, str], list[int]] = {("total", ""): [0, 0, 0]}
    for item in items:
        prediction = item.get(prediction_key)
        right = prediction is not None and string_match(item["answer"], prediction, item["choices"])
        for key in [
            ("total", ""),
            *((group, item[group]) for group in groups if item.get(group) is not None),
        ]:
            count = counts.setdefault(key, [0, 0, 0])
            count[0] += right
            count[1] += prediction is not None
            count[2] += 1
    result: dict = {"total": {}} | {group: {} for group in groups}
    for (group, value), (right, answered, n) in sorted(counts.items()):
        found = {
            "official_accuracy_of_answered": right / answered if answered else 0.0,
            "n_answered": answered,
            "n_without_prediction": n - answered,
            "accuracy_of_all": right / n if n else 0.0,
        }
        if group == "total":
            result["total"] = found
        else:
            result[group][value] = found
    return result


def submission(
    name: str, rows: Iterable[Mapping], predictions: Sequence[str | None]
) -> list[dict] | str:
    """The file that the benchmark's own script reads: the published items with the answers, of ClothoAQA the text of a CSV.

    Submitted is the text of the option that a generated text names, "yes" or "no", or else the generated text as it is. Both
    keys are there under which versions of MMAU's and MMAR's scripts look. None is no prediction: the item has no such key.

    Raises:
        ValueError: if there are not as many predictions as rows.
    """
    pairs = _pairs(rows, predictions)
    if _known(name) == "clothoaqa":
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(_COLUMNS[:3])
        for row, text in pairs:
            item = json.loads(row["item"])
            named = parse_answer(row["question_type"], row["input"], text or "")
            table.writerow([item["file_name"], item["QuestionText"], named or text or ""])
        return out.getvalue()
    items = []
    for row, text in pairs:
        said = text if text is None else _named_choice(row, text) or text
        items.append(
            json.loads(row["item"])
            | ({} if said is None else dict.fromkeys(_CHOICES[name][4], said))
        )
    return items


def official_metrics(name: str, rows: Iterable[Mapping], predictions: Sequence[str | None]) -> dict:
    """The benchmark's own metric of generated texts, with the `protocol` it comes from and `n_unparsed`.

    MMAU, MMAR: [`official_accuracy`] of the submission, by task and difficulty, or modality and category. ClothoAQA: for
    "yes_no" and "detail" (single words, top 1) the accuracy against each annotator's answer (`all_answers`, as its authors
    count), against the answer of more than half of them (`majority`), and where all three agree (`unanimous`). Words are
    compared without case and punctuation; a word given to a yes/no question, or the reverse, counts nowhere.

    Raises:
        ValueError: if there are not as many predictions as rows.
    """
    pairs = _pairs(rows, predictions)
    if _known(name) != "clothoaqa":
        title, _, _, groups, keys = _CHOICES[name]
        found = official_accuracy(submission(name, *zip(*pairs)) if pairs else [], keys[0], groups)
        unparsed = sum(_named_choice(row, text or "") is None for row, text in pairs)
        return {"protocol": f"{title} string match", "n_unparsed": unparsed} | found
    result: dict = {"protocol": "ClothoAQA exact match"}
    for kind in ("yes_no", "detail"):
        asked = [(row, text or "") for row, text in pairs if row["question_type"] == kind]
        said = [
            parse_answer(kind, row["input"], text) or "" if kind == "yes_no" else _plain(text)
            for row, text in asked
        ]
        all_given = [
            [answer for answer in map(_plain, json.loads(row["item"])["answers"]) if answer]
            for row, _ in asked
        ]
        given = [
            [answer for answer in answers if _is_yes_no(answer) == (kind == "yes_no")]
            for answers in all_given
        ]
        sets = {
            "all_answers": [
                (mine, answer) for mine, answers in zip(said, given) for answer in answers
            ],
            "majority": [
                (mine, most) for mine, answers in zip(said, given) if (most := _majority(answers))
            ],
            "unanimous": [
                (mine, a[0]) for mine, a in zip(said, given) if len(a) >= 3 and len(set(a)) == 1
            ],
        }
        result[kind] = {"n_questions": len(asked), "n_unparsed": said.count("")} | {
            of: {
                "n": len(found),
                "accuracy": sum(mine == right for mine, right in found) / len(found)
                if found
                else None,
            }
            for of, found in sets.items()
        }
    return result
