"""What was trained on what: one record for checkpoints, model card and comparisons."""

from pathlib import Path

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..checkpoints.encoders import PUBLISHED, checkpoint_file
from ..configuration_audiolm import parse_encoder_type
from ..hub.model_card import LICENCES
from ..modeling_audiolm import TEXT_MODEL
from ..runtime import code_facts, file_facts, public_name


def part_facts(name_or_path: str, checkpoint: str | None = None) -> dict[str, str]:
    """What an encoder or language model is: its name, the Hub's commit or its file's SHA-256, and its licence.

    Args:
        checkpoint: the file that was read, if it is known; else the `config.json` of a Hub repository says the commit.
    """
    facts, here = (
        {
            "name": public_name(name_or_path),
            "licence": LICENCES.get(name_or_path, "not known here"),
        },
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


def encoder_facts(encoder_type: str, name_or_path: str | None) -> dict[str, str]:
    """As [`part_facts`], of an arm's encoder, or of both of a pair."""
    if "+" in encoder_type:
        names = (
            name_or_path.split("+")
            if name_or_path and name_or_path != "random"
            else [name_or_path] * 2
        )
        both = [
            encoder_facts(arm, name or None) for arm, name in zip(encoder_type.split("+"), names)
        ]
        return {
            key: " and ".join(facts.get(key, "none") for facts in both)
            for key in dict.fromkeys([*both[0], *both[1]])
        }
    kind = parse_encoder_type(encoder_type)[0]
    if name_or_path == "random" or kind == "audiolm_silence":
        return {
            "name": "random weights" if name_or_path else "none, tokens are learnt",
            "licence": "none",
        }
    file = checkpoint_file(encoder_type, name_or_path)
    return part_facts(name_or_path or PUBLISHED[kind], file)


def training_facts(model, model_args, data_args, args, data: dict) -> dict:
    """What [`model_card`] tells of a run: its parts, its data, its settings and its code.

    Args:
        model: before adapters are put on it. model_args, data_args, args: of run_train.py. data: what it is trained on, with
            `name`, `sha256`, `rows` and `clips`.
    """
    base = model_args.model_name_or_path
    trains = (
        "LoRA adapters" if model_args.lora_r else "frozen" if model_args.freeze_lm else "all of it"
    )
    settings = {
        "steps": args.max_steps if args.max_steps > 0 else None,
        "epochs": args.num_train_epochs if args.max_steps <= 0 else None,
        "rows a step": args.per_device_train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size,
        "learning rate": args.learning_rate,
        "learning rate of the language model": model_args.lm_learning_rate,
        "schedule": f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}",
        "optimizer": f"{getattr(args.optim, 'value', args.optim)}, weight decay {args.weight_decay:g}",
        "language model trains": trains,
        "LoRA": f"rank {model_args.lora_r}, alpha {model_args.lora_alpha}"
        if model_args.lora_r
        else None,
        "seconds used of a clip": data_args.max_audio_seconds,
        "precision": "bf16 autocast" if args.bf16 else "fp16 autocast" if args.fp16 else "fp32",
        "language model compiled": args.torch_compile_backend if args.torch_compile else None,
        "seed": args.seed,
        **{
            name.replace("_", " "): " ".join(v) if isinstance(v, list) else v
            for name, v in model.config.data_changes.items()
        },
    }
    trained = [p for name, p in model.named_parameters() if p.requires_grad]
    return {
        "continued_from": base and public_name(base),
        "encoder_type": model_args.encoder_type,
        "no_audio": model_args.no_audio,
        "encoder": part_facts(base)
        if base
        else encoder_facts(model_args.encoder_type, model_args.encoder_name_or_path),
        "hears": {
            name: value
            for name in ("band_limit", "window_seconds")
            if (value := getattr(model_args, name)) is not None
        },
        "text_model": part_facts(base or model_args.text_model_name_or_path or TEXT_MODEL),
        "data": data,
        "code": code_facts(),
        "settings": settings,
        "seconds": data_args.max_audio_seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in trained),
    }
