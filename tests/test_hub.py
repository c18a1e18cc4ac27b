"""The round trip through a Hub, over HTTP with the real client: push, load, score, adapt."""

import json
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from support.builders import ARMS, PUSH, TWO_PROCESSES, arguments, run, train, weights
from support.hub_server import READER, WRITER, Hub
from support.options import options

from audiolm.hub.model_card import EVAL_FILE
from audiolm.runtime import redact_token
from audiolm.training.arguments import parse_arguments

SOURCES = {f"{name}_audiolm.py" for name in ("configuration", "encoders", "modeling", "processing")}
PUSHED = SOURCES | {
    ".gitattributes",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
SIX_STEPS = "steps                6"  # in the summary at the end of a run


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub") as hub:
        yield hub
        assert [request for request in hub.unknown if "agent-harnesses" not in request] == []


def checkpoint_commits(*steps: int) -> list[str]:
    """Messages of the commits of checkpoints, and of the first commit."""
    return [*(f"Training in progress, step {step}" for step in steps), "initial commit"]


def without(argv: list[str], *names: str) -> list[str]:
    """A command line without some options and their values."""
    for name in names:
        index = argv.index(name)
        argv = argv[:index] + argv[index + 2 :]
    return argv


@pytest.mark.parametrize("arm", ARMS)
def test_push_to_hub_pushes_each_checkpoint_and_the_model(arm, pushed):
    hub, runs = pushed
    corpus, process = runs[arm]
    repo = f"me/{arm}"
    assert process.returncode == 0, process.stderr
    assert hub.commits(repo)[-5:] == ["End of training", *checkpoint_commits(6, 4, 2)]
    assert set(hub.files(repo)) - {EVAL_FILE} == PUSHED
    assert hub.repos[repo]["private"]
    assert f"pushed to {repo}: End of training" in process.stderr
    assert not list((corpus / "out").glob("push-*"))
    trained = corpus / "out" / "model.safetensors"
    assert hub.read(repo, "model.safetensors") == trained.read_bytes()


@pytest.mark.parametrize("file", ["config.json", "README.md"])
@pytest.mark.parametrize("arm", ARMS)
def test_push_to_hub_names_no_path_of_this_machine(arm, file, pushed):
    hub, runs = pushed
    corpus, _ = runs[arm]
    assert str(corpus) not in hub.read(f"me/{arm}", file).decode()


def test_private_model_without_a_token_is_refused(pushed):
    hub, _ = pushed
    load = "from transformers import AutoConfig; AutoConfig.from_pretrained('me/htsat')"
    refused = run(hub, "-c", load, token=None, home="other")
    assert refused.returncode != 0
    assert "me/htsat is not a local folder" in refused.stderr


def test_token_is_not_written_even_if_the_launcher_prints_the_command(corpus, tokenizer, hub):
    """The last push fails, and `accelerate launch` prints the command of a process that fails."""
    secret = "hf_secretsecretsecretsecret"
    hub.users[secret] = ("me", True)
    hub.fault = lambda method, path: (
        403 if "/commit/" in path and len(hub.commits("me/x")) == 2 else None
    )
    launch = options("-m accelerate.commands.launch --cpu --num_processes 1 --module")
    argv = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
    process = run(hub, *launch, "audiolm.run_train", *argv, token=secret)
    assert process.returncode != 0
    assert "CalledProcessError" in process.stderr
    assert "hf upload me/x" in process.stderr
    assert secret not in process.stdout + process.stderr
    assert len(hub.commits("me/x")) == 2
    files = [file for file in corpus.rglob("*") if file.is_file() and "home" not in file.parts]
    assert len(files) > 40
    assert any(file.name == "training_args.bin" for file in files)
    assert not [file for file in files if secret.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--hub_token hf_secret", "HF_TOKEN"),
        ("--hub-token=hf_secret", "HF_TOKEN"),
        ("--token hf_secret", "unrecognized arguments: --token hf_***"),
        ("--config c.yaml", "HF_TOKEN"),
    ],
)
def test_parse_token_on_the_command_line_is_refused(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("hub_token: hf_secret\n")
    with pytest.raises(SystemExit):
        parse_arguments(options(argv))
    error = capsys.readouterr().err
    assert "hf_secret" not in error
    assert message in error


def test_redact_token_removes_the_token_before_it_shortens():
    token = "hf_" + "s" * 30
    assert redact_token(ValueError("x" * 290 + token), token) == "x" * 290 + "***"


def test_push_to_hub_failed_push_is_made_up_for_by_the_next(corpus, tokenizer, hub):
    """The second push fails."""
    refused = []

    def fault(method, path):
        if "/commit/" in path and len(hub.commits("me/x", "dev")) == 2 and not refused:
            refused.append(path)
            return 500
        return None

    hub.fault = fault
    more = [*PUSH, *options("--hub_always_push true --hub_revision dev")]
    process = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *more))
    assert process.returncode == 0
    assert "Training continues, and a later push includes" in process.stderr
    assert hub.commits("me/x", "dev") == ["End of training", *checkpoint_commits(6, 2)]
    assert hub.commits("me/x") == ["initial commit"]
    assert SIX_STEPS in process.stdout


