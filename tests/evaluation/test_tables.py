"""Metrics as text."""

from audiolm.evaluation.tables import format_table


def test_format_table_aligns_columns():
    lines = format_table(("title", "n"), [("a long name in the first column", "12345")])
    assert lines == [
        "title                                   n",
        "a long name in the first column     12345",
    ]
