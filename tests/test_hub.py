"""The round trip through a Hub: pushed while training, loaded again, scored, adapted; over HTTP, with the client as it is."""

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
from support.builders import ARMS, PUSH, TWO_PROCESSES, arguments, run, train
from support.hub_server import READER, WRITER, Hub

from audiolm import AudioLMForConditionalGeneration
from audiolm.hub.model_card import EVAL_FILE, model_card
from audiolm.runtime import redact_token
from audiolm.training.arguments import parse
from audiolm.training.run_record import part_facts

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


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub") as hub:
        yield hub
        assert [request for request in hub.unknown if "agent-harnesses" not in request] == []


@pytest.mark.parametrize("arm", ARMS)
def test_pushed_while_training(arm, pushed):
    hub, runs = pushed
    (corpus, done), repo = runs[arm], f"me/{arm}"
    assert done.returncode == 0, done.stderr
    steps = [f"Training in progress, step {step}" for step in (6, 4, 2)]
    assert hub.commits(repo)[-5:] == ["End of training", *steps, "initial commit"]
    assert set(hub.files(repo)) - {EVAL_FILE} == PUSHED and hub.repos[repo]["private"]
    assert f"pushed to {repo}: End of training, " in done.stderr and not list(
        (corpus / "out").glob("push-*")
    )
    assert (
        hub.read(repo, "model.safetensors") == (corpus / "out" / "model.safetensors").read_bytes()
    )
    assert (
        str(corpus)
        not in hub.read(repo, "config.json").decode() + hub.read(repo, "README.md").decode()
    )


def test_what_is_private_needs_a_token(pushed):
    with_no_token = "from transformers import AutoConfig; AutoConfig.from_pretrained('me/htsat')"
    refused = run(pushed[0], "-c", with_no_token, token=None, home="other")
    assert refused.returncode != 0 and "me/htsat is not a local folder" in refused.stderr


def test_the_token_is_written_nowhere(corpus, tokenizer, hub):
    """Also where the README's launcher prints the command of a run that fails, here because the last push does."""
    secret = "hf_secretsecretsecretsecret"
    hub.users[secret] = ("me", True)
    hub.fault = lambda method, path: (
        403 if "/commit/" in path and len(hub.commits("me/x")) == 2 else None
    )
    words = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--module",
        "audiolm.run_train",
    ]
    done = run(hub, *launch, *words, token=secret)
    assert (
        done.returncode != 0
        and "CalledProcessError" in done.stderr
        and "hf upload me/x" in done.stderr
    )
    files = [file for file in corpus.rglob("*") if file.is_file() and "home" not in file.parts]
    assert len(files) > 40 and any(file.name == "training_args.bin" for file in files)
    assert not [file for file in files if secret.encode() in file.read_bytes()]
    assert secret not in done.stdout + done.stderr and len(hub.commits("me/x")) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", "hf_secret"],
        ["--hub-token=hf_secret"],
        ["--token", "hf_secret"],
        ["--config"],
    ],
)
def test_a_token_is_not_taken_where_others_read_it(words, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("hub_token: hf_secret\n")
    with pytest.raises(SystemExit):
        parse([*words, str(tmp_path / "c.yaml")] if words == ["--config"] else words)
    said = capsys.readouterr().err
    assert "hf_secret" not in said and (
        "HF_TOKEN" in said or "unrecognized arguments: --token hf_***" in said
    )


def test_an_error_is_shortened_after_the_token_is_out():
    token = "hf_" + "s" * 30
    assert redact_token(ValueError("x" * 290 + token), token) == "x" * 290 + "***"


def test_a_hub_that_fails_costs_nothing(corpus, tokenizer, hub):
    """The second push fails, the third brings what it would have brought."""
    refused = []

    def fault(method, path):
        if "/commit/" in path and len(hub.commits("me/x", "dev")) == 2 and not refused:
            refused.append(path)
            return 500
        return None

    hub.fault = fault
    options = [*PUSH, "--hub_always_push", "true", "--hub_revision", "dev"]
    done = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *options))
    assert done.returncode == 0 and "Training continues, and a later push includes" in done.stderr
    steps = [f"Training in progress, step {step}" for step in (6, 2)]
    assert hub.commits("me/x", "dev") == ["End of training", *steps, "initial commit"]
    assert hub.commits("me/x") == ["initial commit"]
    assert "steps                6" in done.stdout


