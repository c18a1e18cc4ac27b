"""The report: positions of marks, examples, filters, escaping, and what the page says."""

import json
from html.parser import HTMLParser

import pytest
from support.comparisons import (
    LEARNING_CURVES,
    build_rows,
    build_run,
    compare_runs,
    render_report,
)

from audiolm.comparison.report.build import (
    accuracy_rows,
    evaluation_folders,
    pair_rows,
    plot_differences,
    write_report,
)
from audiolm.comparison.report.examples import browse_examples, build_filters, choose_examples
from audiolm.comparison.report.styles import MINUS, signed_points, signed_tick

BREAK_OUT = "</style></title>\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


# ------------------------------------------------------------------------------------------------
# Positions


@pytest.mark.parametrize(
    ("share", "text"), [(0.0123, "+1.2"), (-0.5, f"{MINUS}50.0"), (-1e-9, "+0.0")]
)
def test_signed_points_has_a_sign_and_one_digit(share, text):
    assert signed_points(share) == text


@pytest.mark.parametrize(("points", "text"), [(0, "0"), (2.5, "+2.5"), (-20.0, f"{MINUS}20")])
def test_signed_tick_is_short(points, text):
    assert signed_tick(points) == text


def difference(middle, low, high):
    return {"difference": middle, "ci95_low": low, "ci95_high": high}


def test_plot_differences_puts_zero_in_the_middle():
    rows = [
        {"name": "mcq", "lanes": [difference(0.1, -0.05, 0.155)]},
        {"name": "x", "lanes": [difference(0.0, -0.1, 0.1)]},
    ]
    plot = plot_differences(rows)
    assert plot["limit"] == 0.2
    assert [at for at, _ in plot["ticks"]] == [0, 25, 50, 75, 100]
    labels = [label.replace(MINUS, "-") for _, label in plot["ticks"]]
    assert labels == ["-20", "-10", "0", "+10", "+20"]


def test_plot_differences_of_nothing_has_an_axis_of_one_point():
    plot = plot_differences([])
    assert plot["rows"] == []
    assert plot["ticks"][-1] == (100, "+1")


@pytest.fixture(scope="module")
def rows(comparison):
    return {row["name"]: row for row in accuracy_rows(comparison)}


def test_accuracy_rows_start_with_the_primary_metric(rows):
    assert list(rows) == ["macro", "micro", "mcq", "yes_no", "sound event", "count"]


def test_accuracy_rows_show_means_over_seeds(rows):
    lanes = rows["mcq"]["lanes"]
    # 3 and 4 of 4 questions, 2 and 1, 1 and 1
    accuracies = {arm: lane["accuracy"] for arm, lane in lanes.items()}
    assert accuracies == {"htsat": 0.875, "mimi_full": 0.375, "text_only": 0.25}
    assert rows["mcq"]["cells"]["majority"]["accuracy"] == 0.5
    assert rows["macro"]["lanes"]["htsat"]["accuracy"] == pytest.approx((0.875 + 0.5) / 2)


def test_accuracy_rows_leave_out_controls_of_other_examples(rows):
    lanes = rows["mcq"]["lanes"]
    assert lanes["htsat"]["controls"] == {"noise": 0.25}
    assert lanes["text_only"]["controls"] == {}
    assert rows["macro"]["lanes"]["htsat"]["controls"] == {"noise": 0.125}
    assert rows["micro"]["lanes"]["htsat"]["controls"] == {}


def test_pair_rows_have_a_row_for_each_question_type(comparison):
    differences = {
        row["name"]: row["lanes"][0]["difference"] for row in pair_rows(comparison, "by_type")
    }
    assert differences == {"mcq": -0.5, "yes_no": 0.5}


# ------------------------------------------------------------------------------------------------
# Examples


