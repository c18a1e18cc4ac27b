"""Which option a generated text names. What names none, or more than one, is unparsed, and counts as wrong."""

import re
from typing import NamedTuple

_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-zA-Z])\)\s*(.*?)(?=\s+\(?[a-zA-Z]\)\s|$)", re.S)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


class Option(NamedTuple):
    """An option inside a question: its letter as it is written, its text, and where that stands."""

    letter: str
    text: str
    start: int
    end: int


def option_spans(question: str) -> list[Option]:
    """The options inside a question, "A) … B) …", "a) … b) …" or "(a) … (b) …"; of one letter the last counts."""
    found = {match[1].lower(): Option(match[1], match[2].strip(), *match.span(2)) for match in _OPTION.finditer(question)}
    return sorted((o for letter, o in found.items() if ord(letter) - ord("a") < len(found)), key=lambda o: o.start)


def options(question: str) -> dict[str, str]:
    """The texts of a question's options, by lower-case letter."""
    return {option.letter.lower(): option.text for option in option_spans(question)}


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
