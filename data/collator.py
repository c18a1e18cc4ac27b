"""Rows to batches, in the data loader's workers: audio is decoded here, on the fly."""


class ReasonAQACollator:
    """Decodes the rows' clips and makes model inputs with labels; `generate=True` leaves the answers out."""

    def __init__(self, processor, generate: bool = False):
        self.processor = processor
        self.generate = generate

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.processor(
            text=[row["input"] for row in rows],
            audio=[row["audio"] for row in rows],
            answer=None if self.generate else [row["answer"] for row in rows],
            padding_side="left" if self.generate else "right",
        )
        return dict(batch)