@pytest.fixture
def rows_of_several_groups():
    groups = [
        ("mcq", "count", "0"),
        ("mcq", "count", "1"),
        ("mcq", "sound event", "0"),
        ("mcq", "sound event", "2"),
        ("difference", "comparison", "3"),
        ("mcq", "no category", "5"),
    ]
    return [
        {
            "question_type": question_type,
            "category": category,
            "filepath1": clip,
            "filepath2": "4" if question_type == "difference" else "",
        }
        for question_type, category, clip in groups
    ]


def test_choose_examples_does_not_repeat_clips(rows_of_several_groups):
    # The first example uses clip "0", so the second of the next category is taken.
    assert choose_examples(rows_of_several_groups, 3) == [0, 3, 4]


def test_choose_examples_of_all_orders_by_question_type(rows_of_several_groups):
    assert choose_examples(rows_of_several_groups, 10) == [0, 1, 2, 3, 5, 4]


@pytest.fixture(scope="module")
def examples(runs):
    return browse_examples(runs, None, 60)


def test_browse_examples_numbers_them_as_in_the_test_file(examples):
    assert [example["number"] for example in examples] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("htsat", {"correct": True, "option": "B) high", "correct_seeds": 2, "seeds": 2}),
        ("mimi_full", {"correct": False, "option": "A) low", "correct_seeds": 0, "seeds": 2}),
    ],
)
def test_browse_examples_has_the_answer_of_each_arm(examples, arm, expected):
    answer = examples[2]["answers"][arm]
    assert {name: answer[name] for name in expected} == expected


def test_browse_examples_has_the_probability_of_each_option(examples):
    low, high, neither = examples[2]["options"]
    assert [option["correct"] for option in (low, high, neither)] == [False, True, False]
    assert high["probabilities"]["htsat"] == pytest.approx(0.75)
    assert low["probabilities"]["htsat"] == pytest.approx(0.25)
    assert high["picked_by"] == ["htsat"]
    assert low["picked_by"] == ["mimi_full", "text_only"]
    assert neither["picked_by"] == []


def test_browse_examples_lists_protocols_and_controls(examples):
    conditions = examples[2]["conditions"]
    assert [(condition["kind"], condition["name"]) for condition in conditions] == [
        ("protocol", "likelihood"),
        ("protocol", "likelihood_normalised"),
        ("protocol", "generate"),
        ("control", "majority"),
        ("control", "noise"),
        ("control", "option_relabel"),
    ]
    noise, relabelled = (condition["cells"] for condition in conditions[4:])
    assert noise["htsat"]["parsed"] == "a"
    assert noise["text_only"]["parsed"] == "a"
    assert relabelled["text_only"] is None


def test_browse_examples_has_losses_of_open_questions(examples):
    losses = {"htsat": {"loss": 2.0}, "mimi_full": {"loss": 2.0}, "text_only": None}
    assert examples[6]["conditions"][1]["cells"] == losses


def test_browse_examples_has_every_clip_with_its_used_seconds(examples):
    assert len(examples[6]["clips"]) == 2
    clip = examples[7]["clips"][0]
    assert (clip["duration"], clip["used"]) == (1.6, 1.0)


def test_build_filters_has_groups_for_questions_and_arms(runs):
    examples = browse_examples(runs, None, 60)
    groups = build_filters(examples)
    titles = [group["title"] for group in groups]
    assert titles == ["question_type", "category", "htsat", "mimi_full", "text_only"]
    boxes = [(box["id"], box["label"], box["n"]) for box in groups[3]["boxes"]]
    assert boxes == [("f3-0", "correct", 4), ("f3-1", "wrong", 2)]
    assert examples[0]["classes"] == ["f0-0", "f1-0", "f2-0", "f3-0", "f4-0"]
    assert examples[7]["classes"][2:] == ["f2-none", "f3-none", "f4-none"]


# ------------------------------------------------------------------------------------------------
# The page as text


