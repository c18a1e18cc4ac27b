"""The page in a browser and by its API: answers, ablation, two users, a phone, the keyboard."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.builders import free_port

from audiolm.ask import app
from audiolm.ask.model import LoadedModel
from audiolm.data.answer_parsing import add_options
from audiolm.data.soundscapes.corpus import make_soundscapes
from audiolm.demo import MODEL_NAMES

ROOT = Path(__file__).parents[2]
ALARM = (
    "Which sound can be heard?",
    ["cricket", "engine", "footsteps", "alarm"],
)  # of the demo's test scene 0 of seed 7
# the page, whose uploads grow old at once
QUICK = (
    "from audiolm.ask import app; app.CLEANUP_INTERVAL, app.MAX_UPLOAD_AGE = 1, 5; "
    "app.main({words})"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    make_soundscapes(folder, 40, 7)
    long = np.concatenate(
        [soundfile.read(folder / "audio" / "test" / f"{i:05}.flac")[0] for i in range(3)]
    )
    soundfile.write(folder / "long.wav", long, 24000)
    (folder / "not_audio.wav").write_text("RIFF, but no more than that")
    return folder


def clip(corpus, number: int = 0) -> str:
    return str(corpus / "audio" / "test" / f"{number:05}.flac")


def started(argv: list[str], folder: Path, **variables: str):
    """A process that serves the page, and its address."""
    port = free_port()
    environment = {**os.environ, "TMPDIR": str(folder), **variables}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *argv, "--port", port],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    deadline = time.monotonic() + 120
    while (
        "Running on local URL" not in (folder / "log").read_text()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert process.poll() is None, (folder / "log").read_text()
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    process, address = started(["-m", "audiolm", "app"], folder)
    yield address
    process.terminate()
    process.wait()


@pytest.fixture
def opened(browser, served):
    """The page; nothing may have been asked of other machines, and nothing complained of."""
    requested, wrong = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served)
    page.wait_for_selector("#ask")
    yield page
    assert not [
        url
        for url in requested
        if not url.startswith((served, "data:", "blob:", served.replace("http", "ws")))
    ]
    assert wrong == []
    page.close()


def upload(page, path: str, where: str = "#clip") -> None:
    page.set_input_files(f"{where} input[type=file]", path)
    page.wait_for_selector(f"{where} audio", state="attached")


def ask(page, question: str, options: tuple = (), wait: bool = True) -> None:
    page.fill("#question textarea, #question input", question)
    page.fill("#options textarea", "\n".join(options))
    page.click("#ask")
    if wait:
        answered(page)


def answered(page) -> list[str]:
    """What each model says, once all have."""
    page.wait_for_function(f"""[...document.querySelectorAll('.model')].filter(
        arm => arm.innerText.includes('answered')).length == {len(MODEL_NAMES)}""")
    return [page.locator(".answer textarea").nth(i).input_value() for i in range(len(MODEL_NAMES))]


def shares(page) -> list[dict[str, int]]:
    actual = []
    for arm in page.locator(".model").all():
        texts = re.findall(r"([A-Z]\) [a-z ]+?|yes|no)\s+(\d+)%", arm.inner_text())
        actual.append({option: int(share) for option, share in texts})
    return actual


def test_a_clip_is_asked_about_and_the_arms_are_compared(opened, corpus):
    upload(opened, clip(corpus))
    ask(opened, *ALARM)
    assert all("alarm" in text for text in answered(opened))
    for actual in shares(opened):
        assert (
            set(actual) == {"A) cricket", "B) engine", "C) footsteps", "D) alarm"}
            and actual["D) alarm"] > 80
        )
        assert 98 <= sum(actual.values()) <= 102
    text = opened.locator("#clips").inner_text()
    assert "Clip 1: 4.2 s" in text and "were used" not in text
    source = opened.locator("#clips image").get_attribute("href")
    assert source.startswith("data:image/png;base64,") and len(source) > 5000
    for arm, name in zip(opened.locator(".model").all(), MODEL_NAMES):
        assert arm.inner_text().startswith(name)
        assert re.search(
            r"encoded \d+\.\d\d s · answered \d+\.\d\d s",
            arm.inner_text(),
        )


def test_muted_it_says_what_the_control_says(opened, corpus):
    upload(opened, clip(corpus))
    opened.check("#muted input")
    ask(opened, *ALARM)
    texts, actual = answered(opened), shares(opened)
    for arm, text, entry in zip(MODEL_NAMES, texts, actual):
        model = LoadedModel(arm)
        encoded, question = [model.encode([clip(corpus)])], [add_options(*ALARM)]
        (expected,), (unmuted,) = (
            model.ask(question, encoded, no_audio=True),
            model.ask(question, encoded),
        )
        rounded = {option[0].lower(): share / 100 for option, share in entry.items()}
        assert text == expected.text and rounded == pytest.approx(expected.options, abs=0.006)
        assert unmuted.options["d"] > expected.options["d"] + 0.05


def test_two_clips_and_a_free_question(opened, corpus):
    upload(opened, clip(corpus))
    upload(opened, clip(corpus, 2), "#other")
    ask(opened, "explain the difference in few words")
    assert all("audio 1" in text.lower() for text in answered(opened))
    assert shares(opened) == [{}] * len(MODEL_NAMES) and opened.locator("#clips image").count() == 2


def test_of_a_long_clip_it_says_what_was_heard(opened, corpus):
    upload(opened, str(corpus / "long.wav"))
    ask(opened, "Can the cat be heard?", ("yes", "no"))
    assert "the first 5 s were used" in opened.locator("#clips").inner_text()
    assert all("used the first 5 s" in arm.inner_text() for arm in opened.locator(".model").all())
    assert all(set(actual) == {"yes", "no"} for actual in shares(opened))


def complaint(page) -> str:
    page.wait_for_selector("#clips [role=alert]")
    assert page.locator("[role=alert]").count() == 1
    return page.locator("#clips [role=alert]").inner_text()


def test_what_is_wrong_is_one_friendly_line(opened, corpus):
    ask(opened, "What?", wait=False)
    assert "Upload or record a clip" in complaint(opened)
    opened.reload()
    opened.wait_for_selector("#ask")
    upload(opened, str(corpus / "not_audio.wav"))
    ask(opened, "What?", wait=False)
    output = complaint(opened)
    assert (
        "This clip cannot be read (not_audio.wav: " in output
        and "WAV, FLAC, OGG and MP3 work" in output
    )
    assert "/" not in output and "Traceback" not in output
    opened.reload()
    opened.wait_for_selector("#ask")
    hidden = corpus / "rec\u202f10.wav"  # as some recorders name them; a message shows it escaped
    hidden.write_text("no audio")
    upload(opened, str(hidden))
    ask(opened, "What?", wait=False)
    assert "This clip cannot be read" in (output := complaint(opened)) and "/" not in output
    opened.reload()
    opened.wait_for_selector("#ask")
    upload(opened, clip(corpus))
    ask(opened, "Which? A) one B) two", ("three", "four"), wait=False)
    assert "names options already" in complaint(opened)
    opened.reload()
    opened.wait_for_selector("#ask")
    upload(opened, clip(corpus))
    ask(opened, "What? " * 1000, wait=False)
    assert "at most 4,000 characters" in complaint(opened)
    ask(opened, *ALARM)  # and it goes on


def test_an_example_is_one_click(opened):
    opened.get_by_text("Truth: no. Can the cat be heard?").click()
    opened.wait_for_selector("#clip audio", state="attached")
    opened.click("#ask")
    assert all(text in ("yes", "no") for text in answered(opened))


def test_by_keyboard(opened, corpus):
    upload(opened, clip(corpus))
    opened.fill("#options textarea", "\n".join(ALARM[1]))
    opened.focus("#question textarea, #question input")
    opened.keyboard.type(ALARM[0])
    opened.keyboard.press("Enter")
    assert all("alarm" in text for text in answered(opened))
    reached = []
    for _ in range(40):
        opened.keyboard.press("Tab")
        reached.append(
            opened.evaluate("""(() => { const of = document.activeElement;
            const ids = ['options', 'muted', 'ask'];
            return ids.find(id => of.closest('#' + id)) ?? of.tagName; })()""")
        )
    order = [reached.index(name) for name in ("options", "muted", "ask")]
    assert order == sorted(order)


def test_two_users_at_once(browser, served, corpus):
    pages = [browser.new_page() for _ in range(2)]
    for page in pages:
        page.goto(served)
        page.wait_for_selector("#ask")
    upload(pages[0], clip(corpus))
    upload(pages[1], clip(corpus, 1))
    ask(pages[0], *ALARM, wait=False)
    ask(pages[1], "Where was it recorded?", ("small room", "outdoors", "large room"), wait=False)
    assert all("alarm" in text for text in answered(pages[0]))
    answered(pages[1])
    assert all(
        set(actual) == {"A) small room", "B) outdoors", "C) large room"}
        for actual in shares(pages[1])
    )
    assert [page.locator("#clips figcaption").inner_text()[:13] for page in pages] == [
        "Clip 1: 4.2 s",
        "Clip 1: 4.9 s",
    ]
    for page in pages:
        page.close()


@pytest.mark.parametrize(("scheme", "widths"), [("light", (320, 1280)), ("dark", (390,))])
def test_widths_and_themes(browser, served, corpus, scheme, widths):
    page = browser.new_page(color_scheme=scheme)
    for width in widths:
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(served)
        page.wait_for_selector("#ask")
        upload(page, clip(corpus))
        ask(page, *ALARM)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark"), colour
    page.close()


def called(served: str, *data) -> str:
    """What the page's interface says to an event."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(
        f"{served}/gradio_api/call/ask", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{served}/gradio_api/call/ask/{event}", timeout=60) as answer:
        return answer.read().decode()


