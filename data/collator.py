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
        batch = {"input_ids": batch.pop("input_ids"), **batch}  # the Trainer counts rows on the first
        if not self.generate:  # counted here, so that the model need not ask the GPU
            batch["label_index"] = (batch["labels"].flatten() != -100).nonzero()[:, 0]
            if "input_values" in batch:
                batch["num_samples"] = batch.pop("input_values_mask").sum(1).tolist()
        return batch
