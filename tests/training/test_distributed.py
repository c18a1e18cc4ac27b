"""Several processes, for real: they end as one does, and none waits for one that died. GPUs are what is missing here."""

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
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from support.builders import TWO_PROCESSES, arguments, free_port, make_corpus, small_model, weights
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from audiolm.training import train as run_train
from audiolm.training.distributed import any_not_finite, precision, refusal
from audiolm.training.resume import RECORD, find_checkpoint_problem
from audiolm.training.train import main as train
from audiolm.training.train import parse
from audiolm.training.trainer import ParallelTrainer

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "configs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
SHORT = ["--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--learning_rate", "0.001"]


def start(log: Path, words: list[str]) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def kill_all_of(folder: Path) -> None:
    """Whoever was started with words of which one names the folder; the children of a launcher are no longer its own."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            process.kill()


def launch(configuration: str, *words: str) -> list[str]:
    """`accelerate launch` with a configuration of ours, on CPUs, where bfloat16 is slow."""
    return [
        *LAUNCH,
        "--config_file",
        str(CONFIGURATIONS / configuration),
        "--mixed_precision",
        "no",
        *words,
    ]


def uneven(corpus: Path, number: int) -> None:
    """Leaves or makes so many rows, none of them equal."""
    rows = json.loads((corpus / "rows.json").read_text())
    rows = [{**row, "input": row["input"] + " Listen." * again} for again in (0, 1) for row in rows]
    (corpus / "rows.json").write_text(json.dumps(rows[:number]))


def logged(folder: Path) -> dict[str, list[float]]:
    """What a run logged, by name, of all that does not depend on the clock or on how rows are dealt."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "grad_norm", "eval_mcq_token_loss", "eval_yes_no_token_loss")
    return {name: [float(entry[name]) for entry in history if name in entry] for name in names}


def assert_same(folder: Path, expected: Path) -> None:
    found, wanted = weights(folder), weights(expected)
    assert all(
        torch.allclose(value.float(), found[key].float(), atol=2e-5)
        for key, value in wanted.items()
    )
    found, wanted = logged(folder), logged(expected)
    assert [len(values) for values in wanted.values()] == [4, 4, 2, 2]
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


# run_train.py, and again without an end
TWICE = """
import sys
from audiolm.training import train as run_train
run_train.main(sys.argv[1:])
run_train.main([*sys.argv[1:], "--output_dir", sys.argv[-1] + "_endless", "--max_steps", "100000", "--save_steps", "1"])
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, tokenizer):
    """A folder, arguments of run_train.py, and a launcher on each of two machines, which are this one, with one process each;
    machine N writes to `outN` and, in a run that goes on until it is killed, to `outN_endless`."""
    corpus = make_corpus(tmp_path_factory.mktemp("nodes"))
    uneven(corpus, 17)  # of the second step, one process has a row and the other has none
    words = arguments(corpus, "mimi_full", tokenizer, *SHORT)
    (corpus / "twice.py").write_text(TWICE)
    machine = [
        "--num_processes",
        "2",
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        free_port(),
        "--machine_rank",
    ]
    try:
        yield (
            corpus,
            words,
            [
                start(
                    corpus / f"{rank}.log",
                    launch(
                        "several_nodes.yaml",
                        *machine,
                        str(rank),
                        str(corpus / "twice.py"),
                        *words,
                        "--output_dir",
                        f"{corpus}/out{rank}",
                    ),
                )
                for rank in (0, 1)
            ],
        )
    finally:
        kill_all_of(corpus)


def wait_for(file: Path, nodes: list[subprocess.Popen]) -> None:
    until = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < until and [node.poll() for node in nodes] == [None, None], (
            f"{file} is not written"
        )
        time.sleep(0.05)


def test_two_nodes_end_as_one_process(nodes):
    corpus, words, launchers = nodes
    train(words)
    wait_for(corpus / "out0" / "README.md", launchers)  # the last of a run
    assert_same(corpus / "out0", corpus / "out")
    # without a folder in common, the other machine holds its random states alone
    written = sorted(
        str(file.relative_to(corpus / "out1"))
        for file in (corpus / "out1").rglob("*")
        if file.is_file()
    )
    assert written == ["checkpoint-2/rng_state_1.pth", "checkpoint-4/rng_state_1.pth"]
    assert (
        find_checkpoint_problem(corpus / "out0" / "checkpoint-4")
        == "the states of 2 processes are wanted, but 1 are there"
    )
    shutil.copy(
        corpus / "out1" / "checkpoint-4" / "rng_state_1.pth", corpus / "out0" / "checkpoint-4"
    )
    assert find_checkpoint_problem(corpus / "out0" / "checkpoint-4") is None


def test_a_process_that_dies_ends_the_job(nodes):
    corpus, _, launchers = nodes
    wait_for(corpus / "out0_endless" / "checkpoint-2" / RECORD, launchers)
    (worker,) = psutil.Process(launchers[1].pid).children()
    worker.kill()
    assert all(launcher.wait(60) for launcher in launchers)
    assert f"Signal 9 (SIGKILL) received by PID {worker.pid}" in (corpus / "1.log").read_text()
    assert "by peer" in (corpus / "0.log").read_text()  # closed, or reset
    assert not (corpus / "out0_endless" / "model.safetensors").exists()


class Watch(TrainerCallback):
    """Writes `seen.pt`: gradients of the first step, which weights are shared, how much of them is here, and what the
    encoder heard first in training. The last process's largest gradient of the third step is made infinite."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.heard, encode = [], type(model.encoder).encode
        model.encoder.encode = lambda sound, *rest: (
            self.heard.append(sound) or encode(model.encoder, sound, *rest)
        )

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if state.global_step == 0:
            seen = {
                "gradients": {
                    n: p.grad.full_tensor() if isinstance(p, DTensor) else p.grad.clone()
                    for n, p in trained.items()
                },
                "here": {
                    n: p.to_local().numel() / p.numel()
                    for n, p in trained.items()
                    if isinstance(p, DTensor)
                },
                "whole": [n for n, p in model.named_parameters() if not isinstance(p, DTensor)],
                "heard": self.heard[0],
            }
            if args.process_index == 0:
                torch.save(seen, Path(args.output_dir, "seen.pt"))
        if state.global_step == 2 and args.process_index == args.world_size - 1:
            largest = max((p.grad for p in trained.values()), key=torch.Tensor.numel)
            (largest.to_local() if isinstance(largest, DTensor) else largest).fill_(float("inf"))