def test_no_file_of_the_machine_can_be_read(served, corpus, tmp_path):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros(24000), 24000)
    for path in (secret, ROOT / "setup.cfg", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served}/gradio_api/file={path}", timeout=60)
        assert refused.value.code in (403, 404)
        output = called(
            served,
            {"path": str(path), "meta": {"_type": "gradio.FileData"}},
            None,
            "What?",
            "",
            False,
        )
        assert (
            "event: error" in output and "event: complete" not in output and "encoded" not in output
        ), output


@pytest.mark.slow
def test_uploads_are_deleted_and_examples_are_not(tmp_path, corpus):
    process, address = started(
        ["-c", QUICK.format(words="__import__('sys').argv[1:]"), "htsat"], tmp_path
    )
    try:
        content, boundary = Path(clip(corpus)).read_bytes(), "xyz"
        body = (
            f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
            + b'name="files"; filename="mine.flac"\r\n\r\n'
            + content
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
        (path,) = json.load(urllib.request.urlopen(request, timeout=60))
        examples = [
            file for file in tmp_path.rglob("uploads/**/*.flac") if file.name != "mine.flac"
        ]
        assert Path(path).is_file() and tmp_path in Path(path).parents and len(examples) > 3
        output = called(
            address,
            {"path": path, "meta": {"_type": "gradio.FileData"}},
            None,
            "Can the cat be heard?",
            "yes\nno",
            False,
        )
        assert "event: complete" in output and "encoded" in output
        deadline = time.monotonic() + 30
        while Path(path).exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not Path(path).exists() and all(file.is_file() for file in examples)
    finally:
        process.terminate()
        assert process.wait() == 0
    assert not list(tmp_path.rglob("*.flac"))  # with the page, all goes


def test_what_is_not_the_users_fault_is_not_said_to_be(corpus):
    """gradio logs it and shows no more than "Error"."""
    model = LoadedModel("htsat")
    model.encode = lambda clips: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(app.ask([model], clip(corpus), None, "What?", "", False))


def test_former_answers_do_not_stand_under_a_new_question(opened, corpus):
    upload(opened, clip(corpus))
    ask(opened, *ALARM)
    ask(opened, "Which? A) one B) two", ("three", "four"), wait=False)
    assert "names options already" in complaint(opened)
    assert [
        opened.locator(".answer textarea").nth(i).input_value() for i in range(len(MODEL_NAMES))
    ] == [""] * len(MODEL_NAMES)
    assert opened.locator("#clips image").count() == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "99999"], "--port 99999: expected a number from 1 to 65535"),
        (["--space", "x", "--host", "0.0.0.0"], "--space starts no page"),
        (["nothing"], "audiolm app: --model nothing is neither a folder with config.json"),
    ],
)
def test_wrong_options_are_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(argv)
    assert message in f"{ended.value.code} {capsys.readouterr().err}"


