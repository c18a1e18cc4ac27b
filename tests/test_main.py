"""The entry point `audiolm`: its commands, their help and their options."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from audiolm import __main__ as entry
from audiolm import __version__

ROOT = Path(__file__).parents[1]


def test_one_entry_point(capsys):
    with pytest.raises(SystemExit) as ended:
        entry.main(["--help"])
    text = capsys.readouterr().out
    assert not ended.value.code and text.startswith("usage: audiolm")
    for command, module in entry.COMMANDS.items():
        assert (
            f"  {command} " in text
            and ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file()
            and len(entry.first_docstring_line(module)) > 15
        )
    entry.main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"
    for argv, message in (
        (["trian"], "audiolm: unknown command 'trian'. Commands: ask, app, train, "),
        ([], ""),
    ):
        with pytest.raises(SystemExit) as ended:
            entry.main(argv)
        assert ended.value.code == 2 and capsys.readouterr().err.startswith(message)
    light = (
        "import sys; from audiolm import __main__; from audiolm.ask import cli; "
        "__main__.help_text(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", light]).returncode == 0


@pytest.mark.parametrize("command", [name for name in entry.COMMANDS if name not in ("ask", "app")])
def test_each_command_is_its_script(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["audiolm"])
    with pytest.raises(SystemExit) as ended:
        entry.main([command, "--no_such_option"])
    assert ended.value.code == 2
    assert f"audiolm {command}" in capsys.readouterr().err


def test_the_page_of_options_is_what_the_commands_say():
    spec = importlib.util.spec_from_file_location(
        "build_commands", ROOT / "docs" / "build_commands.py"
    )
    build_commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_commands)
    saved = json.loads((ROOT / "configs" / "options.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert build_commands.build_page(saved) == page, "run: python docs/build_commands.py"
    assert build_commands.build_options() == saved, "run: python docs/build_commands.py"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--encoder_typ", "htsat"], "unrecognized arguments: --encoder_typ. Did you mean"),
        (["--max_steps", "ten"], "--max_steps 'ten': expected a whole number"),
        (["--max-steps=1.5"], "--max-steps '1.5': expected a whole number"),
        (["--learning_rate", "fast"], "--learning_rate 'fast': expected a number"),
    ],
)
def test_answer_early_refuses_wrong_options_without_torch(argv, message):
    program = f"import sys; sys.argv[1:] = {argv}; from audiolm.run_train import main; "
    program += "import atexit; atexit.register(lambda: print('torch' in sys.modules)); main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"run_train.py: error: {message}")
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", [*entry.COMMANDS, "prepare download"])
def test_help_of_each_command_needs_no_torch(command):
    program = f"import sys; from audiolm.__main__ import main; main({[*command.split(), '--help']})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")


def test_help_all_lists_stock_options_that_help_leaves_out(capsys):
    texts = []
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            entry.answer_early("train", [flag], "run_train.py")
        texts.append(capsys.readouterr().out)
    assert "--adam_beta1" not in texts[0]
    assert "--adam_beta1" in texts[1]
    assert len(texts[0].splitlines()) < 150
