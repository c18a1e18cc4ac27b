"""Rules for the letters and places that name an option in a generated text."""

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

# "isn't" and "C#" are one word.
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*[#♯♭]*")
_DASH = re.compile(r"\s+[-\u2013\u2014:=]")
_OPENING_QUOTES = tuple("([{<*\"'`«\u201c\u2018")

CUES = {"option", "answer", "choice", "letter"}
# fmt: off
BEFORE_LETTER = {"is", "it's", "be", "not", "or", "and", "either", "neither", "nor", "choose",
                 "pick", "select", "say"}
# fmt: on
# None of these follows the article "a".
AFTER_LETTER = {"is", "was", "or", "and", "because", "but", "since", "instead"}
ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5, "last": -1}
NUMBERS = {"one": 0, "two": 1, "three": 2, "four": 3, "five": 4, "six": 5}
NUMBERS |= {str(place + 1): place for place in NUMBERS.values()}


@dataclass(frozen=True)
class TokenizedText:
    """A text in lower case.

    Attributes:
        tokens: Its words.
        gaps: What stands before each word. The last gap follows the last word.
    """

    tokens: list[str]
    gaps: list[str]


class Mention(NamedTuple):
    """Words of a text, from `start` to before `end`, which name an option. "?" is no option."""

    start: int
    end: int
    letter: str


class LetterContext(NamedTuple):
    """A single letter in a generated text, with what stands around it.

    Attributes:
        letter: The letter, in lower case.
        second_word_before: The word before `word_before`. Missing words are "".
        word_before: The previous word.
        word_after: The next word.
        text_before: Punctuation and spaces before the letter.
        text_after: Punctuation and spaces after the letter.
        precedes_option_text: Whether the text of an option follows.
    """

    letter: str
    second_word_before: str
    word_before: str
    word_after: str
    text_before: str
    text_after: str
    precedes_option_text: bool


def tokenize(text: str) -> TokenizedText:
    """Splits a text into lower-case words and gaps."""
    text = text.lower().replace("\u2019", "'")
    spans = [match.span() for match in _WORD.finditer(text)]
    starts = [start for start, _ in spans]
    ends = [end for _, end in spans]
    gaps = [text[end:start] for end, start in zip([0, *ends], [*starts, len(text)])]
    return TokenizedText([text[start:end] for start, end in spans], gaps)


def letter_context(text: TokenizedText, i: int, covered: Container[int] = ()) -> LetterContext:
    """Returns the context of word `i`. `covered` are the words of option texts."""
    tokens = text.tokens
    return LetterContext(
        letter=tokens[i],
        second_word_before=tokens[i - 2] if i > 1 else "",
        word_before=tokens[i - 1] if i > 0 else "",
        word_after=tokens[i + 1] if i + 1 < len(tokens) else "",
        text_before=text.gaps[i],
        text_after=text.gaps[i + 1],
        precedes_option_text=i + 1 in covered,
    )


def find_letter(text: str) -> LetterContext:
    """Returns the context of the first single letter in a text, for the examples below."""
    tokenized = tokenize(text)
    i = next(i for i, token in enumerate(tokenized.tokens) if len(token) == 1)
    return letter_context(tokenized, i)


# ------------------------------------------------------------------------------------------------
# Rules. Tests run their examples.


def is_part_of_a_word(context: LetterContext) -> bool:
    """The letter belongs to the word before it.

    >>> is_part_of_a_word(find_letter("sound(s) of rain"))
    True
    """
    is_glued = context.text_before[-1:] in ("(", ".", "-", "&")
    return bool(context.word_before) and is_glued and not re.search(r"\s", context.text_before)


def is_set_off(context: LetterContext) -> bool:
    """Punctuation or a dash or the end of the text follows.

    >>> is_set_off(find_letter("b: rain"))
    True
    >>> is_set_off(find_letter("e.g. rain"))
    False
    """
    if not context.word_after or _DASH.match(context.text_after):
        return True
    return context.text_after != "." and context.text_after[:1] not in (" ", "-", "&")


def is_quoted(context: LetterContext) -> bool:
    """The letter stands in brackets or quotes or asterisks.

    >>> is_quoted(find_letter("It says 'E' here."))
    True
    """
    return is_set_off(context) and context.text_before.endswith(_OPENING_QUOTES)


def opens_the_text(context: LetterContext) -> bool:
    """The text is the letter, or starts with it and a bracket or dot or colon.

    >>> opens_the_text(find_letter("E: thunder"))
    True
    """
    is_label = not context.word_after or context.text_after[:1] in (")", ".", ":")
    return not context.word_before and is_label and is_set_off(context)


