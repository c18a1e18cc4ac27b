"""Writes the model card of a trained AudioLM from the record of its run and its results."""

from dataclasses import dataclass, field
from pathlib import Path
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
TEXT_ONLY = "This is a text-only model, a baseline: the mean feature replaces all audio.\n"
RESULTS = "## Results\n"
NOT_EVALUATED = "Not evaluated yet: `run_eval.py --push_to_hub` fills this in.\n"
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
    sample: tuple[str, str] | None = None  # question and answer of a training example
    machine: dict[str, str] = field(default_factory=dict)  # hardware and time of a finished run
    encoder_options: dict[str, Any] = field(default_factory=dict)


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |\n" for name, value in rows.items() if value is not None]
    return "| | |\n|---|---|\n" + "".join(lines)


def _describe_part(facts: dict[str, str]) -> str:
    labels = {"name": "", "revision": ", revision ", "sha256": ", SHA-256 "}
    return "".join(f"{label}`{facts[name]}`" for name, label in labels.items() if name in facts)


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
        datasets=[facts.data["name"]] if "/" in facts.data["name"] else None,
        tags=["audiolm", facts.encoder_type, "audio-question-answering", "custom_code"],
    )


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
inputs = processor(text="Which sound comes first?", audio=["clip.wav"])
output = model.generate(**inputs, max_new_tokens=40)
answer = output[0, inputs["input_ids"].shape[1]:]
print(processor.tokenizer.decode(answer, skip_special_tokens=True))"""


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
    data = facts.data
    encoder, text_model = facts.encoder["name"], facts.text_model["name"]
    parts = {
        "encoder, frozen": _describe_part(facts.encoder),
        **{name.replace("_", " "): value for name, value in facts.encoder_options.items()},
        "language model": _describe_part(facts.text_model),
        "data": f"{_describe_part(data)}, {data['rows']:,} rows about {data['clips']:,} clips",
        "parameters": f"{facts.parameters:,}; trained: {facts.trained_parameters:,}",
        "code": ", ".join(f"{name} {version}" for name, version in facts.code.items()),
    }
    licences = {
        f"encoder `{encoder}`": facts.encoder["licence"],
        f"language model `{text_model}`": facts.text_model["licence"],
        f"data `{data['name']}`": f"if it is {DATA_SOURCE}: see the records of the questions and "
        "of the recordings",
    }
    notes = TEXT_ONLY if facts.no_audio else ""
    if step is not None:
        notes += f"Training was at step {step:,} when this was pushed.\n"
    settings = {SETTING_NAMES.get(name, name): value for name, value in facts.settings.items()}
    question, answer = facts.sample or ("Which sound can be heard? A) a dog B) rain", "A) a dog")
    text = TEMPLATE.read_text(encoding="utf-8").format(
        name=repo.split("/")[-1],
        encoder_type=facts.encoder_type,
        encoder=encoder,
        text_model=text_model,
        notes=notes,
        usage=_usage(facts, repo, adapter_of),
        parts=_table(parts),
        licences=_table(licences),
        settings=_table(settings | facts.machine),
        question=question,
        answer=answer,
        results=f"{RESULTS}\n{NOT_EVALUATED}",
        seconds=facts.max_audio_seconds,
    )
    return str(ModelCard(f"---\n{_metadata(facts, repo, adapter_of).to_yaml()}\n---\n{text}"))


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


def _describe_scoring(metrics: dict[str, Any], test: dict[str, Any]) -> str:
    commit = test.get("commit")
    weights = f" Weights of commit {commit}." if commit else ""
    return f"by {metrics['protocol_name']}. An unparsed answer counts as wrong.{weights}"


def with_results(card: str, metrics: dict[str, Any], test: dict[str, Any], repo: str) -> str:
    """Returns a card with results, in the text and as `model-index`. Earlier results are replaced.

    Args:
        card: Text of the card.
        metrics: `metrics.json` of `run_eval.py`.
        test: `name` and `sha256` of the test file, and the `commit` of the weights.
        repo: Name of the model on the Hub.
    """
    new_card = ModelCard(card)
    new_card.data.model_name = repo.split("/")[-1]  # ty: ignore[missing-attribute]
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
    new_card.data.eval_results = results or None  # ty: ignore[missing-attribute]
    section = (
        f"{RESULTS}\nOn {_describe_part(test)}, {metrics['n']:,} examples,\n"
        f"{_describe_scoring(metrics, test)} In brackets 95 % intervals\n"
        "for other clips. They do not cover another training of this model.\n\n"
        f"{results_table(metrics)}\n"
    )
    before, heading, after = new_card.text.partition(RESULTS)
    following = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    if not heading:
        before = before.rstrip() + "\n\n"
    new_card.text = before + section + following
    return str(new_card)


def eval_results(metrics: dict[str, Any], test: dict[str, Any], dataset_id: str) -> str:
    """Returns a file of `.eval_results/` with accuracies in percent. See [`with_results`]."""
    note = f"{test['name']}, SHA-256 {test['sha256']}; {_describe_scoring(metrics, test)}"
    groups = {**metrics.get("question_type", {}), "all": metrics.get("micro")}
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id, task_id=task, value=round(100 * group["accuracy"], 2), notes=note
        )
        for task, group in groups.items()
        if group
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
