"""Generated texts that name no option, or the letter of one option and the words of another.

A model may know the answer and not its letter. Published harnesses score the letter.
"""

from collections.abc import Sequence

from ..data.answer_parsing import named_letter_and_words

LETTERED_TYPES = ("mcq", "entailment")
# A larger share of texts or answers that name no option is warned of.
MAX_UNPARSED = 0.05


def contradictions(rows: Sequence[dict]) -> dict[str, dict]:
    """Returns how often generated texts contradict themselves, by question type.

    Args:
        rows: Rows of `predictions.jsonl`. Those without a generated text do not count.

    Returns:
        For each type with lettered options: `n` texts, the share `contradictory` of them, and the
        accuracies `by_letter` and `by_words` alone, where a text without either counts as wrong.
    """
    results = {}
    for question_type in LETTERED_TYPES:
        named = []
        for row in rows:
            if row["question_type"] == question_type and "generate" in row["answers"]:
                text = row["answers"]["generate"]["text"]
                named.append((row["reference"], *named_letter_and_words(row["input"], text)))
        if not named:
            continue
        count = len(named)
        named_twice = [row for row in named if None not in row[1:]]
        results[question_type] = {
            "n": count,
            "contradictory": sum(letter != option for _, letter, option in named_twice) / count,
            "by_letter": sum(letter == reference for reference, letter, _ in named) / count,
            "by_words": sum(option == reference for reference, _, option in named) / count,
        }
    return results


def unparsed_warnings(closed: list[dict]) -> list[str]:
    """Returns a warning if the answers, or the generated texts, of many rows name no option."""
    warnings = []
    unclear = [row for row in closed if row["reference"] is None]
    if len(unclear) > MAX_UNPARSED * len(closed):
        question, answer = unclear[0]["input"], unclear[0]["answer"]
        warnings.append(
            f"the correct answers of {len(unclear)} of {len(closed)} closed rows name no option. "
            "No answer to them counts as correct. Write options as `A) rain B) wind`. First: "
            f"{question[-99:]!r}, answer {answer[:50]!r}"
        )
    texts = [row for row in closed if "generate" in row["answers"] and row["reference"]]
    unparsed = [row for row in texts if row["answers"]["generate"]["parsed"] is None]
    if len(unparsed) > MAX_UNPARSED * len(texts):
        question, text = unparsed[0]["input"], unparsed[0]["answers"]["generate"]["text"]
        warnings.append(
            f"{len(unparsed)} of {len(texts)} generated texts name no option, or several. They "
            f"count as wrong. First: {text[:50]!r} to {question[-99:]!r}"
        )
    return warnings
