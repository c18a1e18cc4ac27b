"""Options of transformers' TrainingArguments: each does what it says, or is refused."""

import json
from dataclasses import fields

import pytest
import torch
from support.builders import arguments, weights
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from audiolm.modeling_audiolm import chunked_cross_entropy
from audiolm.run_train import main as train_command
from audiolm.training.arguments import parse_arguments
from audiolm.training.stock_options import RECORDED, REFUSED

# They do what their help says, and a test shows it.
# fmt: off
SUPPORTED = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay",
    "gradient_accumulation_steps", "bf16", "fp16", "tf32",
    "activation_checkpointing", "gradient_checkpointing", "torch_compile",
    "torch_compile_backend", "disable_tqdm", "logging_strategy", "logging_steps",
    "logging_first_step", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start",
    "per_device_eval_batch_size", "save_strategy", "save_steps", "save_total_limit",
    "save_only_model", "push_to_hub", "hub_model_id", "hub_strategy", "hub_always_push",
    "hub_private_repo", "hub_revision", "seed", "use_cpu", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_persistent_workers", "train_sampling_strategy",
    "resume_from_checkpoint", "include_num_input_tokens_seen",
    "report_to", "accelerator_config",
}
# fmt: on
# They change names, logs, speed or memory, as their help says.
# fmt: off
IRRELEVANT = {
    "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "use_cache",
    "torch_empty_cache_steps", "log_on_each_node", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "eval_accumulation_steps", "save_on_each_node",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "debug", "skip_memory_metrics",
    "do_train", "do_eval", "local_rank",
}
# fmt: on


