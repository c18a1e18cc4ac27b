"""Evaluates a trained model: accuracy by question type, two protocols, controls.

`arguments.py` describes the command, docs/evaluate.md the metrics.
"""

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from .. import __version__
from ..checkpoints.load import import_saved_encoders
from ..data.features import FeatureCache
from ..data.second_clips import second_clips
from ..data.shards import MANIFEST, dataset_folder
from ..hub.push import push_results
from ..runtime import (
    RUN_INFO_FILE,
    UserError,
    explain_errors,
    report_user_errors,
    run_info,
    use_all_of_the_cpu,
    write_json,
    write_text,
)
from .answering import PROTOCOLS
from .arguments import CONTROL_OPTIONS, EvaluationArguments, parse_arguments
from .inputs import (
    EvaluatedModel,
    EvaluationData,
    load_evaluated_model,
    load_text_only_model,
    read_data,
    warn_about_labels,
)
from .predict import Answerer, PartialAnswers, answer_rows, rows_digest
from .scores import mark_training_clips, predicted_rows, score
from .tables import format_metrics, training_notes

# Options that answers depend on, and fields of an `Answerer`.
ANSWERER_OPTIONS = ("batch_size", "max_new_tokens", "precision")
# A process that has fewer examples left waits for the others, however long that takes.
WAIT_LIMIT = timedelta(days=7)


@report_user_errors("run_eval.py")
def main(argv: list[str] | None = None) -> None:
    """Runs `run_eval.py`."""
    arguments = parse_arguments(argv)
    evaluation = evaluate(arguments)
    if evaluation is None:
        return
    evaluation.save(arguments.output_dir, argv)
    print(evaluation.summary())
    if arguments.push_to_hub:
        print(push(arguments, evaluation))


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    metrics: dict  # metrics.json
    rows: list[dict]  # predictions.jsonl
    seconds: float  # time that answering took
    seconds_by_activity: dict[str, float]  # the same for the evaluated model
    weights_commit: str | None = None  # on the Hub

    def save(self, folder: str | Path, argv: list[str] | None = None) -> None:
        """Writes the results into the output folder, and deletes the partial answers there."""
        folder = Path(folder)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows]
        write_text(folder / "predictions.jsonl", "".join(lines))
        write_json(folder / "metrics.json", self.metrics)
        settings = self.metrics["settings"]
        facts = {"rows_sha256": settings["rows_sha256"], "model": settings["model"]}
        info = run_info("run_eval.py", argv, **facts, seconds=self.seconds)
        write_json(folder / RUN_INFO_FILE, info)
        PartialAnswers(folder, settings).delete()

    def summary(self) -> str:
        """Returns the metrics and timings as text."""
        count = len(self.rows)
        activities = ", ".join(f"{k} {v:.1f} s" for k, v in self.seconds_by_activity.items())
        speed = f"{count} rows in {self.seconds:.1f} s, {count / self.seconds:.1f} rows/s"
        return f"{format_metrics(self.metrics)}\n{speed} ({activities})"


def evaluate(arguments: EvaluationArguments) -> Evaluation | None:
    """Evaluates a model. Returns None in other processes than the main one."""
    use_all_of_the_cpu()
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT_LIMIT)
    output = Path(arguments.output_dir)
    with explain_errors():
        output.mkdir(parents=True, exist_ok=True)
    if arguments.trust_remote_code:
        names = [arguments.model_name_or_path, arguments.question_only_model]
        import_saved_encoders([name for name in names if name], arguments.revision)
    evaluated = load_evaluated_model(
        arguments.model_name_or_path, arguments.revision, state.device, arguments.prompt_format
    )
    data = read_data(arguments, evaluated.model.config.max_audio_seconds)
    warn_about_labels(arguments, evaluated)

    plan = arguments.plan_controls()
    if "no_audio" in plan and not evaluated.model.mapper.feature_mean.any():
        plan["no_audio"] = "the model does not hold the mean of training's features"
    if "mismatched_audio" in plan and len(data.facts) < 2:
        plan["mismatched_audio"] = "there is one clip"
    controls = [control for control, problem in plan.items() if not problem]
    options = {name: getattr(arguments, name) for name in ANSWERER_OPTIONS}
    protocols = tuple(arguments.protocol)
    answerer = Answerer(evaluated.model, evaluated.processor, protocols, **options)
    # The answers of the others come from training data and from another model.
    answerer.controls = tuple(name for name in controls if name not in CONTROL_OPTIONS)
    if evaluated.processor.prompt_format == "mellow":
        answerer.rows = second_clips(data.rows, 0)
    answerers = {"": answerer}
    settings = describe_settings(arguments, controls, evaluated, data)
    if "question_only" in controls:
        text_only = load_text_only_model(arguments.question_only_model, state.device)
        parts = (text_only.model, text_only.processor)
        answerers["question_only"] = Answerer(*parts, protocols[:1], **options)
        settings["question_only"] = text_only.facts
    if arguments.feature_cache:
        extractor = evaluated.processor.feature_extractor
        answerer.cache = FeatureCache(arguments.feature_cache, evaluated.model.encoder, extractor)

    start = time.perf_counter()
    outputs = answer_rows(data.rows, answerers, output, settings, state)
    seconds = time.perf_counter() - start
    if outputs is None:
        return None
    rows = predicted_rows(data.rows, outputs, data.facts, data.commonest_answers)
    if data.commonest_answers is not None:
        mark_training_clips(rows, data.training_clips)
    not_run = {control: problem for control, problem in plan.items() if problem}
    metrics = compute_metrics(arguments, not_run, rows, settings)
    commit = getattr(evaluated.model.config, "_commit_hash", None)
    return Evaluation(metrics, rows, seconds, answerer.seconds, commit)


def describe_settings(
    arguments: EvaluationArguments,
    controls: list[str],
    evaluated: EvaluatedModel,
    data: EvaluationData,
) -> dict:
    """Returns what the answers depend on. Only evaluations with equal settings are comparable."""
    return {
        "version": __version__,
        "rows_sha256": rows_digest(data.rows),
        "model": evaluated.facts,
        "protocols": arguments.protocol,
        "controls": controls,
        **{name: getattr(arguments, name) for name in ANSWERER_OPTIONS},
        "max_audio_seconds": evaluated.model.config.max_audio_seconds,
        # A cache rounds HTSAT's features to bfloat16.
        "features": "of a cache" if arguments.feature_cache else "encoded here",
    }


def compute_metrics(
    arguments: EvaluationArguments, not_run: dict[str, str], rows: list[dict], settings: dict
) -> dict:
    """Returns the content of `metrics.json`."""
    protocol = PROTOCOLS[arguments.protocol[0]][0]
    metrics = {
        **score(rows, protocol, settings["max_audio_seconds"]),
        "training_notes": training_notes(settings["model"]["training"]),
        "not_run": not_run,
        "settings": settings,
    }
    if arguments.fix_cle_labels is not None:
        files = [Path(file).name for file in arguments.fix_cle_labels]
        metrics["fix_cle_labels"] = files or "swapped"
    return metrics


def push(arguments: EvaluationArguments, evaluation: Evaluation) -> str:
    """Adds the results to the model's repository on the Hub. Returns the address of the commit."""
    test_file = arguments.test_file or Path(dataset_folder(arguments.dataset_name), MANIFEST)
    try:
        return push_results(
            arguments.results_repository,
            evaluation.metrics,
            test_file,
            arguments.hub_dataset_id,
            arguments.revision,
            evaluation.weights_commit,
        )
    except ConnectionError as error:
        raise UserError(f"{error}. The results are in {arguments.output_dir}") from error
