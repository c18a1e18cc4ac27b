"""Writes the model card of a trained AudioLM from the record of its run and its results."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
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
DATA_SOURCE = "[ReasonAQA](https://zenodo.org/records/15036628)"
RESULTS = "## Results\n"
NOT_EVALUATED = "Not evaluated yet: `run_eval.py --push_to_hub` fills this in.\n"
EVAL_FILE = ".eval_results/audiolm.yaml"
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
    encoder_options: dict[str, Any] = field(default_factory=dict)


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |\n" for name, value in rows.items() if value is not None]
    return "| | |\n|---|---|\n" + "".join(lines)


def _describe_part(facts: dict[str, str]) -> str:
    text = f"`{facts['name']}`"
    if "revision" in facts:
        text += f", revision `{facts['revision']}`"
    if "sha256" in facts:
        text += f", SHA-256 `{facts['sha256']}`"
    return text


def _metadata(facts: CardFacts, repo: str, adapter_of: str | None) -> ModelCardData:
    parts = [facts.encoder["name"], facts.text_model["name"]]
    base = [name for name in parts if name in LICENCES]
    if facts.initialised_from and "/" in facts.initialised_from:
        base = [facts.initialised_from]
    return ModelCardData(
        library_name="peft" if adapter_of else "transformers",
        pipeline_tag="audio-text-to-text",
        language="en",
        base_model=adapter_of or base or None,
        license="other",
        license_name="of-its-parts",
        license_link=f"https://huggingface.co/{repo}#licence",
        tags=["audiolm", facts.encoder_type, "audio-question-answering", "custom_code"],
    )


def _introduction(facts: CardFacts, step: int | None) -> str:
    sentences = [
        "Answers questions about one or two audio clips, in text.",
        f"An AudioLM with the `{facts.encoder_type}` encoder: frozen `{facts.encoder['name']}`, a "
        f"mapper\nand the language model `{facts.text_model['name']}`.",
    ]
    if facts.no_audio:
        sentences.append(
            "This is a text-only model, trained as a baseline: the mean feature replaces all audio."
        )
    if step is not None:
        sentences.append(f"Training was at step {step:,} when this was pushed.")
    return "\n".join(sentences)


def _usage(facts: CardFacts, repo: str, adapter_of: str | None) -> str:
    model_name = adapter_of or repo
    revision = facts.text_model.get("revision") if adapter_of else None
    pin = f', revision="{revision}"' if revision else ""
    load = f'AutoModel.from_pretrained("{model_name}"{pin}, trust_remote_code=True)'
    imports = "from transformers import AutoModel, AutoProcessor"
    if adapter_of:
        imports += "\nfrom peft import PeftModel"
        load = f'PeftModel.from_pretrained({load}, "{repo}")'
    return f"""{imports}
model = {load}
processor = AutoProcessor.from_pretrained("{model_name}", trust_remote_code=True)
inputs = processor(text="What is heard first?", audio=["clip.wav"])
output = model.generate(**inputs, max_new_tokens=40)
print(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1]:]))"""


def _parts_table(facts: CardFacts) -> str:
    data = facts.data
    options = {name.replace("_", " "): value for name, value in facts.encoder_options.items()}
    return _table(
        {
            "encoder, frozen": _describe_part(facts.encoder),
            **options,
            "language model": _describe_part(facts.text_model),
            "data": f"{_describe_part(data)}, {data['rows']:,} rows about {data['clips']:,} clips",
            "parameters": f"{facts.parameters:,}; trained: {facts.trained_parameters:,}",
            "code": ", ".join(f"{name} {version}" for name, version in facts.code.items()),
        }
    )


def _licence_table(facts: CardFacts) -> str:
    return _table(
        {
            f"encoder `{facts.encoder['name']}`": facts.encoder["licence"],
            f"language model `{facts.text_model['name']}`": facts.text_model["licence"],
            f"data `{facts.data['name']}`": f"if it is {DATA_SOURCE}: see the records of the "
            "questions and of the recordings",
        }
    )


def model_card(
    facts: CardFacts, repo: str, step: int | None = None, adapter_of: str | None = None
) -> str:
    """Returns the text of a card without results.

    Args:
        facts: What is known of the model.
        repo: Name of the model on the Hub.
        step: Training step, if training has not ended.
        adapter_of: Model under the LoRA adapters, if only adapters are pushed.
    """
    settings = {SETTING_NAMES.get(name, name): value for name, value in facts.settings.items()}
    text = f"""# {repo.split("/")[-1]}

