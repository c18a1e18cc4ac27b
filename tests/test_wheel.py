"""The wheel in an environment of its own, and a script beside another checkout's package."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    "OMP_NUM_THREADS": "1",
}
# The demo in seconds: one encoder and the text-only model, a few steps and examples.
QUICK = {
    "corpus": {"rows": 120, "seed": 0},
    "train": {"max_steps": 2, "max_eval_samples": 1, "eval_steps": 2},
    "eval": {"max_samples": 4, "controls": ["majority"], "max_new_tokens": 4},
}


def declared_packages() -> set[str]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return set(setup["options"]["packages"].split())


def python_folders() -> set[str]:
    """The package's folders with modules, as dotted names."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    folders = {Path(name).parent for name in listed.splitlines()}
    # The remote code of the demo's models is data.
    others = [("tests",), ("docs",), ("demo", "models")]
    rooms = {folder for folder in folders if not any(folder.parts[: len(o)] == o for o in others)}
    return {".".join(("audiolm", *folder.parts)) for folder in rooms}


@pytest.mark.fast
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compares with a git checkout")
def test_setup_names_every_package():
    assert declared_packages() - {"audiolm.configs"} == python_folders()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    uv = shutil.which("uv")
    if uv is None and "CI" not in os.environ:
        pytest.skip("building a wheel needs uv")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "outputs", "tests", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [uv, "build", "-q", "--wheel", "--out-dir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "error sending request" in built.stderr and "CI" not in os.environ:
        pytest.skip("building a wheel needs a package index")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Commands of an environment with the wheel, whose dependencies are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    uv = shutil.which("uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True)
    # A folder of a .pth file is added without its own .pth files: no editable install is seen.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_wheel_carries_the_presets(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"audiolm/configs/demo.yaml", "audiolm/configs/accelerate/several_gpus.yaml"} <= names


def test_wheel_carries_every_file_that_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    listed = subprocess.run(
        ["git", "ls-files", "configs", "demo", "comparison/report/templates"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = {f"audiolm/{name}" for name in listed.splitlines() if not name.endswith(".png")}
    assert expected - names == set()


def test_installed_package_is_the_wheels(installed):
    command = [str(installed / "python"), "-c", "import audiolm; print(audiolm.__file__)"]
    place = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert place.stdout.startswith(str(installed.parent))


def compare(installed: Path, config: str, folder: Path) -> subprocess.CompletedProcess:
    command = [str(installed / "audiolm"), "compare", "--config", config]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture
def quick_demo(installed):
    """The installed preset `demo`, cut to seconds while the test runs."""
    (preset,) = installed.parent.glob("lib/python*/site-packages/audiolm/configs/demo.yaml")
    text = preset.read_text()
    config = yaml.safe_load(text)
    config["arms"] = {name: config["arms"][name] for name in ("mimi_semantic", "text_only")}
    for section, settings in QUICK.items():
        config[section].update(settings)
    preset.write_text(yaml.safe_dump(config))
    yield
    preset.write_text(text)


def test_installed_compare_runs_the_demo_by_name(installed, quick_demo, tmp_path):
    done = compare(installed, "demo", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "outputs" / "demo" / "comparison.json").is_file()


@pytest.mark.slow
def test_installed_compare_runs_the_whole_demo(installed, tmp_path):
    done = compare(installed, "demo", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "outputs" / "demo" / "report.html").is_file()


@pytest.mark.parametrize("script", ["run_train.py", "run_eval.py", "run_compare.py"])
def test_script_of_a_second_checkout_runs_its_own_package(script, tmp_path):
    """The environment holds this checkout's package; the copy's script must not run it silently."""
    copy = tmp_path / "second"
    ignored = shutil.ignore_patterns(".venv", ".git", "outputs", "tests", "demo", "docs", "*.md")
    shutil.copytree(ROOT, copy, ignore=ignored)
    marker = copy / "__init__.py"
    marker.write_text(marker.read_text() + '\nprint("package of the second checkout")\n')
    command = [sys.executable, str(copy / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert "package of the second checkout" in done.stdout or str(copy) in done.stderr