class Watched(run_train.BucketTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.callback_handler.callbacks.insert(
            0, Watch()
        )  # before anything looks for gradients that are not finite


# run_train.py under FSDP: from its start, going on from step 2, and in bfloat16. accelerate leaves processes on CPUs out of
# FSDP; this puts them back, and all that follows is what runs on GPUs.
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

sys.path.insert(0, sys.argv[1])
import test_distributed
from audiolm.training import train as run_train
run_train.BucketTrainer = test_distributed.Watched

words, output = sys.argv[2:], sys.argv[-1]
run_train.main(words)
if torch.distributed.get_rank() == 0:
    shutil.copytree(output, output + "_whole")
    shutil.rmtree(output + "/checkpoint-4")
torch.distributed.barrier()
run_train.main([*words, "--resume_from_checkpoint", "true"])
run_train.main([*words[:-1], output + "_bf16", "--bf16", "true"])
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tokenizer):
    """The folder of a run in one process, and of one whose processes share the model; and what the latter said."""
    corpus = make_corpus(tmp_path_factory.mktemp("shared"))
    uneven(corpus, 13)
    of_two = [
        "--per_device_train_batch_size",
        "2",
        "--max_eval_samples",
        "1",
    ]  # clips of others are encoded in the steps
    words = arguments(corpus, "mimi_full", tokenizer, *SHORT, *of_two)
    (corpus / "shared.py").write_text(SHARED)
    program = [
        str(corpus / "shared.py"),
        str(Path(__file__).parents[1]),
        *words,
        "--output_dir",
        str(corpus / "two"),
    ]
    launcher = start(
        corpus / "two.log", launch("fsdp.yaml", "--main_process_port", free_port(), *program)
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_train, "BucketTrainer", Watched)
            train([*words, "--output_dir", str(corpus / "one")])
            train(
                [
                    *words,
                    "--output_dir",
                    str(corpus / "one_bf16"),
                    "--bf16",
                    "true",
                    "--use_cpu",
                    "true",
                ]
            )
        launcher.wait(300)
    finally:
        kill_all_of(corpus)
    said = (corpus / "two.log").read_text()
    assert launcher.returncode == 0, said[-5000:]
    return corpus, said


