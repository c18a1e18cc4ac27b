"""Strategies and checks of the tests of hostile input."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def fuzz(count: int):
    """Decorates a test: hypothesis draws the same `count` examples in each run."""
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


# Lone surrogates and NUL too.
EVERY = st.characters(exclude_categories=())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(EVERY, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(EVERY, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NO_LIMIT = 2**62


def one_line(error: BaseException, start: object = "") -> None:
    """Asserts that an error's message is one line that begins with `start`."""
    message = str(error)
    assert message.startswith(str(start)), message[:3000]
    assert message.strip()
    assert "\n" not in message
    assert len(message) < 2000


# Pieces of audio paths.
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
