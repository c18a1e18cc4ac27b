"""Records what a run trains on what, for its checkpoints, its model, its card and comparisons."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from datasets import Dataset
from torch import nn
from transformers import SchedulerType
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..checkpoints.encoders import PUBLISHED, checkpoint_file
from ..checkpoints.state_dicts import weights_digest
from ..configuration_audiolm import find_encoder_class, parse_encoder_type
from ..data.shards import MANIFEST, dataset_folder
from ..data.soundscapes import is_synthetic
from ..hub.model_card import LICENCES, CardFacts
from ..modeling_audiolm import DEFAULT_TEXT_MODEL, AudioLMForConditionalGeneration
from ..runtime import RUN_INFO_FILE, code_facts, file_facts, public_name, run_info, write_json
from .arguments import ENCODER_OVERRIDES, AudioLMTrainingArguments, DataArguments, ModelArguments
from .build import MODEL_CONFIG_FIELDS
from .dataset import TrainingData, batch_size
from .resume import RECORD_FILE


@dataclass
class RunRecord:
    """What a run trains, on which data, with which settings."""

    card: CardFacts
    settings: dict[str, Any]  # those that a resumed run must share
    processes: int
    info: dict[str, Any]  # for `run_info.json`

    @classmethod
    def create(
        cls,
        model: AudioLMForConditionalGeneration,
        dataset: TrainingData,
        model_args: ModelArguments,
        data_args: DataArguments,
        args: AudioLMTrainingArguments,
    ) -> "RunRecord":
        """Records a run before its first step, also in the model's configuration.

        Models are comparable where `config.training` is equal.
        """
        data = _data_facts(data_args, dataset)
        changes = _data_changes(data_args, args.seed)
        settings = _training_settings(model_args, data_args, args)
        for name, value in changes.items():
            shown = " ".join(value) if isinstance(value, list) else value
            settings[name.replace("_", " ")] = shown
        settings["batches"] = "of any length"
        if dataset.sampler:
            settings["batches"] = f"of one length, order {dataset.sampler.digest()[:16]}"
        card = _card_facts(model, model_args, data, settings)
        if isinstance(dataset.rows, Dataset):  # a stream would have to be read for it
            example = dataset.rows[0]
            card.sample = (example["input"], example["answer"])
        model.config.data_changes = changes
        model.config.training = {**settings, "data": data}
        shared = {
            **_model_options(model_args),
            "encoder weights": weights_digest(model.encoder)[:16],
            **settings,
            **data,
        }
        if data_args.streaming:  # The place of an example in a stream depends on these.
            shared["workers"] = f"{args.dataloader_num_workers} in {args.world_size} processes"
            shared["shuffle buffer"] = data_args.shuffle_buffer
        info = run_info("run_train.py", args.argv, data=data, settings=shared)
        return cls(card=card, settings=shared, processes=args.world_size, info=info)

    def save(self, folder: Path) -> None:
        """Writes the record and `run_info.json` into a checkpoint, which it creates."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"settings": self.settings, "processes": self.processes}
        write_json(folder / RECORD_FILE, record)
        write_json(folder / RUN_INFO_FILE, self.info)


def count_trained_parameters(model: nn.Module) -> int:
    """Returns the number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _model_options(model_args: ModelArguments) -> dict[str, Any]:
    """Returns what an encoder configuration is, without options that have their default."""
    options = {name: getattr(model_args, name) for name in ("encoder_type", "no_audio")}
    options["audio_tokens"] = None
    for name in (*ENCODER_OVERRIDES, *MODEL_CONFIG_FIELDS):
        value = getattr(model_args, name)
        if value not in (None, False, "mlp", "audiolm"):
            options[name] = value
    return options


def _training_settings(
    model_args: ModelArguments, data_args: DataArguments, args: AudioLMTrainingArguments
) -> dict[str, Any]:
    has_steps = args.max_steps > 0
    trained_part = "frozen" if model_args.freeze_lm else "all of it"
    adapters = None
    if model_args.lora_r:
        trained_part = "LoRA adapters"
        adapters = f"rank {model_args.lora_r}, alpha {model_args.lora_alpha}"
    optimizer = getattr(args.optim, "value", args.optim)
    precision = "tf32" if args.tf32 else "fp32"
    if args.bf16 or args.fp16:
        precision = "bf16 autocast" if args.bf16 else "fp16 autocast"
    return {
        "steps": args.max_steps if has_steps else None,
        "epochs": None if has_steps else args.num_train_epochs,
        "rows a step": batch_size(args),
        "learning rate": args.learning_rate,
        "learning rate of the language model": model_args.lm_learning_rate,
        "schedule": f"{SchedulerType(args.lr_scheduler_type).value}, warm-up {args.warmup_steps:g}",
        "optimizer": f"{optimizer}, weight decay {args.weight_decay:g}",
        "language model trains": trained_part,
        "LoRA": adapters,
        "seconds used of a clip": data_args.max_audio_seconds,
        "precision": precision,
        # A cache rounds features to bfloat16.
        "audio features": "of a cache" if data_args.feature_cache else "encoded in each step",
        "language model compiled": args.torch_compile_backend if args.torch_compile else None,
        "seed": args.seed,
        **args.recorded,
    }


def _data_facts(data_args: DataArguments, dataset: TrainingData) -> dict[str, Any]:
    """Returns name and SHA-256 of the training file or of a data set's manifest, and counts."""
    if data_args.dataset_name:
        address = dataset_folder(data_args.dataset_name, data_args.streaming)
        with fsspec.open(f"{address}/{MANIFEST}") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        facts = {"name": public_name(data_args.dataset_name), "sha256": digest}
    else:
        facts: dict[str, Any] = {**file_facts(data_args.train_file)}
        if is_synthetic(Path(data_args.train_file).parent):
            facts["synthetic"] = True
    return {**facts, "rows": dataset.num_rows, "clips": dataset.num_clips}


