"""Metrics as text."""

import json
from pathlib import Path

import pytest
from support.evaluation import RAIN, make_output, make_predictions

from audiolm.evaluation.tables import format_table, main


@pytest.fixture
def predictions(tmp_path) -> Path:
    rows = make_predictions((RAIN, {"audio": make_output("A) rain", a=-1, b=-2)}))
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_format_table_aligns_columns():
    lines = format_table(("title", "n"), [("a long name in the first column", "12345")])
    assert lines == [
        "title                                   n",
        "a long name in the first column     12345",
    ]


@pytest.mark.parametrize("protocol", ["likelihood", "generate"])
def test_tables_command_prints_saved_predictions(predictions, capsys, protocol):
    main([str(predictions), "--protocol", protocol])
    assert "mcq 1 1.000" in " ".join(capsys.readouterr().out.split())


def test_tables_command_of_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^tables: .*No such file"):
        main([str(tmp_path / "none")])


def test_tables_command_without_the_protocol_is_one_line(predictions):
    predictions.write_text(predictions.read_text().replace("likelihood_normalised", "x"))
    with pytest.raises(SystemExit, match="holds no answers by likelihood_normalised"):
        main([str(predictions), "--protocol", "likelihood_normalised"])