{_introduction(facts, step)}

## How to use it

```python
{_usage(facts, repo, adapter_of)}
```

## What it is

{_parts_table(facts)}
## Licence

The model combines parts and data that have their own licences.

{_licence_table(facts)}
## How it was trained

{_table(settings)}
{RESULTS}
{NOT_EVALUATED}
## Limits

The model uses the first {facts.max_audio_seconds:g} s of a clip. It answers every question, even if
the audio cannot answer it, and may invent figures and details. It was trained on sounds and does
not understand speech. It answers in English.
"""
    return str(ModelCard(f"---\n{_metadata(facts, repo, adapter_of).to_yaml()}\n---\n{text}"))


def _groups(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics of each question type and category, and of all closed questions."""
    return {
        **metrics.get("question_type", {}),
        **metrics.get("category", {}),
        "all (micro)": metrics.get("micro"),
    }


def _weights_note(test: dict[str, Any]) -> str:
    commit = test.get("commit")
    return f" Weights of commit {commit}." if commit else ""


def _format_accuracy(group: dict[str, Any] | None) -> str:
    if not group:
        return ""
    return f"{group['accuracy']:.3f} ({group['ci95_low']:.3f}-{group['ci95_high']:.3f})"


def results_table(metrics: dict[str, Any]) -> str:
    """Returns accuracy with 95 % intervals by question type and category, in Markdown.

    Each control that was evaluated has a column of its own.
    """
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


def with_results(card: str, metrics: dict[str, Any], test: dict[str, Any], repo: str) -> str:
    """Returns a card with results, in the text and as `model-index`. Earlier results are replaced.

    Args:
        card: Text of the card.
        metrics: `metrics.json` of `run_eval.py`.
        test: `name` and `sha256` of the test file, and the `commit` of the weights.
        repo: Name of the model on the Hub.
    """
    new_card = ModelCard(card)
    new_card.data.model_name = repo.split("/")[-1]
    results = [
        EvalResult(
            task_type="audio-text-to-text",
            task_name="audio question answering",
            dataset_type="reasonaqa",
            dataset_name=f"ReasonAQA, {test['name']}",
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"accuracy, {name}",
            metric_value=round(group["accuracy"], 4),
        )
        for name, group in _groups(metrics).items()
        if group
    ]
    new_card.data.eval_results = results or None
    section = (
        f"{RESULTS}\nOn `{test['name']}` (SHA-256 `{test['sha256']}`), {metrics['n']:,} examples,\n"
        f"by {metrics['protocol_name']}; in brackets 95 % Wilson intervals. An answer that cannot\n"
        f"be parsed counts as wrong.{_weights_note(test)}\n\n{results_table(metrics)}\n"
    )
    earlier_section = re.escape(RESULTS) + r".*?(?=^## |\Z)"
    text = new_card.text
    if RESULTS in text:
        flags = re.DOTALL | re.MULTILINE
        text = re.sub(earlier_section, lambda _: section, text, count=1, flags=flags)
    else:
        text = text.rstrip() + "\n\n" + section
    new_card.text = text
    return str(new_card)


def eval_results(metrics: dict[str, Any], test: dict[str, Any], dataset_id: str) -> str:
    """Returns the results as a file of `.eval_results/`: accuracy in percent by question type.

    Args:
        metrics: `metrics.json` of `run_eval.py`.
        test: As of [`with_results`].
        dataset_id: Name of the data set in `.eval_results/`.
    """
    note = (
        f"{test['name']}, SHA-256 {test['sha256']}; by {metrics['protocol_name']}, an answer that "
        f"cannot be parsed counts as wrong.{_weights_note(test)}"
    )
    groups = {**metrics.get("question_type", {}), "all": metrics.get("micro")}
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id, task_id=task, value=round(100 * group["accuracy"], 2), notes=note
        )
        for task, group in groups.items()
        if group
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
