"""Writes the model card of a trained AudioLM from the record of its run and its results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

# Licences of published parts. The licence of any other part is reported as not known.
LICENCES = {
    "HuggingFaceTB/SmolLM2-135M": "Apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Apache-2.0",
    "kyutai/mimi": "CC-BY-4.0",
    "microsoft/msclap": "MIT",
}
RESULTS = "## Results\n"
EVAL_FILE = ".eval_results/audiolm.yaml"
TEMPLATE = Path(__file__).with_name("model_card.md")
# Names of settings in the card, where the record of a run has another one.
SETTING_NAMES = {
    "rows a step": "batch size",
    "seconds used of a clip": "seconds used of each clip",
    "language model trains": "trained part of the language model",
}


@dataclass
class CardFacts:
    """What a model card says about a trained model."""

    encoder_type: str
    no_audio: bool
    initialised_from: str | None  # the trained AudioLM that training started from
    encoder: dict[str, str]  # name, licence and, if known, `revision` or `sha256`
    text_model: dict[str, str]  # the same of the language model
    data: dict[str, Any]  # name, `sha256`, `rows` and `clips`
    settings: dict[str, Any]  # those that are None are not shown
    code: dict[str, str]  # versions
    max_audio_seconds: float
    parameters: int
    trained_parameters: int
    # Question and answer of a training example.
    sample: tuple[str, str] = ("Which sound can be heard? A) a dog B) rain", "A) a dog")
    machine: dict[str, str] = field(default_factory=dict)  # hardware and time of a finished run
    encoder_options: dict[str, Any] = field(default_factory=dict)


def model_card(facts: CardFacts, repo: str, step: int | None = None) -> str:
    """Returns the text of a card without results.

    Args:
        facts: What is known of the model.
        repo: Name of the model on the Hub.
        step: Training step, if training has not ended.
    """
    base = [part["name"] for part in (facts.encoder, facts.text_model) if part["name"] in LICENCES]
    if facts.initialised_from and "/" in facts.initialised_from:
        base = [facts.initialised_from]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-text-to-text",
        language="en",
        base_model=base or None,
        license="other",
        license_name="of-its-parts",
        license_link=f"https://huggingface.co/{repo}#licence",
        datasets=[facts.data["name"]] if "/" in facts.data["name"] else None,
        tags=["audiolm", facts.encoder_type, "audio-question-answering", "custom_code"],
    )
    settings = {SETTING_NAMES.get(name, name): value for name, value in facts.settings.items()}
    card = ModelCard.from_template(
        metadata,
        str(TEMPLATE),
        facts=facts,
        repo=repo,
        step=step,
        settings=settings | facts.machine,
    )
    return str(card)


def _groups(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics of each question type and category, and of all closed questions."""
    return {
        **metrics.get("question_type", {}),
        **metrics.get("category", {}),
        "all (micro)": metrics.get("micro"),
    }


def _format_accuracy(group: dict[str, Any] | None) -> str:
    if not group:
        return ""
    return f"{group['accuracy']:.3f} ({group['ci95_low']:.3f}-{group['ci95_high']:.3f})"


def results_table(metrics: dict[str, Any]) -> str:
    """Returns accuracy with 95 % intervals in Markdown, with a column for each control."""
    controls = metrics.get("controls", {})
    rows = [["", "n", "accuracy", "unparsed", *controls], ["---"] * (4 + len(controls))]
    for name, group in _groups(metrics).items():
        if group:
            accuracies = [
                _format_accuracy(_groups(control).get(name)) for control in controls.values()
            ]
            unparsed = group["n_unparsed"]
            rows.append([name, group["n"], _format_accuracy(group), unparsed, *accuracies])
    for question_type, group in metrics.get("text", {}).items():
        loss = f"{group['loss_per_answer_token']:.3f}"
        name = f"{question_type}, loss per answer token"
        rows.append([name, group["n"], loss, *[""] * (1 + len(controls))])
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _describe_scoring(metrics: dict[str, Any], source: dict[str, Any]) -> str:
    commit = source.get("commit")
    weights = f" Weights of commit {commit}." if commit else ""
    return f"by {metrics['protocol_name']}. An unparsed answer counts as wrong.{weights}"


def with_results(card: str, metrics: dict[str, Any], source: dict[str, Any]) -> str:
    """Returns a card with results. Earlier results are replaced.

    Args:
        card: Text of the card.
        metrics: `metrics.json` of `run_eval.py`.
        source: `name` and `sha256` of the test file, and the `commit` of the weights.
    """
    new_card = ModelCard(card)
    section = (
        f"{RESULTS}\n"
        f"On `{source['name']}`, SHA-256 `{source['sha256']}`, {metrics['n']:,} examples,\n"
        f"{_describe_scoring(metrics, source)} In brackets 95 % intervals\n"
        "for other clips. They do not cover another training of this model.\n\n"
        f"{results_table(metrics)}\n"
    )
    before, heading, after = new_card.text.partition(RESULTS)
    following = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    if not heading:
        before = before.rstrip() + "\n\n"
    new_card.text = before + section + following
    return str(new_card)


def eval_results(metrics: dict[str, Any], source: dict[str, Any], dataset_id: str) -> str:
    """Returns a file of `.eval_results/` with accuracies in percent. See [`with_results`]."""
    note = f"{source['name']}, SHA-256 {source['sha256']}; {_describe_scoring(metrics, source)}"
    groups = {**metrics.get("question_type", {}), "all": metrics.get("micro")}
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id, task_id=task, value=round(100 * group["accuracy"], 2), notes=note
        )
        for task, group in groups.items()
        if group
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
