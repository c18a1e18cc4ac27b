"""What run_train.py and run_eval.py left in folders, and whether evaluations there may be compared: by nothing but their
arm."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from ..configuration_audiolm import ARM_FIELDS, AudioLMConfig
from ..data.reasonaqa import FIELDS, QUESTION_TYPES
from ..encoders_audiolm import AudioEncoder, build_encoder
from ..processing_audiolm import AudioLMProcessor

NO_ANSWERS = (
    "question_only",
    "batch_size",
    "controls",
)  # settings on which the answers do not depend
OF_A_SEED = ("seed", "shuffle options", "batches")  # what differs between the seeds of one arm


class Run(NamedTuple):
    """One evaluation: its folder, `metrics.json` and the rows of `predictions.jsonl`."""

    folder: Path
    metrics: dict
    rows: list[dict]

    @property
    def seed(self):
        return (self.metrics["settings"]["model"]["training"] or {}).get("seed")

    @property
    def published(self) -> bool:
        """Whether the model was trained elsewhere, as Mellow was, and converted."""
        return "published" in (self.metrics["settings"]["model"]["training"] or {})

    @property
    def deaf(self) -> bool:
        return self.metrics["settings"]["model"]["no_audio"]


def read_run(folder: str | Path) -> Run:
    """The evaluation in a folder of run_eval.py.

    Raises:
        ValueError: in one line, if it is not there or of an older version.
    """
    try:
        metrics = json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))
        lines = Path(folder, "predictions.jsonl").read_text(encoding="utf-8").split("\n")
        run = Run(Path(folder), metrics, [json.loads(line) for line in lines if line])
        if metrics["settings"]["model"]["training"] is None:
            raise ValueError(
                "the model's config.json does not say how it was trained; train it with this version of run_train.py"
            )
        return run
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no evaluation that can be compared: {error}") from error


def _flat(settings: Mapping, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in settings.items():
        found |= (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return found


def _comparable(
    run: Run, of_one_arm: bool, may_differ: tuple[str, ...], of_published: bool
) -> dict[str, object]:
    """What must be equal: of two arms of one seed, or of two seeds of one arm; if one was trained elsewhere, how both were
    asked alone."""
    settings = {
        name: value for name, value in run.metrics["settings"].items() if name not in NO_ANSWERS
    }
    model = dict(settings.pop("model"))
    if of_published:
        return _flat({"protocol": run.metrics["protocol"], **settings})
    asked = {
        name: model.get(name) or usual
        for name, usual in (("mapper_type", "mlp"), ("prompt_format", "audiolm"))
    }
    training = {name: value for name, value in model["training"].items() if name not in may_differ}
    arm = {name: model.get(name) for name in ARM_FIELDS} if of_one_arm else {}
    if of_one_arm:
        training = {name: value for name, value in training.items() if name not in OF_A_SEED}
    fixed = {"protocol": run.metrics["protocol"], **settings, **asked}
    return _flat({**fixed, **arm, "step": model.get("step"), "training": training})


def check_comparable(runs: Mapping[str, list[Run]], may_differ: tuple[str, ...] = ()) -> None:
    """Refuses a comparison that would not be one of encoders.

    Args:
        runs: of each arm, one for each seed. may_differ: names in the record of a training, such as "learning rate".

    Raises:
        ValueError: in one line that names what differs.
    """

    def check(one: Run, other: Run, of_one_arm: bool) -> None:
        if [[row[field] for field in FIELDS] for row in one.rows] != [
            [row[field] for field in FIELDS] for row in other.rows
        ]:
            raise ValueError(
                f"{one.folder} and {other.folder} hold answers to different rows; evaluate both on one test file"
            )
        published = one.published or other.published
        a, b = (_comparable(run, of_one_arm, may_differ, published) for run in (one, other))
        known = [
            name
            for name in dict.fromkeys([*a, *b])
            if name != "step" or None not in (a[name], b[name])
        ]  # the Hub has none
        differing = [
            f"{name} ({a.get(name)} and {b.get(name)})"
            for name in known
            if a.get(name) != b.get(name)
        ]
        if differing:
            raise ValueError(
                f"{one.folder} and {other.folder} differ in more than the arm: {', '.join(differing)}"
            )

    first, *others = runs.values()
    if trained := [of for of in runs.values() if not of[0].published]:
        first, *others = *trained, *(of for of in runs.values() if of[0].published)
    for arm, of in runs.items():
        if of[0].published and len(of) == len(first):
            continue
        if [run.seed for run in of] != [run.seed for run in first]:
            seeds = {name: [run.seed for run in found] for name, found in runs.items()}
            raise ValueError(
                f"each arm wants the same seeds in the same order, but they are {seeds}"
            )
        if len({run.seed for run in of}) != len(of):
            raise ValueError(
                f"{arm}: the seed {of[0].seed} is there twice; a second seed wants a second training"
            )
        for run in of[1:]:
            check(of[0], run, True)
    for of in others:
        for one, other in zip(first, of):
            check(one, other, False)


def learning_curves(log_history: list[dict]) -> dict:
    """Training loss and loss per answer token of each question type, as [step, loss] pairs, of a `trainer_state.json`."""
    keys = {kind: f"eval_{kind}_token_loss" for kind in QUESTION_TYPES}
    found = {
        kind: [[e["step"], float(e[key])] for e in log_history if key in e]
        for kind, key in keys.items()
    }
    return {
        "train_loss": [[e["step"], float(e["loss"])] for e in log_history if "loss" in e],
        "eval_loss": {kind: points for kind, points in found.items() if points},
    }


def bits_per_second(encoder: AudioEncoder) -> float:
    """Bits that an encoder's representation of a second of a long clip takes, before `--audio_tokens` averages it.

    Of codes: frames/s x levels x log2(codebook size). Of continuous features: frames/s x channels x 16, as a feature cache
    keeps them in bfloat16; what they hold may be less. A pair of encoders has the sum of both.
    """
    if hasattr(encoder, "first"):
        return bits_per_second(encoder.first) + bits_per_second(encoder.second)
    if hasattr(encoder, "codes"):
        return encoder.frame_rate * encoder.num_levels * math.log2(encoder.codebook_size)
    if len(encoder.dims) > 1:  # a latent and posteriors, of which repeated ones hold no more
        latent, classes = encoder.dims
        return 16.0 * (latent + encoder.time_cells * classes) / encoder.config.window_seconds
    return encoder.frame_rate * encoder.dim * 16.0


def model_facts(folder: str | Path) -> dict:
    """Of a saved model: trained parameters, the seconds that it uses of a clip, the tokens that it makes of them and of one of
    them, bits/s of what its encoder hands on (none where the audio is taken away), and its learning curves."""
    AutoConfig.register(
        "audiolm", AudioLMConfig, exist_ok=True
    )  # or the code beside the weights would be asked about
    config, tokenizer = (
        AudioLMConfig.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
    )
    extractor = AudioLMProcessor.from_config(config, tokenizer).feature_extractor
    trained = ("mapper.",) if config.freeze_lm else ("mapper.", "language_model.")
    with safe_open(Path(folder, "model.safetensors"), "pt") as file:
        count = sum(
            math.prod(file.get_slice(key).get_shape())
            for key in file.keys()  # noqa: SIM118
            if key.startswith(trained) and not key.startswith("mapper.feature_")
        )
    state = json.loads(Path(folder, "trainer_state.json").read_text())
    tokens = config.audio_tokens or extractor.num_frames(
        int(config.max_audio_seconds * extractor.sampling_rate)
    )
    with torch.device("meta"):  # its sizes alone
        encoder = build_encoder(config.encoder_config)
    return {
        "trained_parameters": count,
        "max_audio_seconds": config.max_audio_seconds,
        "tokens_per_clip": tokens,
        "tokens_per_second": tokens / config.max_audio_seconds,
        "bits_per_second": None if config.no_audio else bits_per_second(encoder),
        "learning_curves": learning_curves(state["log_history"]),
    }


def validation_loss(folder: str | Path) -> float:
    """Loss per answer token on the validation split at the last step, mean over question types, of a trained model's folder.

    Raises:
        ValueError: if it was never evaluated.
    """
    curves = learning_curves(
        json.loads(Path(folder, "trainer_state.json").read_text())["log_history"]
    )["eval_loss"]
    if not curves:
        raise ValueError(f"{folder}/trainer_state.json holds no loss on a validation split")
    return sum(points[-1][1] for points in curves.values()) / len(curves)
