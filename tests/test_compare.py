"""run_compare.py, its numbers and its report: by hand, from end to end with small models, and in a browser."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml
from conftest import clip, small_model

from audiolm.evaluation.comparison import (
    choose_examples,
    comparison_table,
    learning_curves,
    majority_baseline,
    read_predictions,
    table_rows,
)
from audiolm.evaluation.metric import wilson
from audiolm.evaluation.report import line_chart, smooth, ticks, write_report
from audiolm.run_compare import arm_flags, main, read_config
from audiolm.run_train import parse

EMPTY = {key: "" for key in ("taskname", "filepath2", "caption1", "caption2")}
MCQ = {**EMPTY, "input": "Which tone? A) low B) high", "subtype": "T-MCQ.json"}
YES_NO = {**EMPTY, "input": "Is it low? Answer only using yes or no.", "subtype": "TAQA.json"}
DIFFERENCE = {**EMPTY, "input": "explain the difference in detail", "subtype": "TD-1.json"}
SCRIPT = "<script>alert(1)</script>"


def group(correct, n, unparsed=0):
    low, high = wilson(correct, n)
    return {"n": n, "accuracy": correct / n, "ci95_low": low, "ci95_high": high, "n_unparsed": unparsed}


def answered(row, kind, about, generated, correct, name="0.wav", reference=None):
    return {**row, "filepath1": name, "question_type": kind, "category": about, "generated": generated, "correct": correct,
            "parsed": None, "reference": reference, "loss": 3.0, "n_tokens": 2}  # fmt: skip


def hand_made():
    """Two arms of 8 mcq and 4 yes_no rows and a text type, with a majority baseline."""
    curves = {"train_loss": [[10, 2.0], [20, 1.0]], "eval_loss": {"mcq": [[10, 1.5], [20, 1.25]]}}
    sizes = {"trained_parameters": 12345, "max_audio_seconds": 10.0, "tokens_per_clip": 92, "learning_curves": curves}
    heard = {
        "question_type": {"mcq": group(6, 8), "yes_no": group(2, 4)}, "category": {"count": group(8, 12)},
        "micro": group(8, 12), "macro_accuracy": 0.625,
        "text": {"caption": {"n": 3, "loss_per_answer_token": 1.25, "mean_words": 4.0}},
    }  # fmt: skip
    chance = {"question_type": {"mcq": group(2, 8), "yes_no": group(2, 4)}, "category": {"count": group(4, 12)},
              "micro": group(4, 12), "macro_accuracy": 0.375}  # fmt: skip
    arms = {"htsat": {"encoder_type": "htsat", **heard, **sizes},
            "deaf": {"encoder_type": "htsat", "no_audio": True, **chance, "text": {}, **sizes}}  # fmt: skip
    return {"command": "run_compare.py --config x.yaml --seed 0", "note": f"small {SCRIPT}", "seed": 0, "corpus": None,
            "train": {}, "eval": {}, "rows": {"train": 20, "test": 15}, "arms": arms, "majority": chance}  # fmt: skip


def test_table_by_hand():
    rows = {row["name"]: row for row in table_rows(hand_made())}
    assert list(rows) == ["mcq", "yes_no", "count", "all closed rows", "mean of types", "caption"]
    assert rows["mcq"]["n"] == 8 and rows["mcq"]["cells"]["htsat"]["accuracy"] == 0.75
    assert rows["caption"]["cells"] == {"htsat": {"n": 3, "loss": 1.25}, "deaf": None, "majority": None}
    lines = comparison_table(hand_made()).split("\n")
    assert lines[0].split() == ["n", "htsat", "deaf", "majority"]
    # Wilson's interval of 6 of 8 and 2 of 8
    expected = ["mcq", "8", "0.750", "(0.409-0.929)", "0.250", "(0.071-0.591)", "0.250", "(0.071-0.591)"]
    assert next(line.split() for line in lines if line.startswith("  mcq")) == expected
    assert next(line.split() for line in lines if line.startswith("  caption")) == ["caption", "3", "1.250", "-", "-"]
    assert len({len(line) for line in lines if line.startswith("  ")}) == 1


def test_majority_by_hand():
    training = [{**MCQ, "answer": a} for a in ("A) low", "B) high", "B) high")]
    training += [{**MCQ, "subtype": "U-MCQ.json", "answer": "A) low"}] * 3  # over both subtypes, a is commoner
    training += [{**YES_NO, "answer": a} for a in ("yes", "no")]  # a tie: the alphabet's first
    training += [{**DIFFERENCE, "answer": "one is low"}]
    test = [answered({**MCQ, "answer": a}, "mcq", "count", "", False, reference=a[0].lower()) for a in ("A) low", "B) high")]
    other = {**MCQ, "subtype": "new-MCQ.json", "answer": "A) low"}
    test.append(answered(other, "mcq", "sound event", "", False, reference="a"))
    test += [answered({**YES_NO, "answer": a}, "yes_no", "count", "", False, reference=a) for a in ("no", "no", "yes")]
    test.append(answered({**DIFFERENCE, "answer": "x"}, "difference", "comparison", "", None))
    found = majority_baseline(training, test)
    assert found["question_type"] == {"mcq": group(2, 3), "yes_no": group(2, 3)}
    assert found["category"] == {"count": group(3, 5), "sound event": group(1, 1)}
    assert found["subtype"]["T-MCQ.json"] == group(1, 2)
    assert found["micro"] == group(4, 6) and found["macro_accuracy"] == pytest.approx(2 / 3)


def test_arms_that_answered_different_rows_are_refused(tmp_path):
    for arm, rows in {"a": [MCQ], "b": [YES_NO], "c": [MCQ]}.items():
        (tmp_path / arm).mkdir()
        line = json.dumps(answered({**rows[0], "answer": "no\u2028"}, "mcq", "count", "", False), ensure_ascii=False)
        (tmp_path / arm / "predictions.jsonl").write_text(line + "\n", encoding="utf-8")
    assert [len(rows) for rows in read_predictions({arm: tmp_path / arm for arm in "ac"}).values()] == [1, 1]
    with pytest.raises(ValueError, match=r"a and .*b hold answers to different rows"):
        read_predictions({arm: tmp_path / arm for arm in "ab"})


def test_learning_curves_of_a_log():
    log = [{"step": 5, "loss": 2.0}, {"step": 5, "eval_mcq_token_loss": 1.5, "eval_mcq_loss": 9.0}, {"step": 10, "loss": 1.0},
           {"step": 10, "eval_mcq_token_loss": 1.0}, {"step": 10, "train_loss": 1.5}]  # fmt: skip
    assert learning_curves(log) == {"train_loss": [[5, 2.0], [10, 1.0]], "eval_loss": {"mcq": [[5, 1.5], [10, 1.0]]}}


def test_examples_are_spread_and_do_not_repeat_clips(tmp_path):
    named = [("count", "0.wav"), ("count", "1.wav"), ("sound event", "0.wav"), ("sound event", "2.wav")]
    rows = [answered({**MCQ, "answer": "A) low"}, "mcq", about, "b", False, name) for about, name in named]
    pair = {**DIFFERENCE, "filepath2": "4.wav", "answer": "x"}
    rows.append(answered(pair, "difference", "comparison", "y", None, "3.wav"))
    examples = choose_examples({"a": rows, "b": rows}, tmp_path, count=3)
    assert [(e["question_type"], e["category"]) for e in examples] == [
        ("mcq", "count"), ("mcq", "sound event"), ("difference", "comparison")]  # fmt: skip
    paths = [[str(tmp_path / f"{i}.wav") for i in clips] for clips in ([1], [0], [3, 4])]
    assert [e["clips"] for e in examples] == paths
    assert examples[0]["answers"]["b"] == {"text": "b", "correct": False, "parsed": None, "loss_per_answer_token": 1.5}
    assert len(choose_examples({"a": rows}, tmp_path, count=10)) == 5


def test_pictures_by_hand():
    assert ticks(0.6, 1.3) == [0.6, 0.8, 1.0, 1.2, 1.4] and ticks(0, 800) == [0, 200, 400, 600, 800]
    chart = line_chart({"a": [[0, 3.0], [50, 2.0], [100, 1.0]], "b": [[50, float("nan")]]})
    assert chart["lines"] == [{"arm": "a", "points": [(0, 0), (50, 50), (100, 100)], "end": "1.000"}]
    assert chart["y"][0] == (100.0, "1.0") and chart["y"][-1] == (0.0, "3.0") and chart["x"][-1] == (100.0, "100")
    assert line_chart({"a": [[5, 1.0]]})["lines"][0]["points"][0][0] == 100 and line_chart({})["lines"] == []
    points = [[i, float(i % 2)] for i in range(75)]  # windows of 3 points
    assert smooth(points)[0] == [0, 0.5] and smooth(points)[1] == [1, pytest.approx(1 / 3)] and smooth([[1, 2.0]]) == [[1, 2.0]]


def test_everything_in_the_report_is_escaped(tmp_path):
    soundfile.write(tmp_path / "a&b'.wav", clip(0.1), 24000)
    answer = {"text": SCRIPT, "correct": False, "parsed": None, "loss_per_answer_token": 1.0}
    example = {"question_type": "mcq", "category": SCRIPT, "question": SCRIPT, "truth": f'">{SCRIPT}',
               "clips": [str(tmp_path / "a&b'.wav")], "answers": {"htsat": answer, "deaf": answer}}  # fmt: skip
    write_report(tmp_path / "report.html", hand_made(), [example])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6
    assert "a&amp;b&#39;.wav" in page and "data:audio/wav;base64,UklGR" in page
    assert "wrong, names no option" in page and "75.0" in page
    # nothing is fetched: the only addresses are data
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in page


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tokenizer):
    """A corpus of 12 rows, checkpoints, and the config of a comparison of two arms."""
    folder = tmp_path_factory.mktemp("compare")
    rows = []
    for i in range(12):
        soundfile.write(folder / f"{i}.flac", clip(0.5 + i / 20, seed=i % 2 * 9), 24000)
        high = i % 2
        answer = [("B) high" if high else "A) low"), ("no" if high else "yes"), "the first is lower"][i // 4]
        rows.append({**(MCQ, YES_NO, DIFFERENCE)[i // 4], "filepath1": f"{i}.flac", "answer": answer})
        if i >= 8:
            rows[-1]["filepath2"] = f"{i - 8}.flac"
    (folder / "rows.json").write_text(json.dumps(rows))
    model = small_model("mimi_full")
    model.encoder.model.save_pretrained(folder / "mimi")
    model.language_model.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    data, audio = str(folder / "rows.json"), str(folder)
    config = {
        "note": "small", "feature_cache": True,
        "arms": {"mimi_full": {"encoder_type": "mimi_full", "encoder_name_or_path": str(folder / "mimi")},
                 "text_only": {"encoder_type": "mimi_full", "encoder_name_or_path": str(folder / "mimi"), "no_audio": True}},
        "train": {"train_file": data, "validation_file": data, "audio_dir": audio, "max_steps": 2, "logging_steps": 1,
                  "eval_steps": 1, "save_strategy": "no", "text_model_name_or_path": str(folder / "text"), "freeze_lm": False,
                  "learning_rate": 0.01, "dataloader_num_workers": 0},
        "eval": {"test_file": data, "audio_dir": audio, "max_new_tokens": 8},
    }  # fmt: skip
    (folder / "compare.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder, config


@pytest.fixture(scope="module")
def compared(parts):
    folder, _ = parts
    main(["--config", str(folder / "compare.yaml"), "--output_dir", str(folder / "first")])
    return folder / "first"


def test_end_to_end(compared, parts):
    comparison = json.loads((compared / "comparison.json").read_text())
    assert list(comparison["arms"]) == ["mimi_full", "text_only"] and comparison["rows"] == {"train": 12, "test": 12}
    for arm, of in comparison["arms"].items():
        metrics = json.loads((compared / arm / "evaluation" / "metrics.json").read_text())
        assert all(of[key] == metrics[key] for key in ("question_type", "category", "micro", "macro_accuracy", "text"))
        assert [step for step, _ in of["learning_curves"]["train_loss"]] == [1, 2]
        assert [step for step, _ in of["learning_curves"]["eval_loss"]["difference"]] == [1, 2]
        assert of["tokens_per_clip"] == 125
    # the mapper from 32 channels over 576 to 32, and the language model
    text = sum(p.numel() for p in small_model("mimi_full").language_model.parameters())
    assert comparison["arms"]["mimi_full"]["trained_parameters"] == 32 * 576 + 576 + 576 * 32 + 32 + text
    assert comparison["majority"]["question_type"] == {"mcq": group(2, 4), "yes_no": group(2, 4)}
    timings = json.loads((compared / "timings.json").read_text())
    assert set(timings["arms"]["text_only"]) == {"train", "evaluate"}
    assert "mimi_full" in (compared / "report.html").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_numbers_and_a_finished_arm_is_not_run_again(compared, parts, capsys):
    folder, config = parts
    second = folder / "second"
    options = ["--config", str(folder / "compare.yaml"), "--output_dir", str(second)]
    main(options)
    expected = (compared / "comparison.json").read_bytes()
    assert (second / "comparison.json").read_bytes() == expected
    out = capsys.readouterr().out
    assert out.count("small") == 2 and "[2/2] text_only: evaluating… (" in out and "accuracy by category" in out

    models = [second / arm / "model.safetensors" for arm in config["arms"]]
    before = [file.stat().st_mtime_ns for file in models]
    (second / "comparison.json").unlink()
    main(options)
    assert capsys.readouterr().out.count("not run again") == 2
    assert [file.stat().st_mtime_ns for file in models] == before
    assert (second / "comparison.json").read_bytes() == expected

    # the second arm's record says something else than today's options: that arm is run again, and only that one
    record = second / "text_only" / "arm.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "checkpoints": "others"}))
    main(options)
    after = [file.stat().st_mtime_ns for file in models]
    assert after[0] == before[0] and after[1] > before[1]
    assert (second / "comparison.json").read_bytes() == expected and "others" not in record.read_text()


def written(folder, config):
    (folder / "wrong.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "wrong.yaml"), "--output_dir", str(folder / "never")]


def test_wrong_configs_are_one_line(parts, tmp_path):
    folder, config = parts
    arms, one = config["arms"], config["arms"]["mimi_full"]
    wrongs = {
        "unknown keys sed; known are arms": {**config, "sed": 1},
        "`arms` names no arm": {**config, "arms": {}},
        "arm a lacks encoder_type": {**config, "arms": {"a": {}}},
        "arm '../a' cannot be a folder's name": {**config, "arms": {"../a": one}},
        "arm 'corpus' cannot be": {**config, "arms": {"corpus": one}},
        "arm b sets learning_rate; arms may differ in encoder_name_or_path, encoder_type, no_audio only": {
            **config, "arms": {**arms, "b": {**one, "learning_rate": 0.1}}},
        "train: unrecognized arguments: --learning_speed 1": {**config, "train": {**config["train"], "learning_speed": 1}},
        "eval: unrecognized arguments: --batch 1": {**config, "eval": {**config["eval"], "batch": 1}},
        "train: --encoder_type 'x' is none of": {**config, "arms": {"x": {"encoder_type": "x"}}},
        "train sets seed, which": {**config, "train": {**config["train"], "seed": 1}},
        "train sets audio_dir, train_file, validation_file": {**config, "corpus": {"rows": 8, "seed": 0}},
        "corpus takes rows and seed, not row": {**config, "corpus": {"row": 8}},
        "there is no file nowhere.json": {**config, "eval": {**config["eval"], "test_file": "nowhere.json"}},
        "eval is 3, not options": {**config, "eval": 3},
    }  # fmt: skip
    for message, wrong in wrongs.items():
        with pytest.raises(SystemExit) as error:
            main(written(folder, wrong))
        assert message in str(error.value) and str(error.value).startswith("run_compare.py: ")
        assert "\n" not in str(error.value)
    for text in ("a: [", "- a"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SystemExit, match=r"run_compare.py: --config .*c.yaml: "):
            main(["--config", str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit, match="No such file"):
        main(["--config", str(tmp_path / "none.yaml")])
    assert not (folder / "never").exists()


def test_flags_of_an_arm_with_a_corpus_of_its_own(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "corpus: {rows: 8, seed: 3}\narms: {a: {encoder_type: htsat, no_audio: true}}\n"
        "train: {freeze_lm: false, learning_rate: 1.0e-3, max_train_samples: null}\neval: {batch_size: 64}\noutput_dir: o\n"
    )
    config = read_config(str(tmp_path / "c.yaml"), seed=7)
    learn, answer = arm_flags(config, "a")
    assert learn == ["--encoder_type", "htsat", "--no_audio", "true", "--freeze_lm", "false", "--learning_rate", "0.001",
                     "--train_file", "o/corpus/train.json", "--validation_file", "o/corpus/val.json", "--audio_dir", "o/corpus",
                     "--output_dir", "o/a", "--seed", "7"]  # fmt: skip
    assert answer == ["--batch_size", "64", "--test_file", "o/corpus/test.json", "--audio_dir", "o/corpus",
                      "--model_name_or_path", "o/a", "--output_dir", "o/a/evaluation"]  # fmt: skip


def test_arms_are_not_pushed_from_a_comparison(tmp_path):
    arms = "arms: {a: {encoder_type: htsat}}\ntrain: {push_to_hub: true, hub_token: hf_secret}\n"
    (tmp_path / "c.yaml").write_text(arms)
    with pytest.raises(ValueError, match=r"train sets hub_token, push_to_hub; push an arm with run_train.py") as error:
        read_config(str(tmp_path / "c.yaml"))
    assert "hf_secret" not in str(error.value)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLAYWRIGHT = importlib.util.find_spec("playwright") is not None


@pytest.mark.skipif(not PLAYWRIGHT, reason="the package playwright is not installed (it is in the group dev)")
@pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(compared, scheme):
    from playwright.sync_api import sync_playwright

    wrong, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((compared / "report.html").as_uri())
        page.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)", timeout=30000)
        lengths = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
        assert len(lengths) == 13 and all(0.4 < seconds < 1.2 for seconds in lengths)  # of 10 rows 3 have two clips
        assert page.locator("article").count() == 10
        # two arms in two question types, one category or more, and over all
        marks = page.evaluate("[...document.querySelectorAll('#accuracy .mark > *')].map(m => m.getBoundingClientRect().width)")
        assert len(marks) >= 2 * 4 and all(5 < width < 20 for width in marks)
        lines = page.evaluate("[...document.querySelectorAll('polyline')].map(l => l.getBoundingClientRect().width)")
        assert len(lines) == 2 + 2 * 3 and all(width > 50 for width in lines)
        for width in (390, 1200):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "scroll" and dark == (scheme == "dark")
        browser.close()
    assert not wrong and all(url.startswith(("file:", "data:", "blob:")) for url in asked)


def test_the_experiments_config_is_the_experiment():
    """configs/compare.yaml: the three arms and the control, and run_train.py's defaults for all of them."""
    config = read_config(str(Path(__file__).parents[1] / "configs" / "compare.yaml"))
    assert list(config["arms"]) == ["htsat", "mimi_semantic", "mimi_full", "text_only"]
    for arm in config["arms"]:
        model, data, args = parse(arm_flags(config, arm)[0])
        assert (args.max_steps, args.learning_rate, data.max_audio_seconds) == (20_000, 1e-4, 10.0)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.n_gpu) == 16
        assert model.no_audio == (arm == "text_only") and model.freeze_lm
