"""Parses the option that a generated text names."""

import re
from collections.abc import Mapping

from .letter_rules import Mention, TokenizedText, find_letters, tokenize
from .question_options import option_texts

_LEADING_LETTER = re.compile(r"\s*\(?([a-zA-Z])(?:[).:]|\s*$)")
# Punctuation that ends a clause, and so ends what a "not" governs.
_CLAUSE_END = re.compile(r"[,;.!?\n\u2013\u2014\u2026]|\s-+\s")
# Words at the start of an option that an answer may omit.
_OMISSIBLE = re.compile(r"^(a|an|the|i|it is|there is) ")

# fmt: off
NEGATIONS = {"not", "no", "never", "neither", "nor", "without", "cannot", "except", "unlike",
             "none", "nothing"}
# A "no" before these words is an answer. Before other words it is a determiner.
AFTER_NO = {"it", "there", "they", "he", "she", "that", "this", "i", "we", "you", "not", "because",
            "since", "the", "a", "an"}
# fmt: on
NEGATING_PAIRS = {("instead", "of"), ("rather", "than"), ("other", "than"), ("apart", "from")}
CLAUSE_STARTS = {"but", "because", "since", "however", "though", "although", "whereas", "while"}
VERBS = {"is", "are", "was", "were", "do", "does", "did", "can", "could"}
DENIALS = {"not", "never", "wrong", "incorrect", "false", "absent", "missing"}


def parse_answer(question_type: str, question: str, text: str) -> str | None:
    """Returns the option letter or "yes" or "no" that a text names, or None.

    The types mcq and entailment have letters. Types other than these and yes_no give None.

    - A text names an option by its letter, by its place ("the second option") or by its full text.
    - A letter counts if it stands alone or follows a cue such as "answer". See `names_an_option`.
    - The full text counts in any case and punctuation, without a leading article or "it is".
      Where one option's text contains another's, the longest match counts.
    - A negated option is not named: "not B", "rather than rain", "B is wrong".
      A negation ends with its clause. "No doubt" and "not only" negate nothing.
      A word of an option's text negates nothing either.
    - Two options, a letter with another option's text or an unused letter give None.
      A negation alone gives None, even with two options.
    - "yes" counts as a word. "no" counts unless it belongs to the next word ("no dog", "no doubt").
      Both of them, or a negated one ("not yes"), give None.
    """
    if question_type == "yes_no":
        return _parse_yes_no(text)
    if question_type in ("mcq", "entailment"):
        return parse_option(option_texts(question), text)
    return None


def parse_option(options: Mapping[str, str], text: str) -> str | None:
    """Returns the letter of the option that a text names by the rules of `parse_answer`, or None.

    Args:
        options: Option texts by lower-case letter.
        text: A generated text.
    """
    if not options:
        return None
    tokenized = tokenize(text)
    option_tokens = {letter: tokenize(option).tokens for letter, option in options.items()}
    leading = _LEADING_LETTER.match(text)
    if leading and leading[1].lower() in options:
        letter = leading[1].lower()
        if tokenized.tokens[1:] in ([], option_tokens[letter]):
            return letter
    exact = [letter for letter, option in option_tokens.items() if option == tokenized.tokens]
    if tokenized.tokens and len(exact) == 1:
        return exact[0]
    text_mentions = _find_option_texts(option_tokens, tokenized.tokens)
    covered = _covered_words(text_mentions)
    letter_mentions = find_letters(tokenized, list(options), covered)
    is_negated = _find_negated_words(tokenized, covered)
    named = {
        mention.letter
        for mention in _merge_adjacent([*text_mentions, *letter_mentions])
        if not is_negated[mention.start] and not _is_denied(tokenized, mention.end)
    }
    return named.pop() if len(named) == 1 and named <= options.keys() else None


def _parse_yes_no(text: str) -> str | None:
    tokenized = tokenize(text)
    answers = {
        i
        for i, word in enumerate(tokenized.tokens)
        if word == "yes" or (word == "no" and _is_answer_no(tokenized, i))
    }
    is_negated = _find_negated_words(tokenized, answers)
    named = {tokenized.tokens[i] for i in answers if not is_negated[i]}
    return named.pop() if len(named) == 1 else None


