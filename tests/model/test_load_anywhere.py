"""Pushed models load where only transformers and torch are installed, the oldest and the newest."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from support.builders import ARMS, clip
from transformers import AutoTokenizer

from audiolm import AudioLMForConditionalGeneration, AudioLMProcessor

NEWEST = ["torch", "transformers", "accelerate"]


def needed(*names: str) -> set[str]:
    """The installed distributions of these names and all that they need, without extras."""
    distributions: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in distributions:
            continue
        distributions.add(name)
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return distributions


def link_oldest(folder: Path) -> Path:
    """Makes an environment with the oldest torch and transformers that setup.cfg admits.

    These are the installed ones, so it has links to them. Returns its interpreter.
    """
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    source = Path(sysconfig.get_path("purelib"))
    target = Path(sysconfig.get_path("purelib", vars=paths))
    for name in needed("torch", "transformers"):
        for top in {file.parts[0] for file in importlib.metadata.files(name)} - {
            "..",
            "__pycache__",
        }:
            if not (target / top).is_symlink():
                (target / top).symlink_to(source / top)
    return folder / "bin" / "python"


def install_newest(folder: Path) -> Path:
    """Makes an environment with the newest torch, transformers and accelerate."""
    uv = shutil.which("uv")
    if not uv and "CI" not in os.environ:
        pytest.skip("making environments needs uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--no-config", "--python", str(python), *NEWEST]
    run = subprocess.run(install, capture_output=True, text=True)
    is_offline = "dns error" in run.stderr or "error sending request" in run.stderr
    if is_offline and "CI" not in os.environ:
        pytest.skip("no package index is within reach")
    assert run.returncode == 0, run.stderr
    return python


@pytest.fixture(scope="module", params=["oldest", pytest.param("newest", marks=pytest.mark.slow)])
def environment(request, tmp_path_factory):
    """Name and interpreter of a fresh environment with torch and transformers."""
    folder = tmp_path_factory.mktemp("environment") / request.param
    make_environment = link_oldest if request.param == "oldest" else install_newest
    yield request.param, str(make_environment(folder))
    shutil.rmtree(folder)  # It has 5 GB, most of it links into uv's cache.


def load_trained(folder):
    """Loads the model and processor of a run with this environment."""
    model = AudioLMForConditionalGeneration.from_pretrained(folder)
    return model, AudioLMProcessor.from_config(model.config, AutoTokenizer.from_pretrained(folder))


def test_setup_cfg_admits_what_the_oldest_environment_has():
    requires = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "transformers >=5.23,<6" in requires
    assert "torch ==2.11.*" in requires


@pytest.fixture(scope="module")
def loaded(environment, pushed, tmp_path_factory):
    """The report of load_anywhere.py on the last commit of each model, and a folder with logits."""
    _, python = environment
    hub, _ = pushed
    folder = tmp_path_factory.mktemp("loaded")
    commits = {arm: hub.repos[f"me/{arm}"]["commits"].items() for arm in ARMS}
    ends = {
        arm: next(oid for oid, commit in commits[arm] if commit["message"] == "End of training")
        for arm in ARMS
    }
    variables = {**os.environ, **hub.environment(folder / "home"), "PYTHONPATH": ""}
    command = [
        python,
        str(Path(__file__).parents[1] / "support" / "load_anywhere.py"),
        *(f"me/{arm}={ends[arm]}" for arm in ARMS),
    ]
    run = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1]), folder


@pytest.mark.parametrize("arm", ARMS)
def test_pushed_model_gives_the_same_logits(arm, environment, loaded, pushed):
    name, _ = environment
    report, folder = loaded
    _, runs = pushed
    expected = np.load(runs[arm][0] / "out" / "probe.npy")
    logits = np.load(folder / f"me-{arm}.npy")
    model_report = report["models"][f"me/{arm}"]
    if name == "oldest":  # The same torch gives the same bits.
        versions = (report["torch"].split("+")[0], report["transformers"])
        assert versions == ("2.11.0", "5.23.0")
        assert (expected == logits).all()
        assert "device_map" not in model_report
    else:
        assert np.abs(expected - logits).max() < 1e-4 * np.abs(expected).max()
        assert model_report["device_map"]


@pytest.mark.parametrize("arm", ARMS)
def test_pushed_model_is_saved_compiled_and_halved(arm, loaded):
    report, _ = loaded
    assert report["present"] == []
    model_report = report["models"][f"me/{arm}"]
    assert model_report["saved_again"]
    assert model_report["processor_again"]
    assert 0 < model_report["bf16"] < 0.1
    assert model_report["dtypes"] == ["torch.float32"]
    assert model_report["language_model_dtypes"] == ["torch.bfloat16"]
    if arm == "mimi_full":
        assert model_report["compiled"] < 1e-4
    else:
        assert "compiled" not in model_report


@pytest.mark.parametrize("arm", ARMS)
def test_pushed_model_gives_the_same_answer(arm, loaded, pushed):
    report, _ = loaded
    _, runs = pushed
    model, processor = load_trained(runs[arm][0] / "out")
    sound = np.sin(np.arange(30000) / 9).astype("float32")
    inputs = processor(text="Which tone? A) low B) high", audio=[sound])
    output = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    answer_ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    model_report = report["models"][f"me/{arm}"]
    assert len(answer_ids) > 0
    assert model_report["answer_ids"] == answer_ids
    answer = processor.tokenizer.decode(answer_ids, skip_special_tokens=True)
    assert model_report["pipeline"] == answer


def test_readme_lines_run_as_written(environment, pushed, tmp_path):
    hub, runs = pushed
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, flags=re.S)[1]
    # A pushed model in place of the one in the checkout.
    code = code.replace("demo/models/mimi_full", "me/readme")
    code = code.replace("demo/example.flac", "clip.wav")
    hub.repos["me/readme"] = {**hub.repos["me/mimi_full"], "private": False}
    soundfile.write(tmp_path / "clip.wav", clip(1.0), 16000)
    variables = {**os.environ, **hub.environment(tmp_path / "home", token=None), "PYTHONPATH": ""}
    run = subprocess.run(
        [environment[1], "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    model, processor = load_trained(runs["mimi_full"][0] / "out")
    question = re.search(r'text="([^"]+)"', code)[1]
    inputs = processor(text=question, audio=[tmp_path / "clip.wav"])
    ids = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert run.stdout == processor.tokenizer.decode(ids, skip_special_tokens=True).strip() + "\n"
    assert len(ids) > 1
