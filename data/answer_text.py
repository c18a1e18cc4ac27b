"""Generated texts as words, and the part of a text that states the final answer."""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# "isn't" and "C#" are one word.
_WORD = re.compile(r"([^\W_]+(?:'[^\W_]+)*[#♯♭]*)")
# Between a Latin letter and a letter of another script, as in "答案是B".
_SCRIPT_CHANGE = re.compile(
    r"(?<=[a-z])(?=[\u0370-\uffff])(?=[^\W\d_])|(?<=[\u0370-\uffff])(?<=[^\W\d_])(?=[a-z])"
)
# It separates words without being a space.
SCRIPT_MARK = "\u200b"
END_OF_THOUGHT = "</think>"
CUES = {"option", "answer", "choice", "letter"}
# A final answer ends with its sentence, and before its reason.
_SENTENCE_END = re.compile(r"[.!?;}](\s|$)|[\n}]")
REASONS = {"because", "since", "as", "though", "although", "however", "while", "explanation"}


class TokenizedText(NamedTuple):
    """The lower-case words of a text, and what stands before each and after the last."""

    tokens: list[str]
    gaps: list[str]


class FinalAnswer(NamedTuple):
    """What follows a cue such as "Final answer:", up to the end of its clause."""

    cue: int  # Number of the cue's word in the whole text.
    text: TokenizedText


def tokenize(text: str) -> TokenizedText:
    """Splits a text into lower-case words without accents, and gaps. "can not" is "cannot"."""
    decomposed = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    plain = "".join(char for char in decomposed if not unicodedata.combining(char)).lower()
    marked = _SCRIPT_CHANGE.sub(SCRIPT_MARK, plain)
    parts = _WORD.split(re.sub(r"\bcan not\b", "cannot", marked))
    return TokenizedText(tokens=parts[1::2], gaps=parts[::2])


def strip_thoughts(text: str) -> str:
    """Returns what follows the thoughts of a text, without an article at its end.

    A text that was cut may end with the article of the next word: "The sound is a".
    """
    text = text.rpartition(END_OF_THOUGHT)[2].strip() or text
    stripped = text.rstrip()
    before = stripped[:-1].rstrip()
    is_last_word = stripped.endswith("a") and stripped[-2:-1].isspace() and before[-1].isalnum()
    if is_last_word and before.split()[-1].lower() not in CUES:
        return before
    return text


def final_answers(text: TokenizedText) -> Iterator[FinalAnswer]:
    """Yields what follows each cue of a final answer, the last one first.

    Cues are "the answer is", "Answer:", "final answer" and LaTeX's box.
    """
    end = len(text.tokens)
    for cue in reversed(range(len(text.tokens))):
        start = _start_of_answer(text, cue)
        if start is None or start >= end:
            continue
        stop = next(stop for stop in range(start, end) if _ends_after(text, stop, end)) + 1
        part = TokenizedText(text.tokens[start:stop], text.gaps[start : stop + 1])
        yield FinalAnswer(cue, part)
        end = cue


def _start_of_answer(text: TokenizedText, cue: int) -> int | None:
    """Returns the number of the first word after a cue, or None if the word is no cue."""
    token = text.tokens[cue]
    if token == "boxed":
        return cue + 1
    if token not in CUES:
        return None
    following = text.tokens[cue + 1 : cue + 3]
    if following[:1] in (["is"], ["was"]):
        return cue + 2
    if following in (["should", "be"], ["must", "be"], ["would", "be"]):
        return cue + 3
    is_final = cue > 0 and text.tokens[cue - 1] == "final"
    is_label = token == "answer" and re.match(r"\W*[:=]", text.gaps[cue + 1])
    return cue + 1 if is_final or is_label else None


def _ends_after(text: TokenizedText, number: int, end: int) -> bool:
    """Whether a clause ends after a word: its sentence, a reason or the text."""
    return (
        number + 1 == end
        or text.tokens[number + 1] in REASONS
        or bool(_SENTENCE_END.search(text.gaps[number + 1]))
    )