@pytest.mark.slow
def test_push_to_hub_that_fails_names_a_command_that_pushes(corpus, tokenizer, hub):
    hub.fault = lambda method, path: 500 if "/commit/" in path else None
    more = [*PUSH, *options("--hub_revision dev --hub_private_repo true")]
    process = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *more))
    assert process.returncode == 1
    assert SIX_STEPS in process.stdout
    assert (corpus / "out" / "checkpoint-6" / "optimizer.pt").is_file()
    assert weights(corpus / "out")
    assert "Push it with" in process.stderr
    *_, command = process.stderr.strip().splitlines()
    assert command.startswith("hf upload me/x ")
    hub.fault = lambda method, path: None
    by_hand = run(hub, "-m", "huggingface_hub.cli.hf", *shlex.split(command)[1:])
    assert by_hand.returncode == 0, by_hand.stderr
    assert set(hub.files("me/x", "dev")) == PUSHED
    assert hub.commits("me/x") == ["initial commit"]
    assert hub.repos["me/x"]["private"]


@pytest.mark.slow
def test_push_to_hub_with_an_expired_token_stops_no_training(corpus, tokenizer, hub):
    hub.fault = lambda method, path: 401 if "/repos/create" not in path else None
    process = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *PUSH))
    assert process.returncode == 1
    assert SIX_STEPS in process.stdout
    assert "hf upload me/x" in process.stderr
    assert (corpus / "out" / "model.safetensors").is_file()


# Runs a command with several tokens and command lines, and prints the last line of each.
ONE_BY_ONE = """
import json, os, sys
from importlib import import_module
main = import_module(sys.argv[1]).main
for token, argv in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = token
    try:
        main(argv)
        print("ended well")
    except SystemExit as error:
        print(str(error).splitlines()[-1])
"""


def one_by_one(hub, module: str, commands: list):
    return run(hub, "-c", ONE_BY_ONE, module, json.dumps(commands))


def assert_messages(lines: list[str], messages: list[str], stderr: str) -> None:
    """Checks that each line holds its message."""
    assert len(lines) == len(messages), stderr
    pairs = zip(messages, lines, strict=True)
    assert [(message, line) for message, line in pairs if message not in line] == [], stderr