@pytest.mark.slow
def test_a_shared_model_learns_as_a_whole_one(shared):
    corpus, said = shared
    one, two = (torch.load(corpus / name / "seen.pt") for name in ("one", "two_whole"))
    assert two["whole"] == [name for name in one["whole"] if name.startswith("encoder.")]
    assert len(two["here"]) == len(one["whole"]) - len(two["whole"]) > 20 and set(
        two["here"].values()
    ) == {0.5}
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        assert gradient.abs().max() > 0 and torch.allclose(
            two["gradients"][name], gradient, atol=1e-6
        ), name
    assert_same(corpus / "two_whole", corpus / "one")
    assert (
        said.count("step 3: loss or gradients are not finite; its update was skipped") == 3
    )  # one of two processes speaks


@pytest.mark.slow
def test_a_shared_model_is_saved_and_gone_on_from(shared):
    corpus, _ = shared
    assert find_checkpoint_problem(corpus / "two_whole" / "checkpoint-4") is None
    assert_same(corpus / "two", corpus / "one")
    for folder in (corpus / "two", corpus / "two" / "checkpoint-4"):
        code = sorted(file.name for file in folder.glob("*.py"))
        assert code == [
            "configuration_audiolm.py",
            "encoders_audiolm.py",
            "modeling_audiolm.py",
            "processing_audiolm.py",
        ]
        named = json.loads((folder / "config.json").read_text())["auto_map"].values()
        assert {name.split(".")[0] for name in named} == {
            "configuration_audiolm",
            "modeling_audiolm",
        }
    one, two = ((corpus / name / "model.safetensors").stat().st_size for name in ("one", "two"))
    assert abs(one - two) < 2000  # tied weights once
    optimizer = corpus / "two" / "checkpoint-2" / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    assert find_checkpoint_problem(corpus / "two" / "checkpoint-2").startswith(
        "optimizer.bin is missing or torn"
    )


@pytest.mark.slow
def test_a_shared_model_in_bfloat16_hears_the_same(shared):
    corpus, _ = shared
    one, two = (torch.load(corpus / name / "seen.pt")["heard"] for name in ("one", "two_bf16"))
    assert two.dtype == torch.float32 and torch.equal(one, two)
    found, expected = logged(corpus / "two_bf16"), logged(corpus / "one_bf16")
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=5e-3 if name == "grad_norm" else 1e-4), name
    assert found["grad_norm"] != pytest.approx(logged(corpus / "two")["grad_norm"], rel=1e-4)
    settings = [
        json.loads((corpus / name / "config.json").read_text())["training"]
        for name in ("one_bf16", "two_bf16", "two")
    ]
    assert [of["precision"] for of in settings] == ["bf16 autocast", "bf16", "fp32"]


@pytest.mark.parametrize("process, kept", [(0, 1), (1, 0)])
def test_rows_that_come_twice_are_learnt_once_also_where_accelerate_does_not_know(process, kept):
    """The last batch of 17 rows by two processes of 8: accelerate's own count is -1 in an epoch that is resumed."""
    state = SimpleNamespace(end_of_dataloader=True, remainder=-1)
    args = SimpleNamespace(train_batch_size=8, world_size=2, process_index=process)
    run = SimpleNamespace(
        accelerator=SimpleNamespace(gradient_state=state), args=args, train_dataset=range(17)
    )
    batch = {"labels": torch.ones(8, 3, dtype=torch.long), "label_index": torch.arange(24)}
    found = ParallelTrainer._without_repeated(run, batch)
    assert (found["labels"] != -100).any(1).tolist() == [True] * kept + [False] * (8 - kept)
    assert found["label_index"].tolist() == list(range(3 * kept))


@pytest.mark.slow
def test_two_processes_go_on_in_an_uneven_epoch(corpus, tokenizer):
    rows = json.loads((corpus / "rows.json").read_text())
    (corpus / "rows.json").write_text(
        json.dumps([*rows, {**rows[0], "input": "Once more: which tone? A) low B) high"}])
    )
    words = [
        *arguments(corpus, "mimi_full", tokenizer, *SHORT),
        "--save_steps",
        "1",
        "--save_total_limit",
        "9",
    ]
    words += ["--eval_strategy", "no"]  # 17 rows: steps 2 and 4 end an epoch
    for more in (["--output_dir", str(corpus / "whole")], []):
        subprocess.run(
            [sys.executable, *TWO_PROCESSES, "-m", "audiolm.run_train", *words, *more], check=True
        )
    expected = weights(corpus / "whole")
    shutil.rmtree(corpus / "out" / "checkpoint-4")
    again = ["--resume_from_checkpoint", str(corpus / "out" / "checkpoint-1")]
    subprocess.run(
        [sys.executable, *TWO_PROCESSES, "-m", "audiolm.run_train", *words, *again], check=True
    )
    assert all(torch.equal(value, expected[key]) for key, value in weights(corpus / "out").items())


