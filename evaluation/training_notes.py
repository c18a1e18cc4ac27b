"""What a reader of a model's answers should know about its training."""

from collections.abc import Mapping

# The protocol trains on 320,000 examples. A model that saw far fewer may be sure and wrong.
FEW_EXAMPLES = 50_000


def training_notes(training: Mapping | None) -> list[str]:
    """Returns what limits the answers of a model, from `training` of its configuration.

    A published model of other authors has no such record, and so no notes.
    """
    training = training or {}
    data = training.get("data") or {}
    notes = []
    examples = None
    if training.get("steps") and training.get("rows a step"):
        examples = training["steps"] * training["rows a step"]
    elif training.get("epochs") and data.get("rows"):
        examples = round(training["epochs"] * data["rows"])
    if examples is not None and examples < FEW_EXAMPLES:
        notes.append(f"barely trained, on {examples:,} examples")
    if data.get("synthetic"):
        notes.append("trained on synthetic sounds alone")
    return notes
