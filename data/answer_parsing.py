"""Which option a generated text names. What names none, or more than one, is unparsed, and counts as wrong."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import NamedTuple

# looked for is the next option where spaces begin, not at each of them, which takes the square of their number
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-zA-Z])\)\s*(.*?)(?=(?<!\s)\s+\(?[a-zA-Z]\)\s|$)", re.S)
_LEADING = re.compile(r"\s*\(?([a-zA-Z])(?:[).:]|\s*$)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*[#♯♭]*")  # "isn't" and "C#" are one word
_BREAK = re.compile(
    r"[,;.!?\n\u2013\u2014\u2026]|\s-+\s"
)  # ends a clause, and with it what a "not" governs
_DASH = re.compile(r"\s+[-\u2013\u2014:=]")
_QUOTES = tuple("([{<*\"'`«\u201c\u2018")
_OPENING = re.compile(
    r"^(a|an|the|i|it is|there is) "
)  # words of an option that an answer may leave out
_NEGATIONS = {
    "not",
    "no",
    "never",
    "neither",
    "nor",
    "without",
    "cannot",
    "except",
    "unlike",
    "none",
    "nothing",
}
_NEGATING_PAIRS = {("instead", "of"), ("rather", "than"), ("other", "than"), ("apart", "from")}
_TURNS = {"but", "because", "since", "however", "though", "although", "whereas", "while"}
_VERBS = {"is", "are", "was", "were", "do", "does", "did", "can", "could"}
_DENIALS = {"not", "never", "wrong", "incorrect", "false", "absent", "missing"}
_CUES = {"option", "answer", "choice", "letter"}
_BEFORE_LETTER = {
    "is",
    "it's",
    "be",
    "not",
    "or",
    "and",
    "either",
    "neither",
    "nor",
    "choose",
    "pick",
    "select",
    "say",
}
_AFTER_LETTER = {
    "is",
    "was",
    "or",
    "and",
    "because",
    "but",
    "since",
    "instead",
}  # never after an article
# A "no" before these stands for itself, before others it is a determiner.
_AFTER_NO = {
    "it",
    "there",
    "they",
    "he",
    "she",
    "that",
    "this",
    "i",
    "we",
    "you",
    "not",
    "because",
    "since",
    "the",
    "a",
    "an",
}
_ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5, "last": -1}
_NUMBERS = {"one": 0, "two": 1, "three": 2, "four": 3, "five": 4, "six": 5} | {
    str(n + 1): n for n in range(6)
}


class Option(NamedTuple):
    """An option inside a question: its letter as it is written, its text, and where that stands."""

    letter: str
    text: str
    start: int
    end: int


def option_spans(question: str) -> list[Option]:
    """The options inside a question, "A) … B) …", "a) … b) …" or "(a) … (b) …"; of one letter the last counts."""
    found = {
        match[1].lower(): Option(match[1], match[2].strip(), *match.span(2))
        for match in _OPTION.finditer(question)
    }
    return sorted(
        (o for letter, o in found.items() if ord(letter) - ord("a") < len(found)),
        key=lambda o: o.start,
    )


def options(question: str) -> dict[str, str]:
    """The texts of a question's options, by lower-case letter."""
    return {option.letter.lower(): option.text for option in option_spans(question)}


def parse_answer(question_type: str, question: str, text: str) -> str | None:
    """The option letter (mcq, entailment) or "yes"/"no" that `text` names, or None. Other question types have no options.

    - An option is named by its letter (alone, before punctuation, in brackets or quotes, after "option" or "answer"; "a" before
      a word is an article), by its place ("the second option", "option two", "the last one"), or by its whole text, whatever
      its case and punctuation and without an opening article or "it is". Of texts within one another the longest counts.
    - What a negation governs is not named: from "not", "no", "n't", "without", "rather than", … to the end of the clause, and
      what is followed by "is not" or "is wrong". "No doubt" and "not only" negate nothing; nor does a word of an option's text.
    - Two options, a letter with the text of another option, or the letter of no option: None. So is a negation alone, even
      with two options: it names what the answer is not.
    - A "yes" counts as a word; a "no" unless it belongs to the next word ("no dog", "no doubt"), which answers "Is it quiet?"
      otherwise than "Is there a dog?". Both, or a negated one ("not yes"): None.
    """
    if question_type == "yes_no":
        return _parse_yes_no(text)
    return parse_option(options(question), text) if question_type in ("mcq", "entailment") else None