def test_one_gradient_is_enough():
    assert not any_not_finite([torch.ones(3), torch.zeros(2)]) and any_not_finite(
        [torch.ones(3), torch.tensor([1.0, float("nan")])]
    )


@pytest.mark.parametrize(
    "name", ["one_gpu", "several_gpus", "several_nodes", "fsdp", "deepspeed_zero2"]
)
def test_configurations_are_accelerates(name):
    configuration = load_config_from_file(
        str(CONFIGURATIONS / f"{name}.yaml")
    )  # refuses unknown keys
    options = {
        "fsdp_ignored_modules",
        *vars(launch_command_parser().parse_args(["run_train.py"])),
    }  # the first is hidden
    for part in ("fsdp_config", "deepspeed_config"):  # of which it takes any
        assert set(getattr(configuration, part)) <= options, part
    assert configuration.mixed_precision == (None if name == "deepspeed_zero2" else "bf16")
    assert 16 % configuration.num_processes == 0


def test_fsdp_is_asked_for_as_it_is_needed(monkeypatch):
    monkeypatch.setattr(
        torch, "set_num_threads", lambda count: None
    )  # which outlives the variables set here
    words = [
        "--config_file",
        str(CONFIGURATIONS / "fsdp.yaml"),
        "--main_process_port",
        free_port(),
        "run_train.py",
    ]
    taken, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    for key, value in prepare_multi_gpu_env(taken).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    model = small_model("mimi_full")
    plugin.set_auto_wrap_policy(model)
    layers = [
        name
        for name, part in model.named_modules()
        if plugin.auto_wrap_policy(part, recurse=False, nonwrapped_numel=0)
    ]
    assert layers == ["language_model.model.layers.0", "language_model.model.layers.1"]
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.ignored_modules) == (
        2,
        True,
        "encoder",
    )
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    _, _, args = parse(["--use_cpu", "true"])
    assert args.bf16 and refusal(args, None, None) is None
    assert refusal(args, 16, None).startswith("--lora_r: not with FSDP")
    assert refusal(args, None, 1e-5).startswith("--lm_learning_rate: not with FSDP")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # as without the line in fsdp.yaml
    assert refusal(args, None, None) == (
        "fsdp_cpu_ram_efficient_loading true: false is wanted, as in configs/accelerate/fsdp.yaml"
    )
    with pytest.raises(SystemExit, match=r"^run_train.py: --torch_compile: not with FSDP"):
        train(["--use_cpu", "true", "--torch_compile", "true"])


def test_deepspeed_is_asked_for_as_it_is_needed(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = load_config_from_file(str(CONFIGURATIONS / "deepspeed_zero2.yaml")).deepspeed_config[
        "deepspeed_config_file"
    ]
    plugin = DeepSpeedPlugin(hf_ds_config=file)
    assert plugin.zero_stage == 2
    args = SimpleNamespace(
        deepspeed_plugin=plugin, torch_compile=False, bf16=False, fp16=False, fsdp=None
    )
    assert refusal(args, None, None) is None and precision(args) == "bf16 autocast"
    args.bf16 = True
    assert "under DeepSpeed they would round the encoder too" in refusal(args, None, None)


def test_a_checkpoint_of_deepspeed_is_looked_at(tmp_path):
    """Of the files that deepspeed 0.19 writes."""
    small_model("mimi_semantic").save_pretrained(tmp_path)
    (tmp_path / "global_step2").mkdir()
    parts = [f"global_step2/zero_pp_rank_{number}_mp_rank_00_optim_states.pt" for number in (0, 1)]
    for name in (
        "scheduler.pt",
        "rng_state_0.pth",
        "rng_state_1.pth",
        "global_step2/mp_rank_00_model_states.pt",
        *parts,
    ):
        torch.save({"state": torch.zeros(3)}, tmp_path / name)
    for name in ("trainer_state.json", RECORD):
        (tmp_path / name).write_text("{}")
    assert find_checkpoint_problem(tmp_path).startswith(
        "optimizer.pt is missing"
    )  # it was killed before the end
    (tmp_path / "latest").write_text("global_step2")
    assert find_checkpoint_problem(tmp_path) is None
    (tmp_path / parts[1]).write_bytes((tmp_path / parts[1]).read_bytes()[:300])
    assert find_checkpoint_problem(tmp_path).startswith(f"{parts[1]} is missing or torn")