def written_space(folder: Path) -> Path:
    app.main(["--space", str(folder)])
    return folder


def test_a_space_is_written(tmp_path):
    space = written_space(tmp_path / "space")
    with pytest.raises(SystemExit, match="exists already"):
        app.main(["--space", str(space)])
    with pytest.raises(SystemExit, match="is not on the Hub"):
        app.main(["--space", str(tmp_path / "other"), str(space)])
    card = (space / "README.md").read_text()
    assert (
        card.startswith("---\ntitle: AudioLM\n")
        and "\nsdk: gradio\n" in card
        and "\napp_file: app.py\n" in card
    )
    expected_values = (space / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch ==") for line in expected_values) and not any(
        line.startswith((" ", "#")) for line in expected_values
    )
    assert {path.name for path in (space / "audiolm" / "demo" / "models").iterdir()} == set(
        MODEL_NAMES
    )
    app.main(["--space", str(tmp_path / "named"), "me/one", "me/two"])
    assert "\nmodels:\n- me/one\n- me/two\n" in (tmp_path / "named" / "README.md").read_text()
    assert not (tmp_path / "named" / "audiolm" / "demo" / "models").exists()
    assert (tmp_path / "named" / "app.py").read_text().endswith("main(['me/one', 'me/two'])\n")


def test_a_space_runs_the_file_of_an_encoder(tmp_path):
    app.main(["--space", str(tmp_path / "space"), "me/one", "--trust_remote_code"])
    started = (tmp_path / "space" / "app.py").read_text()
    assert started.endswith("main(['me/one', '--trust_remote_code'])\n")


@pytest.mark.slow
def test_a_space_runs_by_itself(tmp_path, browser, corpus):
    space = written_space(tmp_path / "space")
    served_from = (
        "import audiolm, runpy, sys; print(audiolm.__file__, flush=True); "
        "sys.argv[0] = 'app.py'; runpy.run_path('app.py')"
    )
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(space),
        "GRADIO_SERVER_PORT": port,
        "TMPDIR": str(tmp_path),
    }
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", served_from], cwd=space, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while (
            "Running on" not in (tmp_path / "log").read_text()
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        output = (tmp_path / "log").read_text()
        assert f"{space}/audiolm/__init__.py" in output and "Running on" in output, output
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#ask")
        upload(page, clip(corpus))
        ask(page, *ALARM)
        assert all("alarm" in text for text in answered(page))
        page.close()
    finally:
        process.terminate()
        process.wait()