def test_a_hub_that_is_away_leaves_a_command_that_pushes(corpus, tokenizer, hub):
    hub.stop()
    options = [*PUSH, "--hub_revision", "dev", "--hub_private_repo", "true"]
    done = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *options))
    assert done.returncode == 1 and "steps                6" in done.stdout
    assert (corpus / "out" / "checkpoint-6" / "optimizer.pt").is_file()
    AudioLMForConditionalGeneration.from_pretrained(corpus / "out")
    *_, command = done.stderr.strip().splitlines()
    assert command.startswith("hf upload me/x ") and "Push it with" in done.stderr
    hub.start()
    by_hand = run(hub, "-m", "huggingface_hub.cli.hf", *shlex.split(command)[1:])
    assert by_hand.returncode == 0, by_hand.stderr
    assert set(hub.files("me/x", "dev")) == PUSHED and hub.commits("me/x") == ["initial commit"]
    assert hub.repos["me/x"]["private"]


@pytest.mark.slow
def test_a_token_that_expires_stops_no_training(corpus, tokenizer, hub):
    hub.fault = lambda method, path: 401 if "/repos/create" not in path else None
    done = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *PUSH))
    assert (
        done.returncode == 1
        and "steps                6" in done.stdout
        and "hf upload me/x" in done.stderr
    )
    assert (corpus / "out" / "model.safetensors").is_file()


# each of several tokens and command lines in one process, and the line with which it ends
ONE_BY_ONE = """
import json, os, sys
from importlib import import_module
main = import_module(sys.argv[1]).main
for token, words in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = token
    try:
        main(words)
        print("ended well")
    except SystemExit as error:
        print(str(error).splitlines()[-1])
"""


def one_by_one(hub, module: str, commands: list):
    return run(hub, "-c", ONE_BY_ONE, module, json.dumps(commands))