def read_log(folder, key):
    """Values of a logged number by step."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[key] for entry in log if key in entry}


def read_error(argv, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.strip().split("\n")[-1]


@pytest.fixture
def options(corpus, tokenizer):
    """Command line of a short training."""
    return arguments(corpus, "mimi_full", tokenizer, "--logging_steps", "1")


def test_each_option_of_transformers_stands_in_one_table():
    tables = [*SUPPORTED, *RECORDED, *IRRELEVANT, *REFUSED]
    assert sorted(tables) == sorted(field.name for field in fields(TrainingArguments))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bf16_full_eval", "true"),
        ("batch_eval_metrics", "true"),
        ("prediction_loss_only", "true"),
        ("include_for_metrics", "inputs"),
        ("eval_do_concat_batches", "false"),
        ("eval_use_gather_object", "true"),
        ("auto_find_batch_size", "true"),
        ("remove_unused_columns", "true"),
        ("label_names", "targets"),
        ("length_column_name", "size"),
        ("use_liger_kernel", "true"),
        ("enable_jit_checkpoint", "true"),
        ("ignore_data_skip", "true"),
        ("restore_callback_states_from_checkpoint", "true"),
        ("data_seed", "3"),
        ("dataloader_in_order", "false"),
        ("greater_is_better", "true"),
        ("do_predict", "true"),
    ],
)
def test_option_that_would_be_ignored_is_refused(name, value, capsys):
    error = read_error([f"--{name}", value], capsys)
    assert error.endswith(f"--{name}: not supported, because {REFUSED[name]}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shuffle_buffer", "9"], "--shuffle_buffer: add --streaming true"),
        (["--hub_model_id", "me/x"], "--hub_model_id: add --push_to_hub true"),
        (["--accelerator_config", '{"split_batches": true}'], "split_batches is not supported"),
        (["--load_best_model_at_end", "true"], "needs evaluations: add --validation_file"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "needs evaluations: add --validation"),
        (["--num_train_epochs", "3", "--max_steps", "9"], "--num_train_epochs: remove --max_steps"),
    ],
)
def test_options_that_do_not_fit_are_refused(argv, message, capsys):
    assert message in read_error(argv, capsys)


def test_epochs_alone_train_epochs():
    args = parse_arguments(["--num_train_epochs", "3"])[2]
    assert args.max_steps == -1
    assert args.num_train_epochs == 3


def test_tiny_label_smoothing_gives_the_loss_without(options, corpus):
    losses = {}
    for factor in ("0", "1e-9", "0.2"):
        train_command([*options, "--max_steps", "1", "--label_smoothing_factor", factor])
        losses[factor] = read_log(corpus / "out", "loss")[1]
    assert losses["1e-9"] == pytest.approx(losses["0"], abs=1e-4)
    assert losses["0.2"] != pytest.approx(losses["0"], abs=1e-4)


def test_label_smoothing_is_that_of_transformers():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30)
    hidden, targets = torch.randn(1, 600, 8), torch.randint(30, (1, 600))
    expected = LabelSmoother(epsilon=0.2)({"logits": head(hidden)}, targets)
    total = chunked_cross_entropy(hidden[0], head, targets[0], 0.2)
    assert torch.allclose(total / 600, expected)


def test_best_checkpoint_is_loaded_at_the_end(options, corpus):
    """The learning rate is so large that the first evaluation is the best."""
    more = ["--max_steps", "3", "--eval_steps", "1", "--save_steps", "1", "--learning_rate", "1"]
    train_command([*options, *more, "--load_best_model_at_end", "true"])
    output = corpus / "out"
    losses = read_log(output, "eval_macro_loss")
    best = min(losses, key=losses.get)
    assert best < 3
    trained = weights(output)
    expected = weights(output / f"checkpoint-{best}")
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_macro_loss_is_the_mean_over_question_types(options, corpus):
    train_command([*options, "--max_steps", "1", "--eval_steps", "1"])
    by_type = [read_log(corpus / "out", f"eval_{name}_token_loss")[1] for name in ("mcq", "yes_no")]
    assert read_log(corpus / "out", "eval_macro_loss")[1] == pytest.approx(sum(by_type) / 2)


def test_schedule_that_watches_the_loss_lowers_the_rate(options, corpus):
    watching = ["--lr_scheduler_type", "reduce_lr_on_plateau", "--learning_rate", "1"]
    settings = ["--lr_scheduler_kwargs", '{"patience": 0, "factor": 0.1}']
    train_command([*options, *watching, *settings, "--max_steps", "5", "--eval_steps", "1"])
    rates = read_log(corpus / "out", "learning_rate")
    assert rates[5] < rates[1]


def test_metric_of_a_missing_question_type_is_refused(options, capsys):
    argv = [*options, "--metric_for_best_model", "caption_token_loss"]
    with pytest.raises(SystemExit, match="expected macro_loss, mcq_token_loss, mcq_loss, yes_no"):
        train_command(argv)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neftune_noise_alpha", "5"),
        ("max_grad_norm", "0.5"),
        ("label_smoothing_factor", "0.1"),
        ("adam_beta1", "0.8"),
        ("adam_beta2", "0.9"),
        ("adam_epsilon", "1e-6"),
        ("lr_scheduler_kwargs", '{"num_cycles": 1}'),
    ],
)
def test_option_that_changes_the_numbers_is_recorded(name, value):
    recorded = parse_arguments([f"--{name}", value])[2].recorded
    assert list(recorded) == [name.replace("_", " ")]


def test_option_with_its_default_is_not_recorded():
    assert parse_arguments(["--max_grad_norm", "1.0"])[2].recorded == {}


def test_resuming_with_another_recorded_option_is_refused(options, corpus):
    train_command([*options, "--max_steps", "2", "--save_steps", "1"])
    resumed = [*options, "--max_steps", "2", "--resume_from_checkpoint", "true"]
    message = r"was trained with neftune noise alpha None \(now 5.0\)"
    with pytest.raises(SystemExit, match=message):
        train_command([*resumed, "--neftune_noise_alpha", "5"])


def test_options_that_do_not_change_the_numbers_run(options, corpus):
    more = [
        *["--logging_first_step", "true", "--eval_on_start", "true", "--save_only_model", "true"],
        *["--include_num_input_tokens_seen", "true", "--skip_memory_metrics", "false"],
        *["--torch_empty_cache_steps", "1", "--eval_accumulation_steps", "1"],
        *["--gradient_checkpointing", "true", "--optim", "adamw_torch", "--eval_delay", "1"],
    ]
    steps = ["--max_steps", "2", "--save_steps", "1", "--eval_steps", "1"]
    train_command([*options, *steps])
    expected = weights(corpus / "out")
    train_command([*options, *steps, *more, "--optim", "adamw_torch_fused"])
    trained = weights(corpus / "out")
    assert all(torch.allclose(trained[name], expected[name], atol=1e-6) for name in expected)