class Tags(HTMLParser):
    """Tags of a page, their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)

    @property
    def addresses(self):
        names = ("src", "href", "xlink:href", "action", "srcset")
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """A report where every name and text is an attempt to break out of it."""
    folder = tmp_path_factory.mktemp("hostile")
    evil = f"x{BREAK_OUT}"
    rows = build_rows("htsat")
    for row in rows:
        row |= {
            "filepath1": f"{row['filepath1']}{evil}",
            "category": evil,
            "answer": row["answer"] + evil,
            "input": evil if row["reference"] is None else row["input"].replace("low", evil),
        }
        for answer in row["answers"].values():
            answer |= {"text": evil} if "text" in answer else {}
    no_audio = {f"a{evil}": False, f"b{evil}": False, evil: True}
    runs = {
        arm: [build_run(folder / evil, "htsat", 0, value, rows)] for arm, value in no_audio.items()
    }
    comparison = compare_runs(runs, note=evil, command=evil)
    for results in comparison["arms"].values():
        results |= {"encoder_type": evil, "encoder_name_or_path": evil}
        results |= {"learning_curves": LEARNING_CURVES, "tokens_per_second": 12.5}
    comparison["caveats"] = [evil]
    accuracy = {"accuracy": 0.8125, "ci95_low": 0.7, "ci95_high": 0.9}
    comparison["probes"] = {
        evil: {
            "encoders": {evil: {}},
            "folds": {evil: {"test": 17}, "b": {"test": 3}},
            "results": {evil: {evil: accuracy}},
            "majority": {"accuracy": 0.1},
        }
    }
    # No clip exists, so that paths appear in error messages.
    return render_report(folder, comparison, runs, folder)


def test_report_of_hostile_texts_has_no_tag_that_runs_or_loads(hostile_page):
    tags = Tags(hostile_page)
    assert not tags.tags & {"script", "img", "iframe", "object", "embed", "base"}
    assert "<script" not in hostile_page
    assert hostile_page.count("<style>") == 1
    assert not [name for name, _ in tags.attributes if name.startswith("on")]


def test_report_of_hostile_texts_shows_them(hostile_page):
    assert "".join(Tags(hostile_page).text).count(BREAK_OUT) > 100


def test_report_of_hostile_texts_fetches_nothing(hostile_page):
    addresses = Tags(hostile_page).addresses
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http://" not in hostile_page
    assert "https://" not in hostile_page
    assert "default-src 'none'" in hostile_page
    assert "script-src" not in hostile_page


def test_report_of_hostile_texts_has_only_its_own_style(hostile_page):
    style = hostile_page[hostile_page.index("<style>") : hostile_page.index("</style>")]
    assert "alert" not in style
    assert "url(" not in style
    assert "@import" not in style


def test_report_of_probes_sums_the_test_clips_of_folds(hostile_page):
    text = " ".join(hostile_page.split()).replace(" <small>", "<small>")
    assert "<td>20</td>" in text
    assert "81.2<small>70.0 &ndash; 90.0" in text


def test_report_ids_are_unique(audio, comparison):
    page = (audio / "report.html").read_text(encoding="utf-8")
    ids = [value for name, value in Tags(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_report_links_lead_to_its_headings(audio, comparison):
    tags = Tags((audio / "report.html").read_text(encoding="utf-8"))
    ids = {value for name, value in tags.attributes if name == "id"}
    targets = {address.removeprefix("#") for address in tags.addresses if address[0] == "#"}
    assert targets <= ids


@pytest.fixture
def plain_comparison(comparison):
    """A comparison of evaluations whose models are not known, as from `--evaluations`."""
    plain = json.loads(json.dumps(comparison))
    for results in plain["arms"].values():
        for name in ("trained_parameters", "tokens_per_clip", "learning_curves"):
            del results[name]
    del plain["rows"]["train"]
    return plain


def test_report_without_audio_dir_has_no_players(plain_comparison, runs, tmp_path):
    page = render_report(tmp_path, plain_comparison, runs, None)
    assert "<audio" not in page
    assert "<image" not in page
    assert "no audio folder was given" in page
    assert "audio/3.flac" in page
    assert 'id="curves"' not in page


def test_report_of_missing_clips_says_so(plain_comparison, runs, tmp_path):
    page = render_report(tmp_path, plain_comparison, runs, tmp_path)
    assert "<audio" not in page
    assert page.count("Clip not available") == 9
    assert "file not found" in page


def test_report_of_a_broken_clip_says_why(plain_comparison, runs, tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "0.flac").write_bytes(b"no audio")
    page = render_report(tmp_path, plain_comparison, runs, tmp_path)
    assert "Clip not available: Error opening" in page


def test_report_of_a_clip_without_audio_directory_says_so(plain_comparison, runs, tmp_path):
    page = render_report(tmp_path, plain_comparison, runs, {"Clotho": str(tmp_path)})
    assert "no audio directory is given for" in page


def test_report_of_one_arm_compares_nothing(runs, audio, tmp_path):
    alone = {"htsat": runs["htsat"][:1]}
    page = render_report(tmp_path, compare_runs(alone), alone, audio)
    assert 'id="pairs"' not in page
    assert "Only the audio encoder differs" not in page
    assert "trained once with" in page


def test_report_of_open_questions_claims_nothing(runs, audio, tmp_path):
    open_runs = {
        arm: [build_run(audio, arm, rows=seeds[0].rows[6:])] for arm, seeds in runs.items()
    }
    page = render_report(tmp_path, compare_runs(open_runs), open_runs, audio)
    assert 'id="accuracy"' not in page
    assert 'id="open"' in page
    assert "makes no claim" in page
    assert "Calibration" not in page


def test_report_without_controls_and_texts_says_so(audio, tmp_path):
    rows = build_rows("htsat")
    for row in rows:
        row["controls"] = {}
        likelihood = {"likelihood": row["answers"].get("likelihood")}
        row["answers"] = likelihood if row["reference"] else {}
    bare = {arm: [build_run(audio, arm, rows=rows)] for arm in ("htsat", "mimi_full")}
    page = render_report(tmp_path, compare_runs(bare), bare, audio)
    assert "No control was run" in page
    assert 'id="protocols"' not in page
    assert "(no text was generated)" in page


def test_report_of_six_arms_has_a_lane_for_each(audio, tmp_path):
    six = {
        f"{arm}-of-a-rather-long-name-{number}": [build_run(audio, arm)]
        for number, arm in enumerate(["htsat", "mimi_full"] * 3)
    }
    comparison = compare_runs(six)
    assert len(accuracy_rows(comparison)[0]["lanes"]) == 6
    page = render_report(tmp_path, comparison, six, audio)
    assert all(arm in page for arm in six)


@pytest.mark.usefixtures("comparison")
def test_report_names_its_sources(audio):
    page = (audio / "report.html").read_text(encoding="utf-8")
    assert "seed 1: text_only/seed-1/evaluation" in page
    assert "run_compare.py --config x.yaml" in page


def test_evaluation_folders_are_relative_to_the_output(audio, runs):
    folders = evaluation_folders({"htsat": runs["htsat"]}, audio / "report")
    assert folders == {
        "htsat": [(0, "../htsat/seed-0/evaluation"), (1, "../htsat/seed-1/evaluation")]
    }


@pytest.mark.usefixtures("comparison")
def test_report_counts_the_examples_of_each_control(audio):
    page = " ".join((audio / "report.html").read_text(encoding="utf-8").split())
    # Accuracy with audio, majority, noise, relabelled options, same choice
    assert "<td>87.5</td>" in page
    assert "<td>25.0</td> <td>66.7<small>of 3 examples</small></td>" in page


def test_report_written_again_has_the_same_bytes(audio, comparison, runs):
    before = (audio / "report.html").read_bytes()
    write_report(audio / "report.html", comparison, runs, audio)
    assert (audio / "report.html").read_bytes() == before
