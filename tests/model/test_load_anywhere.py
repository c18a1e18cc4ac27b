"""A pushed model of each arm where only transformers and torch are: the oldest of them that will do, and the newest."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
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
    found, open_ = set(), list(names)
    while open_:
        if (name := open_.pop()) not in found:
            found.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or [])
            open_ += [
                need.name
                for need in wanted
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


def link_oldest(folder: Path) -> Path:
    """An environment with torch and transformers of the oldest versions that setup.cfg admits, which are this one's: links to
    its packages, and to no others. Returns its interpreter."""
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    here, there = (Path(sysconfig.get_path("purelib", vars=vars_)) for vars_ in (None, paths))
    for name in needed("torch", "transformers"):
        for top in {file.parts[0] for file in importlib.metadata.files(name)} - {
            "..",
            "__pycache__",
        }:
            if not (there / top).is_symlink():
                (there / top).symlink_to(here / top)
    return folder / "bin" / "python"


def install_newest(folder: Path) -> Path:
    """An environment with the newest torch, transformers and accelerate. Returns its interpreter."""
    if not (uv := shutil.which("uv")) and "CI" not in os.environ:
        pytest.skip(
            "making environments needs uv"
        )  # a user may lack it; with CI set nothing is skipped here
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--no-config", "--python", str(python), *NEWEST]
    made = subprocess.run(install, capture_output=True, text=True)
    if (
        "dns error" in made.stderr or "error sending request" in made.stderr
    ) and "CI" not in os.environ:
        pytest.skip("no package index is within reach")
    assert made.returncode == 0, made.stderr
    return python


@pytest.fixture(scope="module", params=["oldest", pytest.param("newest", marks=pytest.mark.slow)])
def environment(request, tmp_path_factory):
    """Name and interpreter of a fresh environment with torch and transformers."""
    folder = tmp_path_factory.mktemp("environment") / request.param
    yield request.param, str((link_oldest if request.param == "oldest" else install_newest)(folder))
    shutil.rmtree(folder)  # 5 GB, most of it links into uv's cache


def trained(folder):
    """The model and processor of a run, as this environment reads them."""
    model = AudioLMForConditionalGeneration.from_pretrained(folder)
    return model, AudioLMProcessor.from_config(model.config, AutoTokenizer.from_pretrained(folder))


def test_setup_cfg_admits_what_the_oldest_environment_has():
    requires = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "transformers >=5.23,<6" in requires and "torch ==2.11.*" in requires


@pytest.fixture(scope="module")
def loaded(environment, pushed, tmp_path_factory):
    """What load_anywhere.py finds of each arm, at the commit that ended its training, and the folder with its logits."""
    (_, python), (hub, _), folder = environment, pushed, tmp_path_factory.mktemp("loaded")
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
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), folder


@pytest.mark.parametrize("arm", ARMS)
def test_loads_anywhere(arm, environment, loaded, pushed):
    (name, _), (all_found, folder), (_, runs) = environment, loaded, pushed
    found = all_found["models"][f"me/{arm}"]
    assert all_found["present"] == []
    here, there = np.load(runs[arm][0] / "out" / "probe.npy"), np.load(folder / f"me-{arm}.npy")
    if name == "oldest":  # the same torch: the same bits
        assert (all_found["torch"].split("+")[0], all_found["transformers"]) == ("2.11.0", "5.23.0")
        assert (here == there).all() and "device_map" not in found
    else:
        assert np.abs(here - there).max() < 1e-4 * np.abs(here).max() and found["device_map"]
    assert found["saved_again"] and found["processor_again"]
    assert found["compiled"] < 1e-4 if arm == "mimi_full" else "compiled" not in found
    assert 0 < found["bf16"] < 0.1 and found["dtypes"] == ["torch.float32"]
    assert found["language_model_dtypes"] == ["torch.bfloat16"]
    model, processor = trained(runs[arm][0] / "out")
    inputs = processor(
        text="Which tone? A) low B) high", audio=[np.sin(np.arange(30000) / 9).astype("float32")]
    )
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=8)[
        0, inputs["input_ids"].shape[1] :
    ].tolist()
    assert found["answer_ids"] == answer and len(answer) > 0
    assert found["pipeline"] == processor.tokenizer.decode(answer, skip_special_tokens=True)


def test_the_readme_s_lines_run_as_written(environment, pushed, tmp_path):
    hub, runs = pushed
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.search(
        r"    from transformers import AutoModel, AutoProcessor\n(    .*\n)+", readme
    )[0]
    code = textwrap.dedent(lines)
    repo = re.search(r'AutoModel.from_pretrained\("([^"]+)"', code)[1]
    hub.repos[repo] = {**hub.repos["me/mimi_full"], "private": False}
    soundfile.write(tmp_path / "clip.wav", clip(1.0), 16000)
    variables = {**os.environ, **hub.environment(tmp_path / "home", token=None), "PYTHONPATH": ""}
    done = subprocess.run(
        [environment[1], "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(code.splitlines()) == 5, done.stderr
    model, processor = trained(runs["mimi_full"][0] / "out")
    inputs = processor(text="What is heard first?", audio=[tmp_path / "clip.wav"])
    ids = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert done.stdout == processor.tokenizer.decode(ids) + "\n" and len(ids) > 1