def parse_option(given: Mapping[str, str], text: str) -> str | None:
    """The letter of the option that `text` names by the rules of [`parse_answer`]; `given` has the options' texts by letter."""
    if not given:
        return None
    words, gaps = _words(text)
    plain = {letter: _words(option)[0] for letter, option in given.items()}
    leading = _LEADING.match(text)
    if leading and (letter := leading[1].lower()) in given and words[1:] in ([], plain[letter]):
        return letter
    exact = [letter for letter, option in plain.items() if words == option]
    if words and len(exact) == 1:
        return exact[0]
    texts = _text_mentions(plain, words)
    covered, reached = set(), 0
    for start, end, _ in texts:  # neither starts nor ends go back
        covered.update(range(max(start, reached), end))
        reached = end
    mentions: list[tuple[int, int, str]] = []
    for start, end, letter in sorted(
        [*texts, *_letter_mentions(list(given), words, gaps, covered)]
    ):
        if mentions and mentions[-1][1:] == (
            start,
            letter,
        ):  # "A) rain" and "rain (A)" are one mention
            start = mentions.pop()[0]
        mentions.append((start, end, letter))
    negated = _negated(words, gaps, covered)
    named = {
        letter
        for start, end, letter in mentions
        if not negated[start] and not _denied(words, gaps, end)
    }
    return named.pop() if len(named) == 1 and named <= given.keys() else None


def _parse_yes_no(text: str) -> str | None:
    words, gaps = _words(text)
    standing = set()
    for i, word in enumerate(words):
        after = gaps[i + 1]
        ended = (
            i + 1 == len(words) or words[i + 1] in _AFTER_NO or (after.strip(" ") and after != "-")
        )
        if word == "yes" or (word == "no" and ended):
            standing.add(i)
    negated = _negated(words, gaps, standing)
    found = {words[i] for i in standing if not negated[i]}
    return found.pop() if len(found) == 1 else None


def _words(text: str) -> tuple[list[str], list[str]]:
    """The words in lower case, and what stands before each of them and after the last."""
    text = text.lower().replace("\u2019", "'")
    spans = [match.span() for match in _WORD.finditer(text)]
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [text[start:end] for start, end in spans], [
        text[a:b] for a, b in zip(edges[::2], edges[1::2])
    ]


def _text_mentions(plain: Mapping[str, list[str]], words: list[str]) -> list[tuple[int, int, str]]:
    """First word, end and letter of each whole option text; none that lies within a longer one."""
    line = f" {' '.join(words)} "
    found = []
    for letter, option in plain.items():
        core = _OPENING.sub("", " ".join(option))
        if option and f" {core} " in line:
            part = core.split(" ")
            found += [(start, -(start + len(part)), letter) for start in _places(part, words)]
    kept: list[tuple[int, int, str]] = []
    for start, end, letter in sorted(found):
        if not kept or -end > kept[-1][1] or (start, -end) == kept[-1][:2]:
            kept.append((start, -end, letter))
    return kept


def _places(part: list[str], words: list[str]) -> list[int]:
    """Where `part` begins in `words`, overlapping too, in linear time (Knuth, Morris and Pratt): a text may repeat itself."""
    line, borders = (
        [*part, None, *words],
        [0],
    )  # of each beginning of `line`, how many words at its end are its first ones too
    for word in line[1:]:
        border = borders[-1]
        while border and line[border] != word:
            border = borders[border - 1]
        borders.append(border + (line[border] == word))
    return [end - 2 * len(part) for end, border in enumerate(borders) if border == len(part)]