def _is_answer_no(tokenized: TokenizedText, i: int) -> bool:
    """Whether the "no" at word `i` stands for itself."""
    if i + 1 == len(tokenized.tokens) or tokenized.tokens[i + 1] in AFTER_NO:
        return True
    gap = tokenized.gaps[i + 1]
    return bool(gap.strip(" ")) and gap != "-"


def _find_option_texts(option_tokens: Mapping[str, list[str]], tokens: list[str]) -> list[Mention]:
    """Finds full option texts, except those within a longer one."""
    line = f" {' '.join(tokens)} "
    mentions = []
    for letter, option in option_tokens.items():
        core = _OMISSIBLE.sub("", " ".join(option))
        if option and f" {core} " in line:
            part = core.split(" ")
            starts = _find_part(part, tokens)
            mentions += [Mention(start, start + len(part), letter) for start in starts]
    mentions.sort(key=lambda mention: (mention.start, -mention.end, mention.letter))
    outermost: list[Mention] = []
    for mention in mentions:
        last = outermost[-1] if outermost else Mention(0, 0, "")
        has_same_words = (mention.start, mention.end) == (last.start, last.end)
        if mention.end > last.end or has_same_words:
            outermost.append(mention)
    return outermost


def _find_part(part: list[str], tokens: list[str]) -> list[int]:
    """Returns where `part` starts in `tokens`, in linear time (Knuth, Morris and Pratt)."""
    line = [*part, None, *tokens]
    # How many words before each position, itself included, equal the first words of `line`.
    borders = [0]
    for word in line[1:]:
        border = borders[-1]
        while border and line[border] != word:
            border = borders[border - 1]
        if line[border] == word:
            border += 1
        borders.append(border)
    return [end - 2 * len(part) for end, border in enumerate(borders) if border == len(part)]


def _covered_words(mentions: list[Mention]) -> set[int]:
    """Returns the words inside mentions. Neither starts nor ends of `mentions` decrease."""
    covered: set[int] = set()
    covered_until = 0
    for mention in mentions:
        covered.update(range(max(mention.start, covered_until), mention.end))
        covered_until = mention.end
    return covered


def _merge_adjacent(mentions: list[Mention]) -> list[Mention]:
    """Merges mentions of an option that follow one another: "A) rain", "rain (A)"."""
    merged: list[Mention] = []
    for mention in sorted(mentions):
        if merged and (merged[-1].end, merged[-1].letter) == (mention.start, mention.letter):
            mention = mention._replace(start=merged.pop().start)
        merged.append(mention)
    return merged


def _find_negated_words(tokenized: TokenizedText, covered: set[int]) -> list[bool]:
    """Returns for each word whether a negation precedes it in its clause.

    Words of an option's text, `covered`, do not negate.
    """
    is_negated = []
    is_active = False
    for i, word in enumerate(tokenized.tokens):
        if _CLAUSE_END.search(tokenized.gaps[i]) or (word in CLAUSE_STARTS and i not in covered):
            is_active = False
        is_negated.append(is_active)
        if not is_active and i not in covered:
            is_active = _is_negation(word, tokenized.tokens[i + 1 : i + 3])
    return is_negated


def _is_negation(word: str, next_tokens: list[str]) -> bool:
    next_token = next_tokens[0] if next_tokens else ""
    if (word, next_token) in NEGATING_PAIRS:
        return True
    is_negative = word in NEGATIONS or word.endswith("n't")
    return is_negative and "doubt" not in next_tokens and next_token not in ("only", "just")


def _is_denied(tokenized: TokenizedText, end: int) -> bool:
    """Whether "is not", "isn't" or "is wrong" follows a mention that ends before word `end`."""
    clause = []
    for word, gap in zip(tokenized.tokens[end : end + 3], tokenized.gaps[end : end + 3]):
        if _CLAUSE_END.search(gap):
            break
        clause.append(word)
    if not clause:
        return False
    verb = clause[0]
    if verb.endswith("n't") or verb == "cannot":
        return True
    return verb in VERBS and not DENIALS.isdisjoint(clause[1:])