def test_what_cannot_be_pushed_is_said_before_training(corpus, tokenizer, hub):
    wrong = {
        (READER,): "--push_to_hub: me/x: 403 Forbidden",
        ("hf_unknownunknownunknown",): "--push_to_hub: me/x: ",
        (WRITER, "--hub_model_id", "you/x"): "--push_to_hub: you/x: 403 Forbidden",
        (WRITER, "--hub_model_id", "me/x/y"): "--push_to_hub: me/x/y: ",
        (
            WRITER,
            "--hub_strategy",
            "checkpoint",
        ): "--hub_strategy checkpoint: expected every_save or end",
        (
            WRITER,
            "--hub_model_id",
            "me/open",
            "--hub_private_repo",
            "true",
        ): "--push_to_hub: me/open: it exists and is public",
    }
    words = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
    assert (
        run(hub, "-c", "from huggingface_hub import create_repo; create_repo('me/open')").returncode
        == 0
    )
    done = one_by_one(
        hub, "audiolm.run_train", [(token, [*words, *more]) for token, *more in wrong]
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == len(wrong), done.stderr
    assert [said for said, line in zip(wrong.values(), lines) if said not in line] == []
    assert (
        not (corpus / "out" / "checkpoint-2").exists() and READER not in done.stdout + done.stderr
    )


@pytest.mark.slow
def test_a_hub_that_never_answers_stops_nothing(corpus, tokenizer, hub):
    """A connection that is taken and not served, as by a firewall: the client alone would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hub.url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        words = arguments(corpus, "mimi_semantic", tokenizer, *PUSH)
        code = (
            "import sys; from audiolm.hub import push; push.TIMEOUT = 1; push.RETRY_DELAYS = ()\n"
        )
        code += "from audiolm.run_train import main; main(sys.argv[1:])"
        done = run(hub, "-c", code, *words)
    assert (
        done.returncode == 1
        and "steps                6" in done.stdout
        and "hf upload me/x" in done.stderr
    )


@pytest.mark.slow
def test_with_xet_a_refused_upload_leaves_the_checkpoint(corpus, tokenizer, hub):
    """This Hub offers Xet and refuses its token: a client that is not told to do without cannot upload."""
    done = train(hub, arguments(corpus, "mimi_semantic", tokenizer, *PUSH), HF_HUB_DISABLE_XET="0")
    assert any("xet-write-token" in path for _, path, _ in hub.requests)
    assert (
        done.returncode == 1
        and "hf upload me/x" in done.stderr
        and hub.commits("me/x") == ["initial commit"]
    )
    AudioLMForConditionalGeneration.from_pretrained(corpus / "out" / "checkpoint-6")


def evaluation(corpus, repo: str, *words: str) -> list[str]:
    return [
        "--model_name_or_path",
        repo,
        "--test_file",
        str(corpus / "rows.json"),
        "--train_file",
        str(corpus / "rows.json"),
        "--audio_dir",
        str(corpus),
        "--output_dir",
        str(corpus / "results"),
        *words,
    ]


def test_results_are_added_to_a_pushed_model(pushed):
    hub, runs = pushed
    (corpus, _), repo = runs["mimi_semantic"], "me/mimi_semantic"
    before = hub.read(repo, "README.md").decode()
    assert (
        "Not evaluated yet" in before
        and "| learning rate | 0.01 |" in before
        and "16 rows about 16 clips" in before
    )
    checkout = (Path(__file__).parents[1] / ".git").exists()
    assert bool(re.search(r"audiolm \d+\.\d+\.\d+, commit [0-9a-f]{40}", before)) == checkout
    # a second evaluation takes the first one's place, and the Hub refuses a third one
    hub.fault = lambda method, path: (
        403 if "/commit/" in path and hub.commits(repo).count("Evaluation") == 2 else None
    )
    done = one_by_one(
        hub, "audiolm.run_eval", [(WRITER, evaluation(corpus, repo, "--push_to_hub"))] * 3
    )
    hub.fault = lambda method, path: None
    ends = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(("ended well", "run_eval.py: "))
    ]
    assert done.returncode == 0 and ends[:2] == ["ended well"] * 2, done.stderr
    assert len(ends) == 3 and ends[2].startswith(
        f"run_eval.py: the Hub did not accept the results of {repo}"
    )
    metrics = json.loads((corpus / "results" / "metrics.json").read_text())
    assert set(metrics["controls"]["majority"]["question_type"]) == {"mcq", "yes_no"}
    card = ModelCard(hub.read(repo, "README.md").decode())
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["accuracy, mcq"] == round(metrics["question_type"]["mcq"]["accuracy"], 4)
    assert found["accuracy, all (micro)"] == round(metrics["micro"]["accuracy"], 4)
    assert (
        card.text.count("## Results") == 1
        and "Not evaluated" not in card.text
        and "## Limits" in card.text
    )
    mcq, guess = (
        metrics["question_type"]["mcq"],
        metrics["controls"]["majority"]["question_type"]["mcq"],
    )
    shown = [
        f"{g['accuracy']:.3f} ({g['ci95_low']:.3f}-{g['ci95_high']:.3f})" for g in (mcq, guess)
    ]
    assert f"| mcq | 8 | {shown[0]} | {mcq['n_unparsed']} | {shown[1]} |" in card.text
    entries = parse_eval_result_entries(yaml.safe_load(hub.read(repo, EVAL_FILE)))
    assert {type(entry) for entry in entries} == {EvalResultEntry}
    assert (entries[0].task_id, entries[0].value) == ("mcq", round(100 * mcq["accuracy"], 2))
    assert hub.commits(repo)[:3] == ["Evaluation", "Evaluation", "End of training"]


def test_goes_on_from_a_pushed_model(pushed, tokenizer):
    hub, runs = pushed
    (corpus, _), repo = runs["mimi_full"], "me/mimi_full"
    words = arguments(
        corpus,
        "mimi_full",
        tokenizer,
        "--max_steps",
        "1",
        "--learning_rate",
        "0",
        "--eval_strategy",
        "no",
    )
    for option in ("--encoder_name_or_path", "--text_model_name_or_path", "--output_dir"):
        del words[words.index(option) : words.index(option) + 2]
    words += ["--model_name_or_path", repo, "--output_dir", str(corpus / "more")]
    said = {
        (): "ended well",
        (
            "--encoder_type",
            "mimi_semantic",
        ): f"{repo} is of the arm mimi_full, but --encoder_type is mimi_semantic",
        ("--model_name_or_path", "me/none"): "--model_name_or_path me/none: ",
        (
            "--max_audio_seconds",
            "5",
        ): f"{repo} was trained with --max_audio_seconds 10.0: give the same",
        ("--no_audio", "true"): f"{repo} was trained with --no_audio false: give the same",
        (
            "--model_name_or_path",
            str(corpus / "wide"),
        ): ": not a whole AudioLM: 3 mismatched keys (mapper.linear_1.bias (576,), not (577,)",
        ("--model_name_or_path", str(corpus / "text")): "it is a 'llama' model, not an AudioLM",
    }
    shutil.copytree(corpus / "out", corpus / "wide", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((corpus / "wide" / "config.json").read_text())
    (corpus / "wide" / "config.json").write_text(json.dumps({**config, "mapper_hidden_size": 577}))
    done = one_by_one(hub, "audiolm.run_train", [(WRITER, [*words, *more]) for more in said])
    lines = done.stdout.strip().splitlines()[-len(said) :]  # behind the table of the first one
    assert [
        text for text, line in zip(said.values(), lines, strict=True) if text not in line
    ] == [], done.stderr
    old, new = (
        AudioLMForConditionalGeneration.from_pretrained(corpus / name).state_dict()
        for name in ("out", "more")
    )
    assert all(
        torch.equal(old[name], new[name]) for name in old
    )  # at a rate of 0: the weights, and the statistics
    assert f"`{repo}`, revision `" in (corpus / "more" / "README.md").read_text()


def test_no_code_of_a_repository_runs(pushed):
    """run_eval.py reads weights; the code beside them stays text, until somebody trusts it, or pins the commit before it."""
    hub, runs = pushed
    (corpus, _), mark = runs["mimi_semantic"], runs["mimi_semantic"][0] / "it ran"
    hub.repos["me/evil"] = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in hub.repos["me/mimi_semantic"].items()
    }
    good, files = hub.repos["me/evil"]["branches"]["main"], dict(hub.files("me/evil"))
    for name in SOURCES:
        content = f"open({str(mark)!r}, 'w')\n".encode() + hub.read("me/evil", name)
        files[name] = {"oid": hub.store(content), "size": len(content), "lfs": False}
    hub.commit_files("me/evil", "main", files, "evil")
    assert run(hub, "-m", "audiolm.run_eval", *evaluation(corpus, "me/evil")).returncode == 0
    assert not mark.exists()
    load = "from transformers import AutoModel; AutoModel.from_pretrained('me/evil', trust_remote_code={})"
    pinned = run(hub, "-c", load.format(f"True, revision={good!r}"), home="pinned")
    assert pinned.returncode == 0 and not mark.exists()
    trusted = f"""
import os
try:
    {load.format(False)}
except ValueError as error:
    assert "trust_remote_code" in str(error) and not os.path.exists({str(mark)!r})
    {load.format(True)}
"""
    assert run(hub, "-c", trusted).returncode == 0 and mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["merged", "adapter"])
def test_adapters_are_pushed_merged_or_alone(what, pushed, tokenizer):
    hub, runs = pushed
    (corpus, _), base, repo = runs["mimi_full"], "me/mimi_full", f"me/{what}"
    words = arguments(
        corpus,
        "mimi_full",
        tokenizer,
        *PUSH,
        "--freeze_lm",
        "true",
        "--lora_r",
        "4",
        "--lora_push",
        what,
    )
    for option in ("--encoder_name_or_path", "--text_model_name_or_path", "--output_dir"):
        del words[words.index(option) : words.index(option) + 2]
    out = corpus / what
    words += [
        "--hub_model_id",
        repo,
        "--model_name_or_path",
        base,
        "--output_dir",
        str(out),
        "--hub_always_push",
        "true",
    ]
    done = train(hub, words)
    assert done.returncode == 0, done.stderr
    assert len(hub.commits(repo)) == 5
    if what == "merged":
        assert "me/mimi_full" in hub.read(repo, "README.md").decode()
        # adapters would be found there and be added to whatever whole model is pushed later
        words[words.index("--lora_push") + 1] = "adapter"
        same = one_by_one(hub, "audiolm.run_train", [(WRITER, [*words, "--hub_model_id", base])])
        assert f"--push_to_hub: {base}: it holds the model of the adapter" in same.stdout
        assert train(hub, words).returncode == 0 and "model.safetensors" not in hub.files(repo)
        words[words.index("--lora_push") + 1] = "merged"
        assert train(hub, words).returncode == 0 and "adapter_config.json" not in hub.files(repo)
        assert set(hub.files(repo)) == PUSHED
        assert hub.read(repo, "model.safetensors") == (out / "model.safetensors").read_bytes()
        return
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(hub.files(repo))
    assert (
        "model.safetensors" not in hub.files(repo)
        and f'"{base}"' in hub.read(repo, "adapter_config.json").decode()
    )
    card = hub.read(repo, "README.md").decode()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace(
        '["clip.wav"]', '["0.wav"]'
    )
    wav = run(hub, "-c", f"import os; os.chdir({str(corpus)!r})\n{lines}")
    assert wav.returncode == 0 and "PeftModel" in lines, wav.stderr
    check = f"""
import sys, torch, numpy
from peft import PeftModel
from transformers import AutoModel
adapted = PeftModel.from_pretrained(AutoModel.from_pretrained({base!r}, trust_remote_code=True), {repo!r})
whole = AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)
inputs = dict(input_ids=torch.tensor([[1, 3, 3, 7, 9]]), input_values=torch.sin(torch.arange(3000) / 9)[None])
with torch.no_grad():
    assert torch.allclose(adapted(**inputs).logits, whole(**inputs).logits, atol=1e-4)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(**inputs).logits, whole(**inputs).logits, atol=1e-3)