def test_push_to_hub_what_the_hub_refuses_is_reported_before_training(corpus, tokenizer, hub):
    private = "--hub_model_id me/open --hub_private_repo true"
    cases = [
        (READER, "", "--push_to_hub: me/x: 403 Forbidden"),
        ("hf_unknownunknownunknown", "", "--push_to_hub: me/x: "),
        (WRITER, "--hub_model_id you/x", "--push_to_hub: you/x: 403 Forbidden"),
        (WRITER, "--hub_model_id me/x/y", "--push_to_hub: me/x/y: "),
        (WRITER, "--hub_strategy checkpoint", "checkpoint: expected every_save or end"),
        (WRITER, private, "--push_to_hub: me/open: it exists and is public"),
    ]
    argv = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
    create = run(hub, "-c", "from huggingface_hub import create_repo; create_repo('me/open')")
    assert create.returncode == 0
    commands = [(token, [*argv, *options(more)]) for token, more, _ in cases]
    process = one_by_one(hub, "audiolm.run_train", commands)
    messages = [message for _, _, message in cases]
    assert_messages(process.stdout.strip().splitlines(), messages, process.stderr)
    assert not (corpus / "out" / "checkpoint-2").exists()
    assert READER not in process.stdout + process.stderr


@pytest.mark.slow
def test_push_to_hub_to_a_hub_that_never_answers_ends(corpus, tokenizer, hub):
    """It accepts connections and is silent, as behind a firewall. The client would wait forever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        argv = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
        code = "import sys; from audiolm.hub import push; push.TIMEOUT = 1"
        code += "\nfrom audiolm.run_train import main; main(sys.argv[1:])"
        process = run(hub, "-c", code, *argv)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("run_train.py: --push_to_hub: me/x: ")


@pytest.mark.slow
def test_push_to_hub_refused_by_xet_leaves_the_checkpoint(corpus, tokenizer, hub):
    """This Hub offers Xet and refuses its token, so a client with Xet cannot upload."""
    argv = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
    process = train(hub, argv, HF_HUB_DISABLE_XET="0")
    assert any("xet-write-token" in path for _, path, _ in hub.requests)
    assert process.returncode == 1
    assert "hf upload me/x" in process.stderr
    assert hub.commits("me/x") == ["initial commit"]
    assert weights(corpus / "out" / "checkpoint-6")


def evaluation(corpus, repo: str, *more: str) -> list[str]:
    rows = str(corpus / "rows.json")
    argv = ["--model_name_or_path", repo, "--test_file", rows, "--train_file", rows]
    argv += ["--audio_dir", str(corpus), "--output_dir", str(corpus / "results")]
    return [*argv, *more]


def test_model_card_before_an_evaluation_describes_the_run(pushed):
    hub, _ = pushed
    card = hub.read("me/htsat", "README.md").decode()
    assert "Not evaluated yet" in card
    assert "| learning rate | 0.01 |" in card
    assert "16 rows about 16 clips" in card
    is_checkout = (Path(__file__).parents[1] / ".git").exists()
    assert bool(re.search(r"audiolm \d+\.\d+\.\d+, commit [0-9a-f]{40}", card)) == is_checkout


@pytest.fixture(scope="module")
def evaluated(pushed):
    """A Hub whose `me/mimi_semantic` was evaluated twice, the command's last lines, its metrics.

    The Hub refuses the results of a third evaluation.
    """
    hub, runs = pushed
    corpus, _ = runs["mimi_semantic"]
    repo = "me/mimi_semantic"
    hub.fault = lambda method, path: (
        403 if "/commit/" in path and hub.commits(repo).count("Evaluation") == 2 else None
    )
    commands = [(WRITER, evaluation(corpus, repo, "--push_to_hub"))] * 3
    process = one_by_one(hub, "audiolm.run_eval", commands)
    hub.fault = lambda method, path: None
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    ends = [line for line in lines if line.startswith(("ended well", "run_eval.py: "))]
    return hub, ends, json.loads((corpus / "results" / "metrics.json").read_text())


def test_push_results_second_evaluation_replaces_the_first(evaluated):
    hub, ends, _ = evaluated
    assert ends[:2] == ["ended well"] * 2
    commits = hub.commits("me/mimi_semantic")
    assert commits[:3] == ["Evaluation", "Evaluation", "End of training"]
    text = ModelCard(hub.read("me/mimi_semantic", "README.md").decode()).text
    assert text.count("## Results") == 1
    assert "Not evaluated" not in text
    assert "## Limits" in text


def test_push_results_refused_by_the_hub_is_one_line(evaluated):
    _, ends, _ = evaluated
    (line,) = ends[2:]
    message = "run_eval.py: the Hub did not accept the results of me/mimi_semantic"
    assert line.startswith(message)


def test_push_results_card_holds_the_metrics(evaluated):
    hub, _, metrics = evaluated
    card = ModelCard(hub.read("me/mimi_semantic", "README.md").decode())
    mcq = metrics["question_type"]["mcq"]
    majority = metrics["controls"]["majority"]["question_type"]
    assert set(majority) == {"mcq", "yes_no"}
    accuracy, baseline = (
        f"{group['accuracy']:.3f} ({group['ci95_low']:.3f}-{group['ci95_high']:.3f})"
        for group in (mcq, majority["mcq"])
    )
    assert f"| mcq | 8 | {accuracy} | {mcq['n_unparsed']} | {baseline} |" in card.text


def test_push_results_eval_file_is_read_by_the_client(evaluated):
    hub, _, metrics = evaluated
    entries = parse_eval_result_entries(yaml.safe_load(hub.read("me/mimi_semantic", EVAL_FILE)))
    assert {type(entry) for entry in entries} == {EvalResultEntry}
    assert entries[0].task_id == "mcq"
    assert entries[0].value == round(100 * metrics["question_type"]["mcq"]["accuracy"], 2)


FROM_PARTS = ("--encoder_name_or_path", "--text_model_name_or_path", "--output_dir")


def test_train_continues_from_a_pushed_model(pushed, tokenizer):
    hub, runs = pushed
    corpus, _ = runs["mimi_full"]
    repo = "me/mimi_full"
    steps = options("--max_steps 1 --learning_rate 0 --eval_strategy no")
    argv = without(arguments(corpus, "mimi_full", tokenizer, *steps), *FROM_PARTS)
    argv += ["--model_name_or_path", repo, "--output_dir", str(corpus / "more")]
    wide = corpus / "wide"
    shutil.copytree(corpus / "out", wide, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "mapper_hidden_size": 577}))
    cases = {
        "": "ended well",
        "--encoder_type mimi_semantic": (
            f"{repo} has the encoder mimi_full, but --encoder_type is mimi_semantic"
        ),
        "--model_name_or_path me/none": "--model_name_or_path me/none: ",
        "--max_audio_seconds 5": f"{repo} was trained with --max_audio_seconds 10.0: use the same",
        "--no_audio true": f"{repo} was trained with --no_audio false: use the same",
        f"--model_name_or_path {wide}": (
            ": incomplete AudioLM: 3 mismatched keys (mapper.linear_1.bias (576,), not (577,)"
        ),
        f"--model_name_or_path {corpus / 'text'}": "it is a 'llama' model, not an AudioLM",
    }
    commands = [(WRITER, [*argv, *options(more)]) for more in cases]
    process = one_by_one(hub, "audiolm.run_train", commands)
    # The first command prints its summary before.
    lines = process.stdout.strip().splitlines()[-len(cases) :]
    assert_messages(lines, list(cases.values()), process.stderr)
    # At a learning rate of 0, weights and feature statistics are those of the pushed model.
    continued = weights(corpus / "more")
    for name, value in weights(corpus / "out").items():
        assert torch.equal(value, continued[name]), name
    assert f"`{repo}`, revision `" in (corpus / "more" / "README.md").read_text()


@pytest.fixture
def malicious(pushed):
    """A Hub whose `me/evil` writes a file when its code runs, that file, the commit before it."""
    hub, runs = pushed
    corpus, _ = runs["mimi_semantic"]
    trace = corpus / "it ran"
    hub.repos["me/evil"] = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in hub.repos["me/mimi_semantic"].items()
    }
    good_commit = hub.repos["me/evil"]["branches"]["main"]
    files = dict(hub.files("me/evil"))
    for name in SOURCES:
        content = f"open({str(trace)!r}, 'w')\n".encode() + hub.read("me/evil", name)
        files[name] = {"oid": hub.store(content), "size": len(content), "lfs": False}
    hub.commit_files("me/evil", "main", files, "evil")
    return hub, trace, good_commit


def test_code_of_a_repository_runs_only_if_it_is_trusted(pushed, malicious):
    """run_eval.py reads the weights alone. transformers runs the code of the newest commit."""
    hub, trace, good_commit = malicious
    corpus, _ = pushed[1]["mimi_semantic"]
    assert run(hub, "-m", "audiolm.run_eval", *evaluation(corpus, "me/evil")).returncode == 0
    assert not trace.exists()
    load = "AutoModel.from_pretrained('me/evil', trust_remote_code={})"
    load_pinned = load.format(f"True, revision={good_commit!r}")
    pinned = run(hub, "-c", f"from transformers import AutoModel; {load_pinned}", home="pinned")
    assert pinned.returncode == 0
    assert not trace.exists()
    trusted = f"""
