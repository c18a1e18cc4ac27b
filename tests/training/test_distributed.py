"""Several processes, for real: they end as one does, and none waits for one that died. No GPUs."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from support.builders import TWO_PROCESSES, arguments, free_port, make_corpus, small_model, weights
from support.options import logged_values, options
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from audiolm.run_train import main as train
from audiolm.runtime import UserError
from audiolm.training.arguments import parse_arguments
from audiolm.training.distributed import (
    any_not_finite,
    check_distributed_options,
    mask_repeated_examples,
)
from audiolm.training.resume import RECORD_FILE, find_checkpoint_problem
from audiolm.training.trainer import AudioLMTrainer

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "configs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
FOUR_STEPS = options("--max_steps 4 --eval_steps 2 --save_steps 2 --learning_rate 0.001")


def start(log: Path, command: list[str]) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def kill_all_in(folder: Path) -> None:
    """Kills every process with the folder on its command line, with or without its launcher."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            process.kill()


def launch(configuration: str, *argv: str) -> list[str]:
    """`accelerate launch` with one of our configurations, on CPUs, where bfloat16 is slow."""
    file = str(CONFIGURATIONS / configuration)
    return [*LAUNCH, "--config_file", file, "--mixed_precision", "no", *argv]


def set_corpus_size(corpus: Path, num_rows: int) -> None:
    """Removes or adds rows, so that there are so many and no two are equal."""
    rows = json.loads((corpus / "rows.json").read_text())
    longer = [{**row, "input": row["input"] + " Listen."} for row in rows]
    (corpus / "rows.json").write_text(json.dumps([*rows, *longer][:num_rows]))


def logged(folder: Path) -> dict[str, list[float]]:
    """What a run logged, except for times."""
    names = ("loss", "grad_norm", "eval_mcq_token_loss", "eval_yes_no_token_loss")
    return {name: logged_values(folder, name) for name in names}


def assert_same_weights(folder: Path, expected: Path) -> None:
    state = weights(folder)
    for name, value in weights(expected).items():
        assert torch.allclose(value.float(), state[name].float(), atol=2e-5), name


def assert_same_run(folder: Path, expected: Path) -> None:
    assert_same_weights(folder, expected)
    expected_log = logged(expected)
    assert [len(values) for values in expected_log.values()] == [4, 4, 2, 2]
    for name, values in logged(folder).items():
        assert values == pytest.approx(expected_log[name], rel=1e-4), name