"""
    done = run(hub, "-c", check)
    assert done.returncode == 0, done.stderr


def test_no_file_reads_a_pickle_that_can_run_code():
    root = Path(__file__).parents[1]
    files = [
        file
        for file in root.rglob("*.py")
        if file.relative_to(root).parts[0] not in (".venv", "tests", "outputs", "build")
    ]
    calls = [
        call
        for file in files
        for call in re.findall(r"(?:torch\.load|pickle\.loads?|np\.load)\([^\n]*", file.read_text())
    ]
    assert len(files) > 25 and calls and all("weights_only=True" in call for call in calls)


@pytest.mark.slow
def test_two_processes_train_adapters_and_push_once(corpus, tokenizer, hub):
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        *PUSH,
        "--freeze_lm",
        "true",
        "--lora_r",
        "4",
        "--learning_rate",
        "1e-3",
    )
    words += ["--lm_learning_rate", "1e-3", "--hub_always_push", "true", "--max_steps", "2"]
    one = train(hub, [*words, "--output_dir", str(corpus / "one"), "--hub_model_id", "me/one"])
    two = run(hub, *TWO_PROCESSES, "--module", "audiolm.run_train", *words)
    assert one.returncode == two.returncode == 0, two.stderr[-3000:]
    assert hub.commits("me/x") == [
        "End of training",
        "Training in progress, step 2",
        "initial commit",
    ]
    assert (
        set(hub.files("me/x")) == PUSHED
        and two.stderr.count("pushed to me/x: End of training") == 1
    )
    alone, shared = (
        AudioLMForConditionalGeneration.from_pretrained(corpus / name).state_dict()
        for name in ("one", "out")
    )
    assert all(
        torch.allclose(value.float(), shared[key].float(), atol=2e-5)
        for key, value in alone.items()
    )


def test_card_of_known_parts_states_their_licences():
    facts = {
        "continued_from": None,
        "encoder_type": "mimi_full",
        "no_audio": False,
        "encoder": {"name": "kyutai/mimi", "licence": "CC-BY-4.0"},
        "text_model": {**part_facts("HuggingFaceTB/SmolLM2-135M-Instruct")},
        "seconds": 10.0,
        "settings": {"steps": 1},
        "data": {"name": "train.json", "sha256": "0" * 64, "rows": 968071, "clips": 54046},
        "code": {"audiolm": "0.1.0"},
        "parameters": 2,
        "trained_parameters": 1,
    }
    card = ModelCard(model_card(facts, "me/x"))
    assert "`kyutai/mimi`; licence: CC-BY-4.0" in card.text and "licence: Apache-2.0" in card.text
    assert (
        card.data.base_model == ["kyutai/mimi", "HuggingFaceTB/SmolLM2-135M-Instruct"]
        and "968,071 rows" in card.text
    )
