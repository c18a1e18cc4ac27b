"""A table of labelled recordings, with files that are empty until a test writes sound to them."""

from pathlib import Path

from audiolm.data.soundscapes.recordings import RecordingTable


def make_table(folder: Path, labels, takes: int = 2, folds: int = 5) -> RecordingTable:
    """Writes a table with `takes` recordings of one source for each label and fold."""
    (folder / "audio").mkdir(parents=True)
    lines = ["filename,category,fold,src_file"]
    for number, label in enumerate(labels):
        for fold in range(folds):
            for take in range(takes):
                name = f"{fold}-{number}-{take}.wav"
                (folder / "audio" / name).touch()
                lines.append(f"{name},{label},{fold},{number}-{fold}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return RecordingTable(
        str(folder / "table.csv"), str(folder / "audio"), "category", fold="fold", group="src_file"
    )