# run_train.py, and again without an end
TWICE = """
import sys
from audiolm.run_train import main
main(sys.argv[1:])
endless = ["--output_dir", sys.argv[-1] + "_endless", "--max_steps", "100000", "--save_steps", "1"]
main([*sys.argv[1:], *endless])
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, tokenizer):
    """A folder, arguments of run_train.py, and the launchers of two machines with one process each.

    Both are this machine. Machine N writes to `outN`, and to `outN_endless` until it is killed.
    """
    corpus = make_corpus(tmp_path_factory.mktemp("nodes"))
    set_corpus_size(corpus, 17)  # In the second step one process has an example, the other none.
    argv = arguments(corpus, "mimi_full", tokenizer, *FOUR_STEPS)
    (corpus / "twice.py").write_text(TWICE)
    machine = options(
        f"--num_processes 2 --main_process_ip 127.0.0.1 --main_process_port {free_port()}"
    )
    program = [str(corpus / "twice.py"), *argv, "--output_dir"]
    commands = [
        launch(
            "several_nodes.yaml", *machine, "--machine_rank", rank, *program, f"{corpus}/out{rank}"
        )
        for rank in ("0", "1")
    ]
    try:
        launchers = [
            start(corpus / f"{rank}.log", command) for rank, command in enumerate(commands)
        ]
        yield corpus, argv, launchers
    finally:
        kill_all_in(corpus)


def wait_for(file: Path, launchers: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} is not written"
        assert [launcher.poll() for launcher in launchers] == [None, None]
        time.sleep(0.05)


@pytest.mark.slow
def test_train_on_two_nodes_ends_as_one_process(nodes):
    corpus, argv, launchers = nodes
    train(argv)
    wait_for(corpus / "out0" / "README.md", launchers)  # the last file of a run
    assert_same_run(corpus / "out0", corpus / "out")
    # Without a shared folder, the other machine has its random states alone.
    files = [file for file in (corpus / "out1").rglob("*") if file.is_file()]
    assert sorted(str(file.relative_to(corpus / "out1")) for file in files) == [
        "checkpoint-2/rng_state_1.pth",
        "checkpoint-4/rng_state_1.pth",
    ]
    checkpoint = corpus / "out0" / "checkpoint-4"
    problem = find_checkpoint_problem(checkpoint)
    assert problem == "expected the random states of 2 processes, found 1"
    shutil.copy(corpus / "out1" / "checkpoint-4" / "rng_state_1.pth", checkpoint)
    assert find_checkpoint_problem(checkpoint) is None


def test_train_process_that_dies_ends_the_job(nodes):
    corpus, _, launchers = nodes
    wait_for(corpus / "out0_endless" / "checkpoint-2" / RECORD_FILE, launchers)
    (worker,) = psutil.Process(launchers[1].pid).children()
    worker.kill()
    assert all(launcher.wait(60) for launcher in launchers)
    assert f"Signal 9 (SIGKILL) received by PID {worker.pid}" in (corpus / "1.log").read_text()
    assert "by peer" in (corpus / "0.log").read_text()  # closed, or reset
    assert not (corpus / "out0_endless" / "model.safetensors").exists()


class Observer(TrainerCallback):
    """Writes what it sees in the first step, and makes the largest gradient of the third infinite.

    `observed.pt` holds the gradients, the first process's share of each sharded parameter, the
    names of all others, and the encoder's first input.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.encoder_inputs = []
        encode = type(model.encoder).encode

        def record_and_encode(audio, *rest):
            self.encoder_inputs.append(audio)
            return encode(model.encoder, audio, *rest)

        model.encoder.encode = record_and_encode

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = dict(model.named_parameters())
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if state.global_step == 0:
            sharded = {name: p for name, p in trained.items() if isinstance(p, DTensor)}
            gradients = {name: p.grad.clone() for name, p in trained.items()}
            gradients |= {name: p.grad.full_tensor() for name, p in sharded.items()}
            observations = {
                "gradients": gradients,
                "share": {name: p.to_local().numel() / p.numel() for name, p in sharded.items()},
                "unsharded": [n for n, p in parameters.items() if not isinstance(p, DTensor)],
                "encoder_input": self.encoder_inputs[0],
            }
            if args.process_index == 0:
                torch.save(observations, Path(args.output_dir, "observed.pt"))
        if state.global_step == 2 and args.process_index == args.world_size - 1:
            largest = max((p.grad for p in trained.values()), key=torch.Tensor.numel)
            (largest.to_local() if isinstance(largest, DTensor) else largest).fill_(float("inf"))


initialise_trainer = AudioLMTrainer.__init__


def initialise_observed_trainer(self, *args, **kwargs) -> None:
    """Puts an observer before the callback that looks for gradients that are not finite."""
    initialise_trainer(self, *args, **kwargs)
    self.callback_handler.callbacks.insert(0, Observer())


# run_train.py under FSDP: from its start, resumed from step 2, and in bfloat16. accelerate leaves
# processes on CPUs out of FSDP. This puts them back, and all that follows is what runs on GPUs.
SHARED = """
import shutil, sys
import accelerate.state as state
import torch
from accelerate.utils import DistributedType

prepare = state.AcceleratorState.__init__
def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    prepare(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
state.AcceleratorState.__init__ = with_fsdp

sys.path[:0] = sys.argv[1:3]
import test_distributed
from audiolm.run_train import main
from audiolm.training.trainer import AudioLMTrainer
AudioLMTrainer.__init__ = test_distributed.initialise_observed_trainer

argv, output = sys.argv[3:], sys.argv[-1]
main(argv)
if torch.distributed.get_rank() == 0:
    shutil.copytree(output, output + "_unresumed")
    shutil.rmtree(output + "/checkpoint-4")
torch.distributed.barrier()
main([*argv, "--resume_from_checkpoint", "true"])
main([*argv[:-1], output + "_bf16", "--bf16", "true"])
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tokenizer):
    """The folder of a run in one process and one with a sharded model, and the latter's output."""
    corpus = make_corpus(tmp_path_factory.mktemp("sharded"))
    set_corpus_size(corpus, 13)
    # Evaluation uses one clip, so that the others are encoded in the steps.
    more = options("--per_device_train_batch_size 2 --max_eval_samples 1")
    argv = [*arguments(corpus, "mimi_full", tokenizer, *FOUR_STEPS, *more), "--output_dir"]
    (corpus / "sharded.py").write_text(SHARED)
    tests = Path(__file__).parents[1]
    program = [str(corpus / "sharded.py"), str(tests), str(tests / "training")]
    command = launch("fsdp.yaml", "--main_process_port", free_port(), *program, *argv)
    launcher = start(corpus / "two.log", [*command, str(corpus / "two")])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AudioLMTrainer, "__init__", initialise_observed_trainer)
            train([*argv, str(corpus / "one")])
            train([*argv, str(corpus / "one_bf16"), *options("--bf16 true --use_cpu true")])
        launcher.wait(300)
    finally:
        kill_all_in(corpus)
    output = (corpus / "two.log").read_text()
    assert launcher.returncode == 0, output[-5000:]
    return corpus, output


