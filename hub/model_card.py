"""The model card of a trained AudioLM, from what is known of its run and nothing else, and the results of its evaluation."""

import hashlib
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .. import __version__
from ..checkpoints.encoders import PUBLISHED, checkpoint_file
from ..configuration_audiolm import arm_of
from ..evaluation.answering import NAMES
from ..modeling_audiolm import TEXT_MODEL

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


def public_name(name_or_path: str) -> str:
    """A Hub name as it is; of a file or folder of this machine its last part alone, for a page that anyone reads."""
    path = Path(name_or_path)
    return path.name if path.exists() or path.is_absolute() else name_or_path


def file_facts(path: str | Path) -> dict[str, str]:
    """Name and SHA-256 of a file."""
    with open(path, "rb") as stream:
        return {"name": Path(path).name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def part_facts(name_or_path: str, checkpoint: str | None = None) -> dict[str, str]:
    """What an encoder or language model is: its name, the Hub's commit or its file's SHA-256, and its licence.

    Args:
        checkpoint: the file that was read, if it is known; else the `config.json` of a Hub repository says the commit.
    """
    facts, here = (
        {"name": public_name(name_or_path), "licence": LICENCES.get(name_or_path, "not known here")},
        Path(name_or_path),
    )
    if here.exists():
        checkpoint = checkpoint or str(here if here.is_file() else here / "model.safetensors")
    else:
        try:
            checkpoint = checkpoint or cached_file(name_or_path, "config.json")
        except (OSError, ValueError):
            checkpoint = None
    commit = extract_commit_hash(checkpoint, None) if checkpoint else None
    if commit:
        facts["revision"] = commit
    elif checkpoint and Path(checkpoint).is_file():
        facts["sha256"] = file_facts(checkpoint)["sha256"]
    return facts


def code_facts() -> dict[str, str]:
    """Version of this package, the commit of its checkout (and whether files differ from it), and of what it runs on."""
    folder, facts = Path(__file__).parents[1], {"audiolm": __version__}
    try:
        git = ["git", "-C", str(folder), *("--git-dir", str(folder / ".git"))]
        facts["commit"] = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True).returncode
        facts["commit"] += ", with changes that are not committed" if changed else ""
    except (OSError, subprocess.CalledProcessError):  # installed, not a checkout
        pass
    return facts | {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}


def encoder_facts(encoder_type: str, name_or_path: str | None) -> dict[str, str]:
    """As [`part_facts`], of an arm's encoder, or of both of a pair."""
    if "+" in encoder_type:
        names = name_or_path.split("+") if name_or_path and name_or_path != "random" else [name_or_path] * 2
        both = [encoder_facts(arm, name or None) for arm, name in zip(encoder_type.split("+"), names)]
        return {key: " and ".join(facts.get(key, "none") for facts in both) for key in dict.fromkeys([*both[0], *both[1]])}
    kind = arm_of(encoder_type)[0]
    if name_or_path == "random" or kind == "audiolm_silence":
        return {"name": "random weights" if name_or_path else "none, tokens are learnt", "licence": "none"}
    file = checkpoint_file(encoder_type, name_or_path)
    return part_facts(name_or_path or PUBLISHED[kind], file)


def training_facts(model, model_args, data_args, args, data: dict) -> dict:
    """What [`model_card`] tells of a run: its parts, its data, its settings and its code.

    Args:
        model: before adapters are put on it. model_args, data_args, args: of run_train.py. data: what it is trained on, with
            `name`, `sha256`, `rows` and `clips`.
    """
    base = model_args.model_name_or_path
    trains = "LoRA adapters" if model_args.lora_r else "frozen" if model_args.freeze_lm else "all of it"
    settings = {
        "steps": args.max_steps if args.max_steps > 0 else None,
        "epochs": args.num_train_epochs if args.max_steps <= 0 else None,
        "rows a step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning rate": args.learning_rate,
        "learning rate of the language model": model_args.lm_learning_rate,
        "schedule": f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}",
        "optimizer": f"{getattr(args.optim, 'value', args.optim)}, weight decay {args.weight_decay:g}",
        "language model trains": trains,
        "LoRA": f"rank {model_args.lora_r}, alpha {model_args.lora_alpha}" if model_args.lora_r else None,
        "seconds used of a clip": data_args.max_audio_seconds,
        "precision": "bf16 autocast" if args.bf16 else "fp16 autocast" if args.fp16 else "fp32",
        "language model compiled": args.torch_compile_backend if args.torch_compile else None,
        "seed": args.seed,
        **{name.replace("_", " "): " ".join(v) if isinstance(v, list) else v for name, v in model.config.data_changes.items()},
    }
    trained = [p for name, p in model.named_parameters() if p.requires_grad]
    return {
        "continued_from": base and public_name(base), "encoder_type": model_args.encoder_type,
        "no_audio": model_args.no_audio,
        "encoder": part_facts(base) if base else encoder_facts(model_args.encoder_type, model_args.encoder_name_or_path),
        "hears": {name: value for name in ("band_limit", "window_seconds") if (value := getattr(model_args, name)) is not None},
        "text_model": part_facts(base or model_args.text_model_name_or_path or TEXT_MODEL),
        "data": data, "code": code_facts(),
        "settings": settings, "seconds": data_args.max_audio_seconds,
        "parameters": sum(p.numel() for p in model.parameters()), "trained_parameters": sum(p.numel() for p in trained),
    }  # fmt: skip