def follows_a_cue(context: LetterContext) -> bool:
    """The text announces an option.

    >>> follows_a_cue(find_letter("option E here"))
    True
    >>> follows_a_cue(find_letter("The answer is E."))
    True
    """
    if context.word_before in CUES:
        return True
    is_announced = context.word_before in ("is", "was") and context.second_word_before in CUES
    return is_announced and is_set_off(context)


def follows_a_choice(context: LetterContext) -> bool:
    """A word such as "pick" or "either" precedes.

    >>> follows_a_choice(find_letter("pick B please"))
    True
    """
    return context.word_before in BEFORE_LETTER


def precedes_a_clause(context: LetterContext) -> bool:
    """A word such as "is" or "because" follows.

    >>> precedes_a_clause(find_letter("B because it rains"))
    True
    """
    return context.word_after in AFTER_LETTER


def precedes_option_text(context: LetterContext) -> bool:
    """The text of an option follows.

    >>> precedes_option_text(letter_context(tokenize("B rain"), 0, covered={1}))
    True
    """
    return context.precedes_option_text


def is_chosen_article(context: LetterContext) -> bool:
    """A word such as "pick" precedes "a" or "i", and no noun follows.

    >>> is_chosen_article(find_letter("pick A."))
    True
    >>> is_chosen_article(find_letter("it is a dog"))
    False
    """
    return follows_a_choice(context) and is_set_off(context)


def is_article_before_a_clause(context: LetterContext) -> bool:
    """A word such as "is" follows "a".

    >>> is_article_before_a_clause(find_letter("so A is right"))
    True
    """
    return context.letter == "a" and precedes_a_clause(context)


def is_article_label(context: LetterContext) -> bool:
    """An "a" or "i" starts the text, or a closing bracket or colon or slash follows.

    >>> is_article_label(find_letter("maybe A/B"))
    True
    """
    is_label = not context.word_before or context.text_after[:1] in (")", "]", ":", "/")
    return is_label and is_set_off(context)


# One of these is enough for any letter. A letter of no option makes the text unparsed.
ANY_LETTER_RULES = (is_quoted, opens_the_text, follows_a_cue)
# One of these is enough for a letter of an option.
OPTION_LETTER_RULES = (is_set_off, follows_a_choice, precedes_a_clause, precedes_option_text)
# "a" and "i" are words too, and a truncated text may end with "a".
ARTICLES = ("a", "i")
ARTICLE_RULES = (is_chosen_article, is_article_before_a_clause, is_article_label)


def names_an_option(context: LetterContext, letters: list[str]) -> bool:
    """Decides by the rules above whether a letter names one of the options `letters`.

    >>> names_an_option(find_letter("it is a dog"), ["a"])
    False
    """
    if is_part_of_a_word(context):
        return False
    if any(rule(context) for rule in ANY_LETTER_RULES):
        return True
    rules = ARTICLE_RULES if context.letter in ARTICLES else OPTION_LETTER_RULES
    return context.letter in letters and any(rule(context) for rule in rules)


# ------------------------------------------------------------------------------------------------


def find_letters(text: TokenizedText, letters: list[str], covered: set[int]) -> list[Mention]:
    """Finds what names an option by letter or place, outside of the `covered` option texts."""
    mentions = []
    for i, token in enumerate(text.tokens):
        if i in covered:
            continue
        mention = _place_mention(text.tokens, i, letters)
        if mention:
            mentions.append(mention)
            continue
        is_letter = len(token) == 1 and token.isalpha()
        if is_letter and names_an_option(letter_context(text, i, covered), letters):
            mentions.append(Mention(i, i + 1, token))
    return mentions


def _place_mention(tokens: list[str], i: int, letters: list[str]) -> Mention | None:
    """Returns what word `i` names by place: "second option", "option two".

    >>> _place_mention("the last one".split(), 1, ["a", "b"])
    Mention(start=1, end=3, letter='b')
    """
    token = tokens[i]
    next_token = tokens[i + 1] if i + 1 < len(tokens) else ""
    if token in ORDINALS:
        is_place = next_token in CUES or next_token == "one" or tokens in ([token], ["the", token])
        place, end = ORDINALS[token], min(i + 2, len(tokens))
    else:
        is_place = token in NUMBERS and i > 0 and tokens[i - 1] in CUES
        place, end = NUMBERS.get(token, 0), i + 1
    if not is_place:
        return None
    return Mention(i, end, letters[place] if place < len(letters) else "?")