def observed(folder: Path) -> dict:
    return torch.load(folder / "observed.pt", weights_only=True)


@pytest.mark.slow
def test_fsdp_shards_all_that_trains(sharded):
    corpus, _ = sharded
    names = observed(corpus / "one")["unsharded"]
    result = observed(corpus / "two_unresumed")
    assert result["unsharded"] == [name for name in names if name.startswith("encoder.")]
    assert len(result["share"]) == len(names) - len(result["unsharded"])
    assert len(result["share"]) > 20
    assert set(result["share"].values()) == {0.5}


@pytest.mark.slow
def test_fsdp_trains_as_one_process(sharded):
    corpus, output = sharded
    expected = observed(corpus / "one")["gradients"]
    gradients = observed(corpus / "two_unresumed")["gradients"]
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(gradients[name], gradient, atol=1e-6), name
    assert_same_run(corpus / "two_unresumed", corpus / "one")
    # Of three runs, and one of two processes.
    assert output.count("step 3: loss or gradients are not finite; its update was skipped") == 3


@pytest.mark.slow
def test_fsdp_run_is_saved_and_resumed(sharded):
    corpus, _ = sharded
    assert find_checkpoint_problem(corpus / "two_unresumed" / "checkpoint-4") is None
    assert_same_run(corpus / "two", corpus / "one")
    # Tied weights are written once.
    size = (corpus / "two" / "model.safetensors").stat().st_size
    assert abs(size - (corpus / "one" / "model.safetensors").stat().st_size) < 2000
    optimizer = corpus / "two" / "checkpoint-2" / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    problem = find_checkpoint_problem(corpus / "two" / "checkpoint-2")
    assert problem.startswith("optimizer.bin is missing or incomplete")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["two", "two/checkpoint-4"])
def test_fsdp_saved_model_has_the_source_of_the_model(sharded, folder):
    corpus, _ = sharded
    modules = [
        f"{name}_audiolm" for name in ("configuration", "encoders", "modeling", "processing")
    ]
    assert sorted(file.stem for file in (corpus / folder).glob("*.py")) == modules
    auto_map = json.loads((corpus / folder / "config.json").read_text())["auto_map"]
    used = {name.split(".")[0] for name in auto_map.values()}
    assert used == {"configuration_audiolm", "modeling_audiolm"}


@pytest.mark.slow
def test_fsdp_in_bfloat16_leaves_the_encoder_in_float32(sharded):
    corpus, _ = sharded
    expected = observed(corpus / "one")["encoder_input"]
    encoder_input = observed(corpus / "two_bf16")["encoder_input"]
    assert encoder_input.dtype == torch.float32
    assert torch.equal(encoder_input, expected)


@pytest.mark.slow
def test_fsdp_in_bfloat16_has_the_losses_of_one_process(sharded):
    corpus, _ = sharded
    log = logged(corpus / "two_bf16")
    for name, values in logged(corpus / "one_bf16").items():
        tolerance = 5e-3 if name == "grad_norm" else 1e-4
        assert log[name] == pytest.approx(values, rel=tolerance), name
    assert log["grad_norm"] != pytest.approx(logged(corpus / "two")["grad_norm"], rel=1e-4)
    configs = [corpus / name / "config.json" for name in ("one_bf16", "two_bf16", "two")]
    precisions = [json.loads(file.read_text())["training"]["precision"] for file in configs]
    assert precisions == ["bf16 autocast", "bf16", "fp32"]


@pytest.mark.parametrize("process, num_own", [(0, 1), (1, 0)])
def test_mask_repeated_examples_keeps_the_last_of_17_for_two_processes(process, num_own):
    args = SimpleNamespace(train_batch_size=8, world_size=2, process_index=process)
    batch = {"labels": torch.ones(8, 3, dtype=torch.long), "label_index": torch.arange(24)}
    mask_repeated_examples(batch, 17, args)
    has_labels = (batch["labels"] != -100).any(1).tolist()
    assert has_labels == [True] * num_own + [False] * (8 - num_own)
    assert batch["label_index"].tolist() == list(range(3 * num_own))


