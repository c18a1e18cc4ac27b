"""What the tests of hostile input share: it gets one line of why it is refused, no traceback, no hang, and bounded memory."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def fuzz(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
        ],
    )


EVERY = st.characters(exclude_categories=())  # lone surrogates and NUL too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(EVERY, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(EVERY, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NO_LIMIT = 2**62


def one_line(error: BaseException, start: object = "") -> None:
    said = str(error)
    assert said.startswith(str(start)) and said.strip() and "\n" not in said and len(said) < 2000, (
        said[:3000]
    )


PIECES = [
    "..",
    ".",
    "/",
    "\\",
    "a",
    "b",
    "x.wav",
    "link",
    "&",
    "&#46;",
    "&#x2e;",
    "&period;",
    "&#47;",
    "&sol;",
    "&bsol;",
    "&amp;",
    "&#0;",
    "\0",
    "C:",
    "~",
    "%2e%2e",
    " ",
    "\n",
    "é",
    "\u202e",
    "\ud800",
    "n" * 10_000,
]
