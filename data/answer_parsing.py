"""The options in a question, and the option that a generated text names.

A text that names no option, or more than one, is unparsed and counts as wrong.
The module is long because the rules of parsing belong together.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from ..runtime import UserError
from .answer_text import (
    CUES,
    SCRIPT_MARK,
    TokenizedText,
    final_answers,
    strip_thoughts,
    tokenize,
)

# ReasonAQA ends its yes/no questions with this sentence.
YES_NO_INSTRUCTION = "Answer only using yes or no."

# An option ends where white space begins. Trying each space of a run would take quadratic time.
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-zA-Z])\)\s*(.*?)(?=(?<!\s)\s+\(?[a-zA-Z]\)\s|$)", re.S)
_DASH = re.compile(r"\s+[-\u2013\u2014:=]")
_OPENING_QUOTES = tuple("([{<*\"'`«\u201c\u2018")
_LEADING_LETTER = re.compile(r"\s*\(?([a-zA-Z])(?:[).:]|\s*$)")
# Punctuation that ends a clause, and so ends what a "not" governs.
_CLAUSE_END = re.compile(r"[,;.!?\n\u2013\u2014\u2026]|\s-+\s")
# "a" and "i" are words too, and a truncated text may end with "a".
ARTICLES = ("a", "i")
# Words at the start of an option that an answer may omit.
_OMISSIBLE = re.compile(r"^(a|an|the|i|it is|there is) ")

# fmt: off
BEFORE_LETTER = {"is", "it's", "be", "not", "or", "and", "either", "neither", "nor", "choose",
                 "pick", "select", "say"}
# None of these follows the article "a".
AFTER_LETTER = {"is", "was", "or", "and", "because", "but", "since", "instead"}
ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5, "last": -1}
NUMBERS = {"one": 0, "two": 1, "three": 2, "four": 3, "five": 4, "six": 5}
NUMBERS |= {str(place + 1): place for place in NUMBERS.values()}
NEGATIONS = {"not", "no", "never", "neither", "nor", "without", "cannot", "except", "unlike",
             "none", "nothing"}
NEGATING_PAIRS = {("instead", "of"), ("rather", "than"), ("other", "than"), ("apart", "from"),
                  ("anything", "but"), ("everything", "but"), ("all", "but")}
NEGATIVE_ENDINGS = ("n't", "不是")
# A "no" before these words is an answer. Before other words it is a determiner.
AFTER_NO = {"it", "there", "they", "he", "she", "that", "this", "i", "we", "you", "not",
            "because", "since", "the", "a", "an", "yes", "no"}
CLAUSE_STARTS = {"but", "because", "since", "however", "though", "although", "whereas", "while"}
VERBS = {"is", "are", "was", "were", "do", "does", "did", "can", "could"}
DENIALS = {"not", "never", "wrong", "incorrect", "false", "absent", "missing"}
# fmt: on


class Option(NamedTuple):
    """An option in a question."""

    letter: str  # As written.
    text: str  # Without surrounding white space.
    start: int  # Where the text starts in the question.
    end: int  # Where it ends, with trailing white space.


class Mention(NamedTuple):
    """Words of a text, from `start` to before `end`, which name an option. "?" is no option."""

    start: int
    end: int
    letter: str


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


def replace_texts(question: str, options: Sequence[Option], texts: Sequence[str]) -> str:
    """Returns a question with other texts of its options, whose letters stay."""
    # From the last option on, so that the places of the others stay right.
    for option, text in reversed(list(zip(options, texts))):
        question = question[: option.start] + text + question[option.end :]
    return question


def infer_answer_format(question: str) -> str:
    """Returns `mcq` for a question with two or more options, `yes_no` or `open`."""
    if len(find_options(question)) > 1:
        return "mcq"
    return "yes_no" if question.strip().lower().endswith("using yes or no.") else "open"


def add_options(question: str, options: list[str]) -> str:
    """Returns a question with its options as ReasonAQA writes them: "… A) rain B) wind".

    The options "yes" and "no" become a sentence that asks for one of them, if it is missing.

    Raises:
        UserError: The question is empty or has options already, there are fewer than 2 or more than
            26, two are equal, or a text cannot be written as an option.
    """
    question = question.strip()
    if not question:
        raise UserError("the question is empty")
    options = [option.strip() for option in options if option.strip()]
    distinct = {option.casefold() for option in options}
    try:
        " ".join([question, *options]).encode()
    except UnicodeEncodeError as error:
        raise UserError("the question is not valid UTF-8 text") from error
    if not options:
        return question
    if distinct == {"yes", "no"} and infer_answer_format(question) == "yes_no":
        return question
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


def _names_an_option(
    text: TokenizedText, i: int, letters: Collection[str], covered: Collection[int]
) -> bool:
    """Whether the letter at word `i` names an option. `covered` are words of option texts."""
    letter, gap, next_gap = text.tokens[i], text.gaps[i], text.gaps[i + 1]
    second_before, before = ["", "", *text.tokens[max(0, i - 2) : i]][-2:]
    after = text.tokens[i + 1] if i + 1 < len(text.tokens) else ""
    if before and re.fullmatch(r"\S*[(.&-]", gap):
        return False  # "sound(s)"
    # Punctuation or a dash or the end of the text follows: "b: rain", but not "e.g."
    is_set_off = not after or bool(_DASH.match(next_gap))
    is_set_off |= next_gap != "." and next_gap[:1] not in (" ", "-", "&")
    # A letter of no option makes the text unparsed if it is in brackets or quotes, opens the text
    # ("E: thunder") or follows a cue ("option E here", "The answer is E.").
    is_quoted = gap.endswith(_OPENING_QUOTES)
    opens_text = not before and (not after or next_gap[:1] in (")", ".", ":"))
    follows_cue = before in ("is", "was") and second_before in CUES
    if before in CUES or (is_set_off and (is_quoted or opens_text or follows_cue)):
        return True
    follows_choice = before in BEFORE_LETTER  # "pick B please"
    precedes_clause = after in AFTER_LETTER  # "B because it rains"
    if letter not in ARTICLES:
        is_named = is_set_off or follows_choice or precedes_clause or i + 1 in covered
        return letter in letters and is_named
    # A label starts the text, or a closing bracket or colon or slash follows: "A/B".
    is_label = not before or next_gap[:1] in (")", "]", ":", "/")
    is_foreign = SCRIPT_MARK in (gap, next_gap)  # "答案是A"
    is_clause = letter == "a" and precedes_clause  # "so A is right"
    is_named = is_foreign or is_clause or (is_set_off and (follows_choice or is_label))
    return letter in letters and is_named


def parse_answer(question_type: str, question: str, text: str) -> str | None:
    """Returns the option letter or "yes" or "no" that a text names, or None.

    - A text names an option by its letter, by its place ("the second option") or by its full text.
    - A letter counts if it is set off, is chosen ("pick B") or stands before its option's text.
    - The full text counts in any case and punctuation, without a leading article or "it is".
      Where one option's text contains another's, the longest match counts.
    - A negated option is not named: "not B", "rather than rain", "B is wrong".
      A negation ends with its clause. "No doubt" and "not only" negate nothing.
    - Two options, an unused letter or a negation alone give None. So do open question types.
    - A final answer decides: what follows "The answer is", "Final answer:" or
      "</think>", or is in LaTeX's box. Of several, the last one decides.
    - An article at the end of the text names nothing: "The sound is a". Two bare letters are two
      options: "A B".
    - "no" does not count if it belongs to the next word ("no dog", "no doubt").
    """
    if question_type == "yes_no":
        return _decide(tokenize(strip_thoughts(text)), {"yes", "no"}, _find_yes_no)
    if question_type in ("mcq", "entailment"):
        return parse_option(option_texts(question), text)
    return None


def _is_bare_letters(tokens: list[str]) -> bool:
    return all(len(token) == 1 and token.isascii() for token in tokens)


def parse_option(options: Mapping[str, str], text: str) -> str | None:
    """Returns the letter of the option that a text names by the rules of `parse_answer`, or None.

    Args:
        options: Option texts by lower-case letter.
        text: A generated text.
    """
    if not options:
        return None
    option_tokens = {letter: tokenize(option).tokens for letter, option in options.items()}
    tokenized = tokenize(text)
    leading = _LEADING_LETTER.match(text)
    letter = leading[1].lower() if leading else ""
    if letter in options and tokenized.tokens[1:] in ([], option_tokens[letter]):
        return letter
    exact = [letter for letter, option in option_tokens.items() if option == tokenized.tokens]
    if tokenized.tokens and len(exact) == 1:
        return exact[0]
    has_spelled_option = any(map(_is_bare_letters, option_tokens.values()))
    if _is_bare_letters(tokenized.tokens) and not has_spelled_option:
        letters = set(tokenized.tokens)
        return letters.pop() if len(letters) == 1 and letters <= options.keys() else None
    tokenized = tokenize(strip_thoughts(text))
    return _decide(tokenized, options.keys(), lambda part: _find_options(part, option_tokens))


def named_letter_and_words(question: str, text: str) -> tuple[str | None, str | None]:
    """Returns the option that a text names by letter or place, and the one that it names by words.

    Each is a lower-case letter. It is None if the text names no option so, or several.
    """
    option_tokens = {
        letter: tokenize(option).tokens for letter, option in option_texts(question).items()
    }
    tokenized = tokenize(strip_thoughts(text))
    by_letter = _decide(
        tokenized, option_tokens, lambda part: _find_options(part, option_tokens, by_words=False)
    )
    by_words = _decide(
        tokenized, option_tokens, lambda part: _find_options(part, option_tokens, by_letter=False)
    )
    return by_letter, by_words


def _decide(
    text: TokenizedText, options: Collection[str], find: Callable[[TokenizedText], set[str]]
) -> str | None:
    """Returns the one option that the final answer names, or else the whole text."""
    is_negated = _find_negated_words(text, set())
    parts = [answer.text for answer in final_answers(text) if not is_negated[answer.cue]]
    for part in (*parts, text):
        named = find(part)
        if named:
            return named.pop() if len(named) == 1 and named <= set(options) else None
    return None


def _find_options(
    text: TokenizedText,
    option_tokens: Mapping[str, list[str]],
    by_letter: bool = True,
    by_words: bool = True,
) -> set[str]:
    """Returns the letters of the options that a text names. "?" is no option."""
    by_text, covered = _find_option_texts(option_tokens, text.tokens)
    mentions = by_text if by_words else []
    if by_letter:
        mentions = mentions + _find_letters(text, list(option_tokens), covered)
    is_negated = _find_negated_words(text, covered)
    return {
        mention.letter
        for mention in _merge_adjacent(mentions)
        if not is_negated[mention.start] and not _is_denied(text, mention.end)
    }


def _find_yes_no(text: TokenizedText) -> set[str]:
    answers = set()
    for i, word in enumerate(text.tokens):
        if word == "yes" or (word == "no" and _is_answer_no(text, i)):
            answers.add(i)
    is_negated = _find_negated_words(text, answers)
    return {text.tokens[i] for i in answers if not is_negated[i]}


def _is_answer_no(text: TokenizedText, i: int) -> bool:
    if i + 1 == len(text.tokens) or text.tokens[i + 1] in AFTER_NO:
        return True
    gap = text.gaps[i + 1]
    return bool(gap.strip(" ")) and gap != "-"


def _find_letters(text: TokenizedText, letters: list[str], covered: set[int]) -> list[Mention]:
    """Finds what names an option by letter or place, outside of the `covered` option texts."""
    mentions = []
    for i, token in enumerate(text.tokens):
        if i in covered:
            continue
        mention = _place_mention(text.tokens, i, letters)
        is_letter = len(token) == 1 and token.isalpha()
        if mention:
            mentions.append(mention)
        elif is_letter and _names_an_option(text, i, letters, covered):
            mentions.append(Mention(i, i + 1, token))
    return mentions


def _place_mention(tokens: list[str], i: int, letters: list[str]) -> Mention | None:
    """Returns what word `i` names by place: "second option", "option two"."""
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


def _find_option_texts(
    option_tokens: Mapping[str, list[str]], tokens: list[str]
) -> tuple[list[Mention], set[int]]:
    """Finds full option texts, except those within a longer one, and the words in them."""
    mentions = []
    for letter, option in option_tokens.items():
        part = _OMISSIBLE.sub("", " ".join(option)).split()
        for start, token in enumerate(tokens):
            end = start + len(part)
            if part and token == part[0] and tokens[start:end] == part:
                mentions.append(Mention(start, end, letter))
    mentions.sort(key=lambda mention: (mention.start, -mention.end, mention.letter))
    outermost: list[Mention] = []
    covered: set[int] = set()
    last = Mention(0, 0, "")
    for mention in mentions:
        if mention.end > last.end or (mention.start, mention.end) == (last.start, last.end):
            outermost.append(mention)
            covered.update(range(max(mention.start, last.end), mention.end))
            last = mention
    return outermost, covered


def _merge_adjacent(mentions: list[Mention]) -> list[Mention]:
    """Merges mentions of an option that follow one another: "A) rain", "rain (A)"."""
    merged: list[Mention] = []
    for mention in sorted(mentions):
        if merged and (merged[-1].end, merged[-1].letter) == (mention.start, mention.letter):
            mention = mention._replace(start=merged.pop().start)
        merged.append(mention)
    return merged


def _find_negated_words(text: TokenizedText, covered: set[int]) -> list[bool]:
    """Returns for each word whether a negation outside of `covered` precedes it in its clause."""
    is_negated = []
    is_active = False
    for i, word in enumerate(text.tokens):
        is_pair = i > 0 and (text.tokens[i - 1], word) in NEGATING_PAIRS
        is_start = word in CLAUSE_STARTS and i not in covered and not is_pair
        if _CLAUSE_END.search(text.gaps[i]) or is_start:
            is_active = False
        is_negated.append(is_active)
        if not is_active and i not in covered:
            is_active = _is_negation(word, text.tokens[i + 1 : i + 3])
    return is_negated


def _is_negation(word: str, next_tokens: list[str]) -> bool:
    next_token = next_tokens[0] if next_tokens else ""
    if (word, next_token) in NEGATING_PAIRS:
        return True
    is_negative = word in NEGATIONS or word.endswith(NEGATIVE_ENDINGS)
    return is_negative and "doubt" not in next_tokens and next_token not in ("only", "just")


def _is_denied(text: TokenizedText, end: int) -> bool:
    """Whether "is not", "isn't" or "is wrong" follows a mention that ends before word `end`."""
    clause = []
    for word, gap in zip(text.tokens[end : end + 3], text.gaps[end : end + 3]):
        if _CLAUSE_END.search(gap):
            break
        clause.append(word)
    verb = clause[0] if clause else ""
    is_negative = verb == "cannot" or verb.endswith("n't")
    return is_negative or (verb in VERBS and not DENIALS.isdisjoint(clause[1:]))