@pytest.mark.parametrize("num_examples, world_size", [(16, 2), (17, 1)])
def test_mask_repeated_examples_without_repetition_changes_nothing(num_examples, world_size):
    args = SimpleNamespace(train_batch_size=8, world_size=world_size, process_index=0)
    batch = {"labels": torch.ones(8, 3, dtype=torch.long)}
    mask_repeated_examples(batch, num_examples, args)
    assert (batch["labels"] == 1).all()


@pytest.mark.slow
def test_train_in_two_processes_resumes_in_an_uneven_epoch(corpus, tokenizer):
    set_corpus_size(corpus, 17)  # Steps 2 and 4 end an epoch.
    more = options("--save_steps 1 --save_total_limit 9 --eval_strategy no")
    argv = [*arguments(corpus, "mimi_full", tokenizer, *FOUR_STEPS), *more]
    command = [sys.executable, *TWO_PROCESSES, "-m", "audiolm.run_train", *argv]
    subprocess.run([*command, "--output_dir", str(corpus / "uninterrupted")], check=True)
    subprocess.run(command, check=True)
    shutil.rmtree(corpus / "out" / "checkpoint-4")
    checkpoint = str(corpus / "out" / "checkpoint-1")
    subprocess.run([*command, "--resume_from_checkpoint", checkpoint], check=True)
    expected = weights(corpus / "uninterrupted")
    assert all(torch.equal(value, expected[key]) for key, value in weights(corpus / "out").items())


def test_any_not_finite_finite_gradients_are_false():
    assert not any_not_finite([torch.ones(3), torch.zeros(2)])


def test_any_not_finite_single_nan_is_true():
    assert any_not_finite([torch.ones(3), torch.tensor([1.0, float("nan")])])


@pytest.mark.parametrize("name", ["one_gpu", "several_gpus", "several_nodes", "fsdp"])
def test_configuration_has_options_of_accelerate_alone(name):
    # Refuses unknown keys, except in the part for FSDP.
    configuration = load_config_from_file(str(CONFIGURATIONS / f"{name}.yaml"))
    hidden = {"fsdp_ignored_modules"}
    known_options = hidden | set(vars(launch_command_parser().parse_args(["run_train.py"])))
    assert set(configuration.fsdp_config) <= known_options
    assert configuration.mixed_precision == "bf16"
    assert 16 % configuration.num_processes == 0


@pytest.fixture
def fsdp_environment(monkeypatch):
    """The variables that `accelerate launch` sets for configs/accelerate/fsdp.yaml."""
    # It would outlive the variables.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    argv = ["--config_file", str(CONFIGURATIONS / "fsdp.yaml"), "--main_process_port", free_port()]
    launch_args = launch_command_parser().parse_args([*argv, "run_train.py"])
    launch_args, _, _ = _validate_launch_command(launch_args)
    for key, value in prepare_multi_gpu_env(launch_args).items():
        monkeypatch.setenv(key, value)


def test_fsdp_configuration_shards_each_layer(fsdp_environment):
    plugin = FullyShardedDataParallelPlugin()
    model = small_model("mimi_full")
    plugin.set_auto_wrap_policy(model)
    layers = [
        name
        for name, part in model.named_modules()
        if plugin.auto_wrap_policy(part, recurse=False, nonwrapped_numel=0)
    ]
    assert layers == ["language_model.model.layers.0", "language_model.model.layers.1"]
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.ignored_modules == "encoder"
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_check_distributed_options_under_fsdp(fsdp_environment, monkeypatch):
    _, _, args = parse_arguments(["--use_cpu", "true"])
    assert args.bf16
    check_distributed_options(args, None, None)
    with pytest.raises(UserError, match=r"^--lora_r does not work with FSDP"):
        check_distributed_options(args, 16, None)
    with pytest.raises(UserError, match=r"^--lm_learning_rate does not work with FSDP"):
        check_distributed_options(args, None, 1e-5)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # as without the line in fsdp.yaml
    message = (
        "fsdp_cpu_ram_efficient_loading true: expected false, as in configs/accelerate/fsdp.yaml"
    )
    with pytest.raises(UserError, match=message):
        check_distributed_options(args, None, None)


def test_train_compiled_under_fsdp_is_refused(fsdp_environment):
    with pytest.raises(SystemExit, match=r"^run_train.py: --torch_compile does not work with FSDP"):
        train(options("--use_cpu true --torch_compile true"))


def test_check_distributed_options_refuses_deepspeed():
    with pytest.raises(UserError, match="DeepSpeed is not supported"):
        check_distributed_options(SimpleNamespace(deepspeed_plugin=object()), None, None)
