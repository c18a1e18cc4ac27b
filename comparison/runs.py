"""Reads the folders of trained and evaluated models, and checks that evaluations are comparable."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer
from transformers.utils import flatten_dict

from ..configuration_audiolm import ARM_FIELDS, AudioLMConfig
from ..data.reasonaqa import FIELDS, QUESTION_TYPES
from ..encoders_audiolm import (
    AudioEncoder,
    HTSATEncoder,
    PairEncoder,
    QuantizedEncoder,
    build_encoder,
)
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError, explain_errors

# Answers do not depend on these settings of an evaluation. Some facts of `model` are compared.
IRRELEVANT_SETTINGS = ("model", "question_only", "batch_size", "controls")
# The seeds of one arm differ in these facts of a training.
SEED_FIELDS = ("seed", "shuffle options", "batches")
MODEL_FIELDS = ("mapper_hidden_size", "mapper_type", "prompt_format", "step", "training")
MODEL_FIELDS += ARM_FIELDS


@dataclass(frozen=True)
class Run:
    """One evaluation."""

    folder: Path  # written by `run_eval.py`
    metrics: dict  # content of `metrics.json`
    rows: list[dict]  # rows of `predictions.jsonl`

    @property
    def training(self) -> dict:
        """Facts of the model's training, from its configuration."""
        return self.metrics["settings"]["model"]["training"] or {}

    @property
    def seed(self) -> int | None:
        """Seed of the model's training."""
        return self.training.get("seed")

    @property
    def is_published(self) -> bool:
        """Whether the model is a converted checkpoint of other authors, such as Mellow."""
        return "published" in self.training

    @property
    def is_text_only(self) -> bool:
        """Whether the model was trained without audio."""
        return self.metrics["settings"]["model"]["no_audio"]


def read_run(folder: str | Path) -> Run:
    """Returns the evaluation in a folder of `run_eval.py`.

    Raises:
        UserError: If there is no evaluation.
    """
    folder = Path(folder)
    with explain_errors(f"{folder}: no evaluation that can be compared"):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
        return Run(folder, metrics, [json.loads(line) for line in lines if line])


def check_comparable(runs: Mapping[str, list[Run]]) -> None:
    """Checks that evaluations differ only in arm and seed.

    Raises:
        UserError: If arms have other seeds, or two evaluations differ in other settings.
    """
    # How a published model was trained is unknown, so a trained one is the reference.
    arms = sorted(runs, key=lambda arm: runs[arm][0].is_published)
    reference = runs[arms[0]]
    seed_settings = {f"training.{name}" for name in SEED_FIELDS}
    for arm, arm_runs in runs.items():
        if arm_runs[0].is_published:
            # It is one checkpoint, without seeds.
            if len(arm_runs) > 1:
                raise UserError(f"{arm}: a published model has one evaluation, not {len(arm_runs)}")
            continue
        seeds = [run.seed for run in arm_runs]
        if seeds != [run.seed for run in reference]:
            by_arm = {name: [run.seed for run in runs[name]] for name in runs}
            raise UserError(f"expected the same seeds in the same order for each arm, not {by_arm}")
        if len(set(seeds)) != len(seeds):
            repeated = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise UserError(f"{arm}: seed {repeated} occurs twice. Train it with another seed.")
        for run in arm_runs[1:]:
            _check_pair(arm_runs[0], run, seed_settings)
    for arm in arms[1:]:
        for first, second in zip(reference, runs[arm]):
            _check_pair(first, second, set(ARM_FIELDS))


def _check_pair(first: Run, second: Run, ignored: set[str]) -> None:
    questions = [[[row[field] for field in FIELDS] for row in run.rows] for run in (first, second)]
    if questions[0] != questions[1]:
        raise UserError(
            f"{first.folder} and {second.folder} answer different examples. Evaluate both on one "
            "test file."
        )
    if first.is_published or second.is_published:
        ignored = set(MODEL_FIELDS)
    settings = [_comparable_settings(run) for run in (first, second)]
    differences = []
    for name in dict.fromkeys(chain(*settings)):
        values = [setting.get(name) for setting in settings]
        # A model from the Hub does not tell its step.
        is_unknown = name == "step" and None in values
        is_ignored = any(f"{name}.".startswith(f"{prefix}.") for prefix in ignored)
        if values[0] != values[1] and not is_ignored and not is_unknown:
            differences.append(f"{name} ({values[0]} and {values[1]})")
    if differences:
        raise UserError(
            f"{first.folder} and {second.folder} differ in more than the arm: "
            f"{', '.join(differences)}"
        )


