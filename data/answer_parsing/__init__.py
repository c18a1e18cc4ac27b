"""The options in a question, and the option that a generated text names.

A text that names no option, or more than one, is unparsed and counts as wrong.
"""

from .parse import parse_answer, parse_option
from .question_options import (
    LETTERS,
    YES_NO_INSTRUCTION,
    Option,
    add_options,
    find_options,
    infer_answer_format,
    option_texts,
)

options = option_texts  # RENAMED
option_spans = find_options  # RENAMED
question_kind = infer_answer_format  # RENAMED
with_options = add_options  # RENAMED
