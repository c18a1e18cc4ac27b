"""The model card of a trained AudioLM, from what is known of its run and nothing else, and the results of its evaluation."""

import re

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

# of what a model is made from, by name; what is not listed here is not known
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


def _table(rows: dict) -> str:
    return "| | |\n|---|---|\n" + "".join(
        f"| {key} | {value} |\n" for key, value in rows.items() if value is not None
    )


def _part(facts: dict) -> str:
    where = f", revision `{facts['revision']}`" if "revision" in facts else ""
    where += f", SHA-256 `{facts['sha256']}`" if "sha256" in facts else ""
    return f"`{facts['name']}`{where}; licence: {facts['licence']}"


def model_card(
    facts: dict, repo: str, step: int | None = None, adapter_of: str | None = None
) -> str:
    """The card's text, without results.

    Args:
        facts: of [`training_facts`]. repo: the model's name on the Hub, for the lines that load it.
        step: the training step, if training goes on. adapter_of: the model that it is LoRA adapters of, if it is.
    """
    known = [
        part["name"] for part in (facts["encoder"], facts["text_model"]) if part["name"] in LICENCES
    ]
    known = [facts["continued_from"]] if "/" in (facts["continued_from"] or "") else known
    data = ModelCardData(
        library_name="peft" if adapter_of else "transformers",
        pipeline_tag="audio-text-to-text",
        language="en",
        base_model=adapter_of or known or None,
        license="other",
        license_name="of-its-parts",
        license_link=f"https://huggingface.co/{repo}#what-it-is",
        tags=["audiolm", facts["encoder_type"], "audio-question-answering", "custom_code"],
    )
    control = (
        " It is a control: it hears nothing, every frame is the mean feature."
        if facts["no_audio"]
        else ""
    )
    going_on = f" Training was at step {step:,} when it was pushed." if step is not None else ""
    whole, of = adapter_of or repo, facts["text_model"].get("revision")
    at = f', revision="{of}"' if adapter_of and of else ""
    load = f'AutoModel.from_pretrained("{whole}"{at}, trust_remote_code=True)'
    if adapter_of:
        load = f'PeftModel.from_pretrained({load}, "{repo}")'
    text = f"""# {repo.split("/")[-1]}

Answers questions about one or two clips of audio, in text. An AudioLM of the arm `{
        facts["encoder_type"]
    }`: audio, frozen
encoder, mapper, language model.{control}{going_on}

## How to use it

```python
from transformers import AutoModel, AutoProcessor
{"from peft import PeftModel" + chr(10) if adapter_of else ""}model = {load}
processor = AutoProcessor.from_pretrained("{whole}", trust_remote_code=True)
inputs = processor(text="What is heard first?", audio=["clip.wav"])
print(processor.tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1]:]))
```

## What it is

{
        _table(
            {
                "encoder, frozen": _part(facts["encoder"]),
                **{name.replace("_", " "): value for name, value in facts.get("hears", {}).items()},
                "language model": _part(facts["text_model"]),
                "data": f"`{facts['data']['name']}`, SHA-256 `{facts['data']['sha256']}`, {facts['data']['rows']:,} rows about "
                f"{facts['data']['clips']:,} clips; if it is of {DATA_SOURCE}, its record and recordings say the licence",
                "parameters": f"{facts['parameters']:,}, of which {facts['trained_parameters']:,} were trained",
                "code": ", ".join(f"{name} {value}" for name, value in facts["code"].items()),
            }
        )
    }
## How it was trained

{_table(facts["settings"])}
{RESULTS}
{NOT_EVALUATED}
## Limits

It uses the first {
        facts[
            "seconds"
        ]:g} s of a clip. It answers every question, also those that the audio cannot answer, and its
figures and details may be invented. It was trained on sounds and knows no speech. It answers in English.
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _groups(metrics: dict) -> dict[str, dict]:
    return {
        **metrics.get("question_type", {}),
        **metrics.get("category", {}),
        "all (micro)": metrics.get("micro"),
    }


def of_weights(test: dict) -> str:
    return f" Of the weights of commit {test['commit']}." if test.get("commit") else ""


def results_table(metrics: dict) -> str:
    """Accuracy with its 95 % interval by question type and category, beside the controls that were run, in Markdown."""
    controls = metrics.get("controls", {})
    lines = ["| | n | accuracy | unparsed |" + "".join(f" {name} |" for name in controls)]
    lines.append("|---|---|---|---|" + "---|" * len(controls))
    for name, group in _groups(metrics).items():
        if group:
            cells = [group, *(_groups(control).get(name) for control in controls.values())]
            shown = [
                f"{c['accuracy']:.3f} ({c['ci95_low']:.3f}-{c['ci95_high']:.3f})" if c else ""
                for c in cells
            ]
            lines.append(
                f"| {name} | {group['n']} | {shown[0]} | {group['n_unparsed']} |"
                + "".join(f" {s} |" for s in shown[1:])
            )
    for kind, group in metrics.get("text", {}).items():
        lines.append(
            f"| {kind}, loss per answer token | {group['n']} | {group['loss_per_answer_token']:.3f} | |"
            + " |" * len(controls)
        )
    return "\n".join(lines) + "\n"


def with_results(card: str, metrics: dict, test: dict[str, str], repo: str) -> str:
    """A card with its results, in the text and as `model-index`; earlier ones are replaced, all else stays as it is.

    Args:
        metrics: of run_eval.py's `metrics.json`. test: [`file_facts`] of the test file, and the `commit` of the weights.
    """
    made = ModelCard(card)
    made.data.model_name = repo.split("/")[-1]
    made.data.eval_results = [
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
    ] or None
    said = (
        f"{RESULTS}\nOn `{test['name']}` (SHA-256 `{test['sha256']}`), {metrics['n']:,} rows,\n"
        f"by {metrics['protocol_name']}; in brackets 95 % Wilson intervals. No answer counts as wrong.{of_weights(test)}\n\n"
        f"{results_table(metrics)}\n"
    )
    text = made.text
    if RESULTS in text:
        text = re.sub(
            re.escape(RESULTS) + r".*?(?=^## |\Z)",
            lambda _: said,
            text,
            count=1,
            flags=re.DOTALL | re.MULTILINE,
        )
    else:
        text = text.rstrip() + "\n\n" + said
    made.text = text
    return str(made)


def eval_results(metrics: dict, test: dict[str, str], dataset_id: str) -> str:
    """The same as a file of `.eval_results/`: accuracy in percent of each question type and of all closed rows."""
    note = f"{test['name']}, SHA-256 {test['sha256']}; by {metrics['protocol_name']}, no answer is wrong.{of_weights(test)}"
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id, task_id=task, value=round(100 * group["accuracy"], 2), notes=note
        )
        for task, group in {**metrics.get("question_type", {}), "all": metrics.get("micro")}.items()
        if group
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
