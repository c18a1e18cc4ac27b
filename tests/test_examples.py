"""The notebook runs from its first cell to its last, and shows what its text says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "ask_and_train.ipynb"


def outputs(book) -> tuple[str, int]:
    """What its cells print, and how many pictures they show."""
    built = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in built if output.get("name") == "stdout")
    return text, sum("image/png" in output.get("data", {}) for output in built)


@pytest.mark.slow
def test_the_notebook(tmp_path):
    book = nbformat.read(NOTEBOOK, 4)
    saved = outputs(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell["outputs"] = []
    NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text, pictures = outputs(book)
    assert pictures == saved[1] == 2 and len(text.splitlines()) == len(saved[0].splitlines())
    for output_values in (text, saved[0]):
        encoded = re.search(r"(?m)^audio: alarm .*D\) alarm (\d+)", output_values)
        muted = re.search(r"no audio: .*D\) alarm (\d+)", output_values)
        assert int(encoded[1]) > 90 > 30 > int(muted[1])
        total, argv, right = map(
            int,
            re.search(
                r"of (\d+) sounds in 8 scenes, the nearest word of (\d+) names (\d+)", output_values
            ).groups(),
        )
        assert total == 18 and argv == 20 and right >= 15
        right, total = map(
            int, re.search(r"(\d+) of (\d+) answers are now word for word", output_values).groups()
        )
        assert total == 96 and right >= 40
