"""Which option a generated text names. What names none, or more than one, is unparsed, and counts as wrong."""

import re

_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-zA-Z])\)\s*(.*?)(?=\s+\(?[a-zA-Z]\)\s|$)", re.S)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def options(question: str) -> dict[str, str]:
    """The options inside a question, "A) … B) …", "a) … b) …" or "(a) … (b) …", by lower-case letter."""
    found = {letter.lower(): text.strip() for letter, text in _OPTION.findall(question)}
    return {letter: text for letter, text in found.items() if ord(letter) - ord("a") < len(found)}


def parse_answer(question_type: str, question: str, text: str) -> str | None:
    """The option letter (mcq, entailment) or "yes"/"no" that `text` names, or None.

    A letter counts at the start, before ")", ".", ":" or the end ("B) rain", "b.", "B"), or as "(b)". Otherwise the
    whole text of exactly one option must stand in the answer, or the answer be it. A yes or no must be a whole word,
    and the other one absent. Other question types have no options: None.
    """
    if question_type == "yes_no":
        found = set(re.findall(r"\b(yes|no)\b", text.lower()))
        return found.pop() if len(found) == 1 else None
    if question_type not in ("mcq", "entailment"):
        return None
    given = options(question)
    letter = re.match(r"\s*\(?([a-zA-Z])(?:[).:]|\s*$)", text)
    if letter:
        return letter[1].lower() if letter[1].lower() in given else None
    answer = f" {_plain(text)} "
    named = {k: f" {_plain(v)} " for k, v in given.items() if _plain(v)}
    exact = [k for k, v in named.items() if v == answer]
    held = exact or [k for k, v in named.items() if v in answer]
    # "heavy rain" holds "rain" too: the longer option is meant
    held = [k for k in held if not any(named[k] != named[o] and named[k] in named[o] for o in held)]
    return held[0] if len(held) == 1 else None
