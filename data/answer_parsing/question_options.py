"""Finds the options in a question, and writes options into one."""

import re
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from ...runtime import UserError

# ReasonAQA ends its yes/no questions with this sentence.
YES_NO_INSTRUCTION = "Answer only using yes or no."

# An option ends where white space begins. Trying each space of a run would take quadratic time.
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-zA-Z])\)\s*(.*?)(?=(?<!\s)\s+\(?[a-zA-Z]\)\s|$)", re.S)


class Option(NamedTuple):
    """An option in a question.

    Attributes:
        letter: The letter as written.
        text: The text without surrounding white space.
        start: Where the text starts in the question.
        end: Where it ends, with trailing white space.
    """

    letter: str
    text: str
    start: int
    end: int


def find_options(question: str) -> list[Option]:
    """Returns the options of a question, in order: "A) … B) …", "a) … b) …" or "(a) … (b) …".

    If a letter occurs twice, its last option counts.
    """
    by_letter = {
        match[1].lower(): Option(match[1], match[2].strip(), *match.span(2))
        for match in _OPTION.finditer(question)
    }
    expected_letters = LETTERS.lower()[: len(by_letter)]
    options = [option for letter, option in by_letter.items() if letter in expected_letters]
    return sorted(options, key=lambda option: option.start)


def option_texts(question: str) -> dict[str, str]:
    """Returns the texts of a question's options by lower-case letter."""
    return {option.letter.lower(): option.text for option in find_options(question)}


def infer_answer_format(question: str) -> str:
    """Returns `mcq` for a question with two or more options, `yes_no` or `open`."""
    if len(find_options(question)) > 1:
        return "mcq"
    return "yes_no" if question.strip().lower().endswith("using yes or no.") else "open"


def add_options(question: str, options: list[str]) -> str:
    """Returns a question with its options as ReasonAQA writes them: "… A) rain B) wind".

    The options "yes" and "no" become a sentence that asks for one of them.

    Raises:
        UserError: The question has options already, there are fewer than 2 or more than 26, two
            are equal, or a text cannot be written as an option.
    """
    question = question.strip()
    options = [option.strip() for option in options if option.strip()]
    try:
        " ".join([question, *options]).encode()
    except UnicodeEncodeError as error:
        raise UserError("the question is not valid UTF-8 text") from error
    if not options:
        return question
    distinct = {option.casefold() for option in options}
    if infer_answer_format(question) != "open":
        raise UserError("the question names options already: remove them or pass no other options")
    if not 2 <= len(options) <= len(LETTERS) or len(distinct) < len(options):
        raise UserError(f"expected 2 to {len(LETTERS)} different options")
    if any(re.match(r"\(?[A-Za-z]\)\s", option) for option in options):
        raise UserError("pass the options without letters: they are added")
    if distinct == {"yes", "no"}:
        return f"{question} {YES_NO_INSTRUCTION}"
    lettered = [f"{letter}) {option}" for letter, option in zip(LETTERS, options)]
    full_question = " ".join([question, *lettered])
    if [option.text for option in find_options(full_question)] != options:
        raise UserError('an option contains the start of another option, such as "b) "')
    return full_question