def _data_changes(data_args: DataArguments, seed: int) -> dict[str, Any]:
    """Returns the subsets and fixes of the data that the options ask for."""
    fixes = data_args.fix_cle_labels
    if fixes is not None:
        fixes = [Path(file).name for file in fixes] or "swapped"
    names = ("subtypes", "question_types", "mix", "max_rows_per_clip", "max_train_samples")
    changes = {name: getattr(data_args, name) for name in names}
    changes["fix_cle_labels"] = fixes
    changes["shuffle_options"] = f"by seed {seed}" if data_args.shuffle_options else None
    return {name: value for name, value in changes.items() if value is not None}


def _card_facts(
    model: AudioLMForConditionalGeneration,
    model_args: ModelArguments,
    data: dict[str, Any],
    settings: dict[str, Any],
) -> CardFacts:
    base = model_args.model_name_or_path
    if base:
        encoder = part_facts(base)
    else:
        encoder = encoder_facts(model_args.encoder_type, model_args.encoder_name_or_path)
    return CardFacts(
        encoder_type=model_args.encoder_type,
        no_audio=model_args.no_audio,
        initialised_from=base and public_name(base),
        encoder=encoder,
        encoder_options={name: getattr(model_args, name) for name in ENCODER_OVERRIDES},
        text_model=part_facts(base or model_args.text_model_name_or_path or DEFAULT_TEXT_MODEL),
        data=data,
        settings=settings,
        code=code_facts(),
        max_audio_seconds=model.config.max_audio_seconds,
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=count_trained_parameters(model),
    )


def part_facts(name_or_path: str, checkpoint: str | None = None) -> dict[str, str]:
    """Returns name and licence of an encoder or language model, with its Hub commit or SHA-256.

    `checkpoint` is the file that was read: by default the folder's weights, or the Hub's config.
    """
    path = Path(name_or_path)
    licence = LICENCES.get(name_or_path, "unknown")
    facts = {"name": public_name(name_or_path), "licence": licence}
    if path.exists():
        checkpoint = checkpoint or str(path if path.is_file() else path / "model.safetensors")
    elif checkpoint is None:
        try:
            checkpoint = cached_file(name_or_path, "config.json")
        except (OSError, ValueError):
            # Offline, the card does without the commit.
            return facts
    commit = extract_commit_hash(checkpoint, None) if checkpoint else None
    if commit:
        facts["revision"] = commit
    elif checkpoint and Path(checkpoint).is_file():
        facts["sha256"] = file_facts(checkpoint)["sha256"]
    return facts


def encoder_facts(encoder_type: str, name_or_path: str | None) -> dict[str, str]:
    """Returns the facts of an encoder, or of both encoders of a pair such as `htsat+mimi_full`."""
    if "+" in encoder_type:
        names = [name_or_path] * 2
        if name_or_path and name_or_path != "random":
            names = name_or_path.split("+")
        parts = [
            encoder_facts(part, name or None) for part, name in zip(encoder_type.split("+"), names)
        ]
        keys = dict.fromkeys([*parts[0], *parts[1]])
        return {key: " and ".join(facts.get(key, "none") for facts in parts) for key in keys}
    entry = parse_encoder_type(encoder_type)
    model_type = entry.model_type
    if name_or_path == "random" or model_type == "audiolm_silence":
        name = "random weights" if name_or_path else "none, learned tokens"
        return {"name": name, "licence": "none"}
    if "encoder_class" in entry.options:
        licence = find_encoder_class(encoder_type).licence
        return {**part_facts(name_or_path or encoder_type), "licence": licence}
    file = checkpoint_file(encoder_type, name_or_path)
    return part_facts(name_or_path or PUBLISHED[model_type], file)