def _comparable_settings(run: Run) -> dict[str, object]:
    """Returns what must be equal. Nested names are joined by dots: `training.learning rate`."""
    settings = run.metrics["settings"]
    relevant = {name: value for name, value in settings.items() if name not in IRRELEVANT_SETTINGS}
    model = {name: settings["model"].get(name) for name in MODEL_FIELDS}
    return flatten_dict({"protocol": run.metrics["protocol"], **relevant, **model})


def learning_curves(log_history: list[dict]) -> dict:
    """Returns `train_loss`, and `eval_loss` per answer token by question type.

    Each is a list of [step, loss] pairs from the `log_history` of a `trainer_state.json`.
    """

    def curve(key: str) -> list[list[float]]:
        return [[entry["step"], float(entry[key])] for entry in log_history if key in entry]

    curves = {name: curve(f"eval_{name}_token_loss") for name in QUESTION_TYPES}
    eval_loss = {name: points for name, points in curves.items() if points}
    return {"train_loss": curve("loss"), "eval_loss": eval_loss}


def bits_per_second(encoder: AudioEncoder) -> float:
    """Returns the bits that an encoder's output takes for a second of a long clip.

    Codes take frames/s x codebooks x log2(codebook size). Continuous features take frames/s x
    channels x 16, because a feature cache stores bfloat16. A pair takes the sum of its encoders.
    `--audio_tokens`, which averages the output, is not counted.
    """
    if isinstance(encoder, PairEncoder):
        return bits_per_second(encoder.first) + bits_per_second(encoder.second)
    if isinstance(encoder, QuantizedEncoder):
        return encoder.frame_rate * encoder.num_levels * math.log2(encoder.codebook_size)
    if isinstance(encoder, HTSATEncoder) and len(encoder.dims) > 1:
        # Posteriors are repeated for each frame of a time cell, which adds no information.
        latent, classes = encoder.dims
        per_window = latent + encoder.time_cells * classes
        return 16.0 * per_window / encoder.config.window_seconds
    return encoder.frame_rate * encoder.dim * 16.0


def model_facts(folder: str | Path) -> dict:
    """Returns facts of a saved model for `comparison.json`, such as its audio tokens per second.

    Raises:
        UserError: If the folder holds no complete model.
    """
    with explain_errors(f"{folder}: no complete model", OSError, ValueError, SafetensorError):
        state = json.loads(Path(folder, "trainer_state.json").read_text(encoding="utf-8"))
        config = AudioLMConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        trained_parameters = _count_trained_parameters(folder, config)
    extractor = AudioLMProcessor.from_config(config, tokenizer).feature_extractor
    samples = int(config.max_audio_seconds * extractor.sampling_rate)
    tokens = config.audio_tokens or extractor.num_frames(samples)
    # Only the sizes are needed, so no memory is allocated.
    with torch.device("meta"):
        encoder = build_encoder(config.encoder_config)
    return {
        "trained_parameters": trained_parameters,
        "max_audio_seconds": config.max_audio_seconds,
        "tokens_per_clip": tokens,
        "tokens_per_second": tokens / config.max_audio_seconds,
        "bits_per_second": None if config.no_audio else bits_per_second(encoder),
        "learning_curves": learning_curves(state["log_history"]),
    }


def _count_trained_parameters(folder: str | Path, config: AudioLMConfig) -> int:
    prefixes = ("mapper.",) if config.freeze_lm else ("mapper.", "language_model.")
    count = 0
    with safe_open(Path(folder, "model.safetensors"), "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.startswith(prefixes) and not key.startswith("mapper.feature_"):
                count += math.prod(file.get_slice(key).get_shape())
    return count
