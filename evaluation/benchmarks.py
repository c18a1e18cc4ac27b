"""Official metrics of other benchmarks, and the files to submit to them.

MMAU's scoring (github.com/Sakshi113/MMAU, evaluation.py), which MMAR adopted, matches words, not
letters. It accepts most right answers written as in training ("b) text"), and nearly no right
letters ("B"). Its numbers are not comparable with those of [`parse_answer`]: always say which of
the two a number comes from.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from ..data.answer_parsing import parse_answer
from ..data.benchmarks import (
    CHOICE_BENCHMARKS,
    CLOTHO_COLUMNS,
    check_benchmark_name,
    find_named_choice,
    is_yes_no,
    majority_answer,
    normalize,
    pair_predictions,
)


def _word_set(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def string_match(answer: str, prediction: str, choices: list[str]) -> bool:
    """Returns whether a prediction matches the right choice.

    It must have every word of that choice, and no word that only wrong choices have. Order,
    repetition and other words do not matter: "no man" matches "man".
    """
    predicted = _word_set(prediction)
    right = _word_set(answer)
    wrong = _word_set(" ".join(choices)) - right
    return bool(predicted) and right <= predicted and predicted.isdisjoint(wrong)


def official_accuracy(
    items: Iterable[Mapping],
    prediction_key: str = "model_output",
    groups: tuple[str, ...] = ("task", "difficulty", "sub-category"),
) -> dict:
    """Returns the accuracy that the official script prints, divided by 100.

    The script ignores items without a prediction: a model with 10 right answers to 1000 items has
    100 %. So there is a second accuracy, in which such items are wrong.

    Args:
        items: With `answer`, `choices`, the prediction, and the groups that it belongs to. An empty
            text is a prediction, and wrong. None, or no key, is no prediction.
        prediction_key: Key of the prediction.
        groups: Keys of the groupings.

    Returns:
        "total", and one dict by value for each grouping. Their entries are
        `official_accuracy_of_answered` (0 without predictions), `n_answered`,
        `n_without_prediction` and `accuracy_of_all`.
    """
    outcomes: dict[tuple[str, str], list[bool | None]] = {("total", ""): []}
    for item in items:
        prediction = item.get(prediction_key)
        is_right = None
        if prediction is not None:
            is_right = string_match(item["answer"], prediction, item["choices"])
        keys = [(group, item[group]) for group in groups if item.get(group) is not None]
        for key in (("total", ""), *keys):
            outcomes.setdefault(key, []).append(is_right)
    result: dict = {"total": {}, **{group: {} for group in groups}}
    for (group, value), values in sorted(outcomes.items()):
        if group == "total":
            result["total"] = _accuracies(values)
        else:
            result[group][value] = _accuracies(values)
    return result


def _accuracies(outcomes: list[bool | None]) -> dict:
    num_right = outcomes.count(True)
    num_unanswered = outcomes.count(None)
    num_answered = len(outcomes) - num_unanswered
    return {
        "official_accuracy_of_answered": num_right / num_answered if num_answered else 0.0,
        "n_answered": num_answered,
        "n_without_prediction": num_unanswered,
        "accuracy_of_all": num_right / len(outcomes) if outcomes else 0.0,
    }


def submission(
    name: str, rows: Iterable[Mapping], predictions: Sequence[str | None]
) -> list[dict] | str:
    """Returns the file that the official script reads: items, or a CSV for ClothoAQA.

    An answer is the text of the option that a generated text names ("yes" or "no"), or else the
    generated text. It is under both keys that versions of the MMAU and MMAR scripts use. An item
    without a prediction (None) has no such key.

    Raises:
        ValueError: If there are not as many predictions as rows.
    """
    pairs = pair_predictions(rows, predictions)
    return (
        _clotho_csv(pairs)
        if check_benchmark_name(name) == "clothoaqa"
        else _choice_items(name, pairs)
    )


def _choice_items(name: str, pairs: list[tuple[Mapping, str | None]]) -> list[dict]:
    items = []
    for row, text in pairs:
        item = json.loads(row["item"])
        if text is not None:
            answer = find_named_choice(row, text) or text
            item |= dict.fromkeys(CHOICE_BENCHMARKS[name].prediction_keys, answer)
        items.append(item)
    return items


def _clotho_csv(pairs: list[tuple[Mapping, str | None]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CLOTHO_COLUMNS[:3])
    for row, text in pairs:
        item = json.loads(row["item"])
        option = parse_answer(row["question_type"], row["input"], text or "")
        writer.writerow([item["file_name"], item["QuestionText"], option or text or ""])
    return file.getvalue()


def official_metrics(name: str, rows: Iterable[Mapping], predictions: Sequence[str | None]) -> dict:
    """Returns the benchmark's own metric, with its `protocol` and `n_unparsed`.

    For MMAU and MMAR it is [`official_accuracy`] of the submission. For ClothoAQA it is the
    accuracy on "yes_no" and "detail" questions (single words, top 1) against three references.
    These are every annotator's answer (`all_answers`, as its authors count), the answer of more
    than half of them (`majority`), and the answer that all three share (`unanimous`). Words are
    compared without case and punctuation. A word as the answer to a yes/no question counts nowhere,
    and vice versa.

    Raises:
        ValueError: If there are not as many predictions as rows.
    """
    pairs = pair_predictions(rows, predictions)
    if check_benchmark_name(name) == "clothoaqa":
        return {
            "protocol": "ClothoAQA exact match",
            "yes_no": _clotho_metrics("yes_no", pairs),
            "detail": _clotho_metrics("detail", pairs),
        }
    benchmark = CHOICE_BENCHMARKS[name]
    unparsed = sum(find_named_choice(row, text or "") is None for row, text in pairs)
    metrics = official_accuracy(
        _choice_items(name, pairs), benchmark.prediction_keys[0], benchmark.groups
    )
    return {"protocol": f"{benchmark.title} string match", "n_unparsed": unparsed, **metrics}


def _clotho_metrics(question_type: str, pairs: list[tuple[Mapping, str | None]]) -> dict:
    is_closed = question_type == "yes_no"
    predictions = []
    outcomes: dict[str, list[bool]] = {"all_answers": [], "majority": [], "unanimous": []}
    for row, text in pairs:
        if row["question_type"] != question_type:
            continue
        if is_closed:
            prediction = parse_answer(question_type, row["input"], text or "") or ""
        else:
            prediction = normalize(text or "")
        predictions.append(prediction)
        answers = [normalize(answer) for answer in json.loads(row["item"])["answers"]]
        answers = [answer for answer in answers if answer and is_yes_no(answer) == is_closed]
        outcomes["all_answers"] += [prediction == answer for answer in answers]
        most = majority_answer(answers)
        if most:
            outcomes["majority"].append(prediction == most)
        if len(answers) >= 3 and len(set(answers)) == 1:
            outcomes["unanimous"].append(prediction == answers[0])
    metrics: dict = {"n_questions": len(predictions), "n_unparsed": predictions.count("")}
    for name, values in outcomes.items():
        accuracy = sum(values) / len(values) if values else None
        metrics[name] = {"n": len(values), "accuracy": accuracy}
    return metrics
