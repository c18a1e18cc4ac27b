"""MMAU's own scoring (github.com/Sakshi113/MMAU, evaluation.py), which MMAR took over: a match of words, not of letters.

It is a protocol of its own, and its numbers are not those of [`parse_answer`]: of right answers written as in training
("b) text") it takes most, of right letters ("B") next to none. Always say which of the two a number comes from.
"""

import re
from collections.abc import Iterable, Mapping


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
        for key in [("total", ""), *((group, item[group]) for group in groups if item.get(group) is not None)]:
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