def _letter_mentions(letters: list[str], words: list[str], gaps: list[str], covered: set[int]):
    """First word, end and letter of what names an option by letter or place; "?" is the letter of a place that is not there."""
    for i, word in enumerate(words):
        if i in covered:
            continue
        before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
        if word in _ORDINALS and (
            after in _CUES | {"one"} or (not after and words[:-1] in ([], ["the"]))
        ):
            yield (
                i,
                min(i + 2, len(words)),
                letters[_ORDINALS[word]] if _ORDINALS[word] < len(letters) else "?",
            )
        elif word in _NUMBERS and before in _CUES:
            yield i, i + 1, letters[_NUMBERS[word]] if _NUMBERS[word] < len(letters) else "?"
        elif len(word) == 1 and word.isalpha():
            opening, closing = gaps[i], gaps[i + 1]
            glued = (
                i and opening[-1:] in ("(", ".", "-", "&") and not re.search(r"\s", opening)
            )  # "sound(s)", "R&B"
            marked = (
                not after
                or _DASH.match(closing)
                or not (closing[:1] in (" ", "-", "&") or closing == ".")
            )  # "e.g."
            alone = marked and (
                opening.endswith(_QUOTES)
                or (i == 0 and (not after or closing[:1] in (")", ".", ":")))
            )
            cued = before in _CUES or (
                marked and before in ("is", "was") and i > 1 and words[i - 2] in _CUES
            )
            if word in "ai":  # words too, and "a" is what a text that was cut ends with
                beside = (marked and before in _BEFORE_LETTER) or (
                    word == "a" and after in _AFTER_LETTER
                )
                beside = beside or (marked and (i == 0 or closing[:1] in (")", "]", ":", "/")))
            else:
                beside = (
                    marked or before in _BEFORE_LETTER or after in _AFTER_LETTER or i + 1 in covered
                )
            if not glued and (alone or cued or (beside and word in letters)):
                yield i, i + 1, word


def _negated(words: list[str], gaps: list[str], covered: set[int]) -> list[bool]:
    """Whether a negation in the same clause precedes each word; `covered` words negate nothing."""
    found, state = [], False
    for i, word in enumerate(words):
        if _BREAK.search(gaps[i]) or (word in _TURNS and i not in covered):
            state = False
        found.append(state)
        if i not in covered and not state:
            after = words[i + 1 : i + 3]
            negation = (word in _NEGATIONS or word.endswith("n't")) and "doubt" not in after
            state = (negation and after[:1] not in (["only"], ["just"])) or (
                word,
                *after[:1],
            ) in _NEGATING_PAIRS
    return found


def _denied(words: list[str], gaps: list[str], end: int) -> bool:
    """Whether "is not", "isn't" or "is wrong" follows."""
    clause = takewhile(lambda i: not _BREAK.search(gaps[i]), range(end, min(end + 3, len(words))))
    first, *others = [words[i] for i in clause] or [""]
    return (
        first.endswith("n't")
        or first == "cannot"
        or (first in _VERBS and not _DENIALS.isdisjoint(others))
    )


YES_NO = "Answer only using yes or no."  # with which ReasonAQA ends such a question


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def with_options(question: str, options: list[str]) -> str:
    """A question with its options as ReasonAQA writes them: "… A) rain B) wind"; of yes and no, a sentence that asks for one.

    Raises:
        ValueError: if there are options in the question already, fewer than two or more than 26, or two that are equal.
    """
    options = [option.strip() for option in options if option.strip()]
    try:
        " ".join([question, *options]).encode()
    except UnicodeEncodeError as error:
        raise ValueError("the question is no text in UTF-8") from error
    if not options:
        return question.strip()
    if question_kind(question) != "open":
        raise ValueError("the question names options already: leave them there, or give them apart")
    if not 2 <= len(options) <= len(LETTERS) or len(
        {option.casefold() for option in options}
    ) < len(options):
        raise ValueError(f"2 to {len(LETTERS)} options are wanted, each another")
    if any(re.match(r"\(?[A-Za-z]\)\s", option) for option in options):
        raise ValueError("options are given without letters; they get them here")
    if {option.casefold() for option in options} == {"yes", "no"}:
        return f"{question.strip()} {YES_NO}"
    asked = f"{question.strip()} " + " ".join(
        f"{letter}) {option}" for letter, option in zip(LETTERS, options)
    )
    if [option.text for option in option_spans(asked)] != options:
        raise ValueError(
            'an option that holds what begins one, such as "b) ", cannot be told from two'
        )
    return asked


def question_kind(question: str) -> str:
    """`mcq` if two options or more stand in a question, `yes_no` if it asks for yes or no in ReasonAQA's words, else `open`."""
    if len(option_spans(question)) > 1:
        return "mcq"
    return "yes_no" if question.strip().lower().endswith("using yes or no.") else "open"