def _table(rows: dict) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value is not None)


def _part(facts: dict) -> str:
    where = f", revision `{facts['revision']}`" if "revision" in facts else ""
    where += f", SHA-256 `{facts['sha256']}`" if "sha256" in facts else ""
    return f"`{facts['name']}`{where}; licence: {facts['licence']}"


def model_card(facts: dict, repo: str, step: int | None = None, adapter_of: str | None = None) -> str:
    """The card's text, without results.

    Args:
        facts: of [`training_facts`]. repo: the model's name on the Hub, for the lines that load it.
        step: the training step, if training goes on. adapter_of: the model that it is LoRA adapters of, if it is.
    """
    known = [part["name"] for part in (facts["encoder"], facts["text_model"]) if part["name"] in LICENCES]
    known = [facts["continued_from"]] if "/" in (facts["continued_from"] or "") else known
    data = ModelCardData(
        library_name="peft" if adapter_of else "transformers", pipeline_tag="audio-text-to-text", language="en",
        base_model=adapter_of or known or None, license="other", license_name="of-its-parts",
        license_link=f"https://huggingface.co/{repo}#what-it-is",
        tags=["audiolm", facts["encoder_type"], "audio-question-answering", "custom_code"],
    )  # fmt: skip
    control = " It is a control: it hears nothing, every frame is the mean feature." if facts["no_audio"] else ""
    going_on = f" Training was at step {step:,} when it was pushed." if step is not None else ""
    whole, of = adapter_of or repo, facts["text_model"].get("revision")
    at = f', revision="{of}"' if adapter_of and of else ""
    load = f'AutoModel.from_pretrained("{whole}"{at}, trust_remote_code=True)'
    if adapter_of:
        load = f'PeftModel.from_pretrained({load}, "{repo}")'
    text = f"""# {repo.split("/")[-1]}

Answers questions about one or two clips of audio, in text. An AudioLM of the arm `{facts["encoder_type"]}`: audio, frozen
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

It uses the first {facts["seconds"]:g} s of a clip. It answers every question, also those that the audio cannot answer, and its
figures and details may be invented. It was trained on sounds and knows no speech. It answers in English.
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _groups(metrics: dict) -> dict[str, dict]:
    return {**metrics.get("question_type", {}), **metrics.get("category", {}), "all (micro)": metrics.get("micro")}


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
            shown = [f"{c['accuracy']:.3f} ({c['ci95_low']:.3f}-{c['ci95_high']:.3f})" if c else "" for c in cells]
            lines.append(
                f"| {name} | {group['n']} | {shown[0]} | {group['n_unparsed']} |" + "".join(f" {s} |" for s in shown[1:])
            )
    for kind, group in metrics.get("text", {}).items():
        lines.append(f"| {kind}, loss per answer token | {group['n']} | {group['loss_per_answer_token']:.3f} | |"
                     + " |" * len(controls))  # fmt: skip
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
            task_type="audio-text-to-text", task_name="audio question answering", dataset_type="reasonaqa",
            dataset_name=f"ReasonAQA, {test['name']}", dataset_split="test", metric_type="accuracy",
            metric_name=f"accuracy, {name}", metric_value=round(group["accuracy"], 4),
        )
        for name, group in _groups(metrics).items() if group
    ] or None  # fmt: skip
    said = (
        f"{RESULTS}\nOn `{test['name']}` (SHA-256 `{test['sha256']}`), {metrics['n']:,} rows,\n"
        f"by {NAMES[metrics['protocol']]}; in brackets 95 % Wilson intervals. No answer counts as wrong.{of_weights(test)}\n\n"
        f"{results_table(metrics)}\n"
    )
    text = made.text
    if RESULTS in text:
        text = re.sub(re.escape(RESULTS) + r".*?(?=^## |\Z)", lambda _: said, text, count=1, flags=re.DOTALL | re.MULTILINE)
    else:
        text = text.rstrip() + "\n\n" + said
    made.text = text
    return str(made)


def eval_results(metrics: dict, test: dict[str, str], dataset_id: str) -> str:
    """The same as a file of `.eval_results/`: accuracy in percent of each question type and of all closed rows."""
    note = f"{test['name']}, SHA-256 {test['sha256']}; by {NAMES[metrics['protocol']]}, no answer is wrong.{of_weights(test)}"
    entries = [
        EvalResultEntry(dataset_id=dataset_id, task_id=task, value=round(100 * group["accuracy"], 2), notes=note)
        for task, group in {**metrics.get("question_type", {}), "all": metrics.get("micro")}.items() if group
    ]  # fmt: skip
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
