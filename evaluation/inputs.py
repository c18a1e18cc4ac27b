"""The inputs of an evaluation: a trained model, and the examples that it answers."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict

from ..checkpoints.load import load_model
from ..checkpoints.state_dicts import weights_digest
from ..configuration_audiolm import ARM_FIELDS
from ..data.audio_check import ClipFacts, drop_bad_audio, inspect_clips, list_clips
from ..data.benchmarks import read_benchmark
from ..data.json_table import stream_array
from ..data.label_fixes import RowFixes
from ..data.reasonaqa import REQUIRED_FIELDS, audio_roots, load_rows, question_type, resolve_path
from ..data.shards import dataset_folder, load_shards
from ..data.subsets import first_of_each_type, select_rows
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError, explain_errors
from .arguments import EvaluationArguments
from .controls import commonest_answers
from .scores import clip_paths

NEEDED_FIELDS = (*REQUIRED_FIELDS, "filepath2")  # of a row of `--train_file`


@dataclass(frozen=True)
class EvaluatedModel:
    """A model, its processor, and what identifies it in `metrics.json`."""

    model: AudioLMForConditionalGeneration
    processor: AudioLMProcessor
    facts: dict


@dataclass
class EvaluationData:
    """The examples of an evaluation."""

    rows: Dataset
    facts: dict[str, ClipFacts]  # of each clip
    # Of `--train_file`, whose rows are too many to keep.
    commonest_answers: dict[tuple[str, str | None], str] | None = None
    training_clips: frozenset[str] = frozenset()  # paths and digests


def load_evaluated_model(
    name: str, revision: str | None, device: torch.device, prompt_format: str | None = None
) -> EvaluatedModel:
    """Loads a model. By default it is asked with the prompt format of its training."""
    with explain_errors():
        model, tokenizer = load_model(name, revision)
    if "flash" in str(model.config.text_config._attn_implementation):
        # Flash attention does not accept the mask under which options are scored.
        model.set_attn_implementation("sdpa")
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    processor.prompt_format = prompt_format or model.config.prompt_format
    names = (*ARM_FIELDS, "mapper_hidden_size", "mapper_type", "prompt_format", "training")
    facts = {name: getattr(model.config, name, None) for name in names}
    facts["prompt_format"] = processor.prompt_format
    state = Path(name, "trainer_state.json")
    facts["step"] = None
    if state.is_file():
        facts["step"] = json.loads(state.read_text(encoding="utf-8"))["global_step"]
    facts["weights_sha256"] = weights_digest(model)
    return EvaluatedModel(model.to(device).eval(), processor, facts)


def load_text_only_model(name: str, device: torch.device) -> EvaluatedModel:
    """Loads the model of the control `question_only`."""
    text_only = load_evaluated_model(name, None, device)
    if not text_only.model.config.no_audio:
        raise UserError(f"--question_only_model {name} was trained without --no_audio")
    if text_only.model.config.prompt_format != "audiolm":
        raise UserError(f"--question_only_model {name} was trained on Mellow's prompts")
    return text_only


def read_data(arguments: EvaluationArguments, max_audio_seconds: float) -> EvaluationData:
    """Reads the examples to answer, and checks their audio."""
    with explain_errors():
        splits = DatasetDict(test=read_test_rows(arguments))
        usable = drop_bad_audio(
            splits, max_audio_seconds, arguments.on_bad_audio, arguments.output_dir
        )["test"]
        fixes = RowFixes(arguments.fix_cle_labels)
    facts = inspect_clips(list_clips([usable]), max_audio_seconds)
    data = EvaluationData(fixes.apply(usable), facts)
    if file := arguments.train_file:
        paths: set[str] = set()

        def training_rows() -> Iterator[dict]:
            for row in stream_array(file):
                missing = [name for name in NEEDED_FIELDS if name not in row]
                if missing:
                    raise UserError(f"a row has no field {missing[0]}")
                paths.update(clip_paths(row))
                yield fixes({**row, "question_type": question_type(row)})

        with explain_errors(f"--train_file {file}: not a readable training file"):
            data.commonest_answers = commonest_answers(training_rows())
        data.training_clips = identify_clips(paths, arguments.audio_dir, max_audio_seconds)
    return data


def identify_clips(
    paths: set[str], folders: list[str] | None, max_audio_seconds: float
) -> frozenset[str]:
    """Returns the paths of clips, and the digests of those whose audio is there."""
    if not folders:
        return frozenset(paths)
    roots = audio_roots(folders)
    files = []
    for path in sorted(paths):
        # Training may have audio that is not here.
        with suppress(UserError):
            files.append(resolve_path(path, roots))
    facts = inspect_clips(files, max_audio_seconds)
    return frozenset(paths | {fact.digest for fact in facts.values() if fact.digest})


def read_test_rows(arguments: EvaluationArguments) -> Dataset:
    """Reads the test split that the options name."""
    if arguments.dataset_name:
        rows = load_shards(dataset_folder(arguments.dataset_name), ["test"])["test"]
    elif arguments.benchmark:
        folder = arguments.audio_dir[0]  # ty: ignore[not-subscriptable]
        rows = read_benchmark(arguments.benchmark, arguments.test_file, folder)
    else:
        files = {"test": arguments.test_file}
        rows = load_rows(files, audio_roots(arguments.audio_dir))["test"]
    if arguments.subtypes:
        rows = select_rows(rows, arguments.subtypes)
    if arguments.max_samples:
        indices = first_of_each_type(rows, arguments.max_samples).values()
        rows = rows.select(sorted(chain.from_iterable(indices)))
    return rows


def warn_about_labels(arguments: EvaluationArguments, evaluated: EvaluatedModel) -> None:
    """Warns if the labels of CLE are fixed in one of training and evaluation only."""
    is_fixed_in_training = "fix_cle_labels" in getattr(evaluated.model.config, "data_changes", {})
    if is_fixed_in_training != (arguments.fix_cle_labels is not None):
        print(
            "run_eval.py: --fix_cle_labels differs from training, so CLE's labels have another "
            "meaning",
            file=sys.stderr,
        )
