"""Options of `run_eval.py`, their checks, and the controls that they select."""

# `option` returns a field of the dataclass.
# ruff: noqa: RUF009

from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser

from ..configuration_audiolm import CHOICES
from ..data.benchmarks import BENCHMARKS
from ..data.cache import choose_feature_cache
from ..runtime import UserError, check_positive, option
from .answering import PROTOCOLS
from .controls import CONTROLS

DESCRIPTION = """Evaluates a trained model: accuracy by question type, two protocols, controls.

`run_eval.py --model_name_or_path M --test_file test.json --audio_dir AUDIO --output_dir OUT` writes
`predictions.jsonl` and `metrics.json`, and prints the metrics. `--controls all` adds the controls.
The same command writes the same files in any number of processes (`accelerate launch run_eval.py`),
and resumes an interrupted evaluation. docs/evaluate.md explains the metrics."""
# Where `audiolm prepare download reasonaqa` puts ReasonAQA.
DATA_DIR = "reasonaqa"
# The option that each of these controls needs.
CONTROL_OPTIONS = {"majority": "train_file", "question_only": "question_only_model"}


@dataclass(kw_only=True)
class EvaluationArguments:
    """The options of an evaluation. Conflicting ones raise a `UserError`."""

    model_name_or_path: str = option(
        "The trained AudioLM: a folder or Hub name. Or Mellow: soham97/mellow, or its v0_s.ckpt.",
        REQUIRED,
    )
    test_file: str | None = option(
        "ReasonAQA's test.json. By default reasonaqa/test.json, with the audio in reasonaqa."
    )
    audio_dir: list[str] | None = option("Folder of the audio, or SOURCE=FOLDER for each source.")
    subtypes: list[str] | None = option("Use only these subtypes, as in run_train.py.")
    benchmark: str | None = option(
        "--test_file is the published file of this benchmark.", choices=tuple(BENCHMARKS)
    )
    dataset_name: str | None = option(
        "A data set of `audiolm prepare convert` (folder or Hub name) instead of --test_file and "
        "--audio_dir. Uses its split `test`."
    )
    fix_cle_labels: list[str] | None = option(
        "Fix the labels of the subtype CLE, as in run_train.py."
    )
    output_dir: str = option("Folder for predictions.jsonl and metrics.json.", REQUIRED)
    protocol: list[str] = option(
        "How closed questions are answered: by the log-likelihood of each option, or by parsing "
        "greedy text. metrics.json and the controls use the first one.",
        [*PROTOCOLS],
        choices=tuple(PROTOCOLS),
    )
    controls: list[str] = option(
        "Repeat the evaluation without the information that an honest answer needs. `all`: every "
        "control that can be run.",
        [],
        choices=("all", *CONTROLS),
    )
    train_file: str | None = option(
        "ReasonAQA's train.json, for the control `majority`, and to report clips that occur in it."
    )
    question_only_model: str | None = option(
        "A text-only model (run_train.py --no_audio), for the control `question_only`."
    )
    prompt_format: str | None = option(
        "How the prompt is written: as for an AudioLM, or as Mellow does. "
        "Default: as the model was trained.",
        choices=CHOICES["prompt_format"],
    )
    max_samples: int | None = option("Use only the first examples of each question type.")
    batch_size: int = option("Batch size.", 16)
    max_new_tokens: int = option("Maximum length of a generated answer.", 64)
    precision: Literal["fp32", "bf16"] = option("Of the mapper and the language model.", "fp32")
    feature_cache: str | None = option("Folder of encoded clips, or `none`, as in run_train.py.")
    on_bad_audio: Literal["error", "skip"] = option("What to do about broken files.", "error")
    push_to_hub: bool = option("Add the results to the model's repository.", False)
    hub_model_id: str | None = option("The repository, if --model_name_or_path is a folder.")
    revision: str | None = option(
        "Branch, tag or commit of a model on the Hub. Results are pushed there too."
    )
    trust_remote_code: bool = option(
        "Run the file of an encoder in the model's folder, if it has one.", False
    )
    hub_dataset_id: str = option("Name of the data set in the Hub's .eval_results.", "reasonaqa")

    def __post_init__(self) -> None:
        """Checks the options against each other."""
        self.protocol = list(dict.fromkeys(self.protocol))
        self.feature_cache = choose_feature_cache(self.feature_cache)
        if not (self.test_file or self.audio_dir or self.dataset_name or self.benchmark):
            self.test_file, self.audio_dir = f"{DATA_DIR}/test.json", [DATA_DIR]
        self._check_data_options()
        self._check_hub_options()
        check_positive(self, "max_samples", "batch_size", "max_new_tokens")
        for control, name in CONTROL_OPTIONS.items():
            if control in self.controls and getattr(self, name) is None:
                raise UserError(f"--controls {control}: give --{name} with it")

    def _check_data_options(self) -> None:
        has_test_file = bool(self.test_file)
        if bool(self.dataset_name) == has_test_file or has_test_file != bool(self.audio_dir):
            raise UserError("give either --test_file with --audio_dir, or --dataset_name")
        if self.benchmark and len(self.audio_dir or ()) != 1:
            raise UserError(
                f"--benchmark {self.benchmark}: expected its --test_file and one folder"
            )

    def _check_hub_options(self) -> None:
        if not self.push_to_hub and (self.hub_model_id or self.hub_dataset_id != "reasonaqa"):
            raise UserError("--hub_model_id and --hub_dataset_id: add --push_to_hub true")
        repository = Path(self.results_repository)
        if self.push_to_hub and (repository.exists() or len(repository.parts) != 2):
            raise UserError(
                f"--push_to_hub: {repository} is not a Hub name. Give --hub_model_id user/model"
            )

    @property
    def results_repository(self) -> str:
        """The Hub repository that gets the results."""
        return self.hub_model_id or self.model_name_or_path

    def plan_controls(self) -> dict[str, str]:
        """Returns why each control that was asked for cannot be run, or "" if it can.

        The option of a control selects it too.
        """
        plan = {}
        for control in CONTROLS:
            name = CONTROL_OPTIONS.get(control)
            is_selected = control in self.controls or "all" in self.controls
            if name and getattr(self, name):
                plan[control] = ""
            elif is_selected:
                plan[control] = f"--{name} was not given" if name else ""
        return plan


def build_parser() -> HfArgumentParser:
    """Builds the parser of `run_eval.py`."""
    parser = HfArgumentParser(EvaluationArguments, description=DESCRIPTION, allow_abbrev=False)
    for action in parser._actions:
        if action.dest == "fix_cle_labels":
            # `HfArgumentParser` expects a value in every list.
            action.nargs = "*"
    return parser


def parse_arguments(argv: list[str] | None = None) -> EvaluationArguments:
    """Parses and checks a command line. Wrong options end the process with a usage message."""
    return parse_options(build_parser(), argv)


def parse_options(parser: HfArgumentParser, argv: list[str] | None = None) -> Any:
    """Parses a command line into the parser's dataclass, whose errors become usage messages."""
    (arguments_class,) = parser.dataclass_types
    options = vars(parser.parse_args(argv))
    try:
        return arguments_class(**options)  # ty: ignore[not-callable]
    except UserError as error:
        parser.error(str(error))