import os
from transformers import AutoModel
try:
    {load.format(False)}
except ValueError as error:
    assert "trust_remote_code" in str(error)
    assert not os.path.exists({str(trace)!r})
    {load.format(True)}
"""
    assert run(hub, "-c", trusted).returncode == 0
    assert trace.exists()


@pytest.mark.slow
def test_push_to_hub_of_adapters_pushes_the_merged_model_alone(pushed, tokenizer):
    hub, runs = pushed
    corpus, _ = runs["mimi_full"]
    lora = options("--freeze_lm true --lora_r 4 --hub_model_id me/merged")
    argv = without(arguments(corpus, "mimi_full", tokenizer, *PUSH, *lora), *FROM_PARTS)
    argv += ["--model_name_or_path", "me/mimi_full", "--output_dir", str(corpus / "merged")]
    process = train(hub, argv)
    assert process.returncode == 0, process.stderr
    assert hub.commits("me/merged") == ["End of training", "initial commit"]
    assert set(hub.files("me/merged")) == PUSHED
    assert "me/mimi_full" in hub.read("me/merged", "README.md").decode()
    trained = corpus / "merged" / "model.safetensors"
    assert hub.read("me/merged", "model.safetensors") == trained.read_bytes()


def test_no_module_reads_a_pickle_that_can_run_code():
    root = Path(__file__).parents[1]
    skipped = (".venv", "tests", "outputs", "build")
    files = [f for f in root.rglob("*.py") if f.relative_to(root).parts[0] not in skipped]
    pattern = re.compile(r"(?:torch\.load|pickle\.loads?|np\.load)\([^\n]*")
    calls = [call for file in files for call in pattern.findall(file.read_text())]
    assert len(files) > 25
    assert calls
    assert [call for call in calls if "weights_only=True" not in call] == []


@pytest.mark.slow
def test_push_to_hub_from_two_processes_pushes_once(corpus, tokenizer, hub):
    more = options("--hub_always_push true --max_steps 2 --learning_rate 1e-3")
    argv = arguments(corpus, "mimi_semantic", tokenizer, *PUSH, *more)
    alone = ["--output_dir", str(corpus / "alone"), "--hub_model_id", "me/alone"]
    single = train(hub, [*argv, *alone])
    double = run(hub, *TWO_PROCESSES, "--module", "audiolm.run_train", *argv)
    assert single.returncode == 0, single.stderr[-3000:]
    assert double.returncode == 0, double.stderr[-3000:]
    assert hub.commits("me/x") == ["End of training", *checkpoint_commits(2)]
    assert set(hub.files("me/x")) == PUSHED
    assert double.stderr.count("pushed to me/x: End of training") == 1
    shared = weights(corpus / "out")
    for name, value in weights(corpus / "alone").items():
        assert torch.allclose(value.float(), shared[name].float(), atol=2e-5), name
