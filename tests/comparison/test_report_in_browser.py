"""The report in a browser: filters, players, positions of marks, keyboard, widths and themes."""

import numpy as np
import pytest
from support.comparisons import (
    CLIP_SECONDS,
    LEARNING_CURVES,
    QUESTIONS,
    VERDICTS,
    build_run,
    compare_runs,
)

from audiolm.comparison.report.build import (
    write_report,
)
from audiolm.data.clip_preview import BANDS


@pytest.fixture
def opened(browser, comparison, audio):
    """The report on a phone. Afterwards nothing may have been logged or fetched."""
    messages, addresses = [], []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto((audio / "report.html").as_uri())
    yield page
    page.close()
    assert not messages
    assert all(address.startswith(("file:", "data:", "blob:")) for address in addresses)


def shown_examples(page):
    ids = page.evaluate(
        "[...document.querySelectorAll('.example')].filter(r => r.offsetHeight).map(r => r.id)"
    )
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    spoken = "".join(
        node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "StaticText"
    )
    assert f"{len(ids)} of {len(QUESTIONS)} examples shown" in spoken
    return [int(name.removeprefix("example-")) for name in ids]


def check_box(page, group, name):
    page.get_by_role("group", name=group).get_by_role("checkbox", name=name).check()


def open_details(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def test_filters_combine_groups_without_script(opened):
    assert shown_examples(opened) == [1, 2, 3, 4, 5, 6, 7, 8]
    opened.get_by_role("checkbox", name="multiple choice").check()
    assert shown_examples(opened) == [1, 2, 3, 4]
    opened.get_by_role("checkbox", name="caption").check()
    assert shown_examples(opened) == [1, 2, 3, 4, 8]
    opened.get_by_role("checkbox", name="sound event").check()
    assert shown_examples(opened) == [2, 3]
    opened.get_by_role("button", name="Show all examples").click()
    assert shown_examples(opened) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("arm", VERDICTS)
def test_filters_of_an_arm_show_its_verdicts(opened, arm):
    check_box(opened, arm, "wrong")
    wrong = [number for number, verdict in enumerate(VERDICTS[arm][0], 1) if verdict == "0"]
    assert shown_examples(opened) == wrong
    check_box(opened, arm, "correct")
    # Open questions are neither correct nor wrong.
    assert shown_examples(opened) == [1, 2, 3, 4, 5, 6]


def test_filters_of_two_arms_show_where_they_disagree(opened):
    check_box(opened, "htsat", "correct")
    check_box(opened, "mimi_full", "wrong")
    assert shown_examples(opened) == [3]


def test_clips_have_their_used_length_and_play(opened):
    open_details(opened)
    lengths = opened.evaluate("""Promise.all(
        [...document.querySelectorAll('audio')].map(async audio => {
            while (audio.readyState < 1 && !audio.error)
                await new Promise(later => setTimeout(later, 20));
            return audio.duration; }))""")
    expected = []
    for *_, clips in QUESTIONS:
        expected += [min(1.0, CLIP_SECONDS[clip]) for clip in clips]
    assert len(lengths) == 9
    assert np.allclose(lengths, expected, atol=0.08)
    played = opened.evaluate("""(async audio => {
        const ended = new Promise(then => { audio.onended = then; });
        await audio.play(); await ended; return audio.currentTime;
        })(document.querySelector('audio'))""")
    assert played == pytest.approx(0.6, abs=0.08)


def test_spectrograms_are_drawn(opened):
    open_details(opened)
    sizes = opened.evaluate("""Promise.all(
        [...document.querySelectorAll('image')].map(async drawn => {
        const image = new Image(); image.src = drawn.getAttribute('href'); await image.decode();
        return [image.width, image.height, drawn.getBoundingClientRect().width]; }))""")
    assert len(sizes) == 9
    assert all(height == BANDS for _, height, _ in sizes)
    assert all(width > 5 for width, _, _ in sizes)
    assert all(shown_width > 200 for _, _, shown_width in sizes)


def test_marks_of_the_dot_plot_are_drawn(opened):
    widths = opened.locator("#dots .mark > *").evaluate_all(
        "marks => marks.map(mark => mark.getBoundingClientRect().width)"
    )
    # Three arms in two question types, two categories, macro and micro.
    assert len(widths) == 3 * 6
    assert all(5 < width < 20 for width in widths)


def test_learning_curves_are_drawn_in_the_colours_of_the_arms(opened):
    curves = opened.evaluate("""[...document.querySelectorAll('#curves ~ * .plot g')].filter(
        g => g.querySelector(':scope > title')).map(g => [g.querySelector('title').textContent,
        g.querySelector('path').getBoundingClientRect().width,
        getComputedStyle(g.querySelector('path')).stroke])""")
    titles = [f"{arm} 1.000" for arm in VERDICTS] + [f"{arm} 1.250" for arm in VERDICTS]
    assert [title for title, _, _ in curves] == titles
    assert all(width > 50 for _, width, _ in curves)
    colours = ["rgb(0, 114, 178)", "rgb(213, 94, 0)", "rgb(107, 112, 118)"]
    assert [colour for _, _, colour in curves] == colours * 2


def test_marks_in_the_browser_stand_at_their_accuracy(opened):
    position = """mark => {
        const plot = mark.closest('.row').querySelector('svg').getBoundingClientRect();
        const box = mark.getBoundingClientRect();
        return 100 * (box.x + box.width / 2 - plot.x) / plot.width; }"""
    row = opened.locator("#dots .row", has_text="multiple choice")
    positions = [mark.evaluate(position) for mark in row.locator(".mark > *").all()]
    assert np.allclose(positions, [87.5, 37.5, 25], atol=0.5)
    control = row.locator(".control > path").first
    assert abs(control.evaluate(position) - 25) < 0.5
    assert "noise: 25.0 %" in row.locator(".control title").first.text_content()
    label = row.get_by_role("img").first.get_attribute("aria-label")
    assert label.endswith("majority 50.0 %")


def test_bars_in_the_browser_have_the_length_of_their_probability(opened):
    open_details(opened)
    widths = "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    bars = opened.locator("#example-3 .bar .fill").evaluate_all(widths)
    tracks = opened.locator("#example-3 .bar .track").evaluate_all(widths)
    shares = [0.25, 0.75, 0.75, 0.75, 0.25, 0.25, 0, 0, 0]
    assert np.allclose(np.divide(bars, tracks), shares, atol=0.01)
    assert "correct in 2 of 2 seeds" in opened.locator("#example-3").inner_text()


def test_report_starts_with_the_conclusion(opened, comparison):
    text = opened.locator("main").inner_text()
    assert comparison["conclusion"] in text
    assert text.index(comparison["conclusion"]) < text.index("Accuracy")


@pytest.mark.parametrize("arm", VERDICTS)
def test_report_shows_accuracy_and_calibration_of_each_arm(opened, comparison, arm):
    results = comparison["arms"][arm]
    cards = opened.locator(".cards").inner_text()
    assert f"{100 * results['macro']['accuracy']:.1f}" in cards
    text = opened.locator("main").inner_text()
    assert f"ECE {100 * results['calibration']['ece']:.1f}, 12 answers" in text


@pytest.mark.parametrize(
    "text",
    [
        "the primary protocol",
        "greedy text, parsed",
        "0.111",
        "truncated",
        "Texts that contradict themselves",
    ],
)
def test_report_shows_protocols_text_metrics_and_truncation(opened, text):
    assert text in opened.locator("main").inner_text()


def test_report_is_usable_by_keyboard(opened):
    """Filters come before the examples, and whatever has the focus shows it."""
    reached = []
    for _ in range(300):
        opened.keyboard.press("Tab")
        name, is_visible = (
            opened.evaluate("""(() => { const focus = document.activeElement; return [
            focus.id || focus.tagName + '.' + (focus.closest('.example')?.id ?? ''),
            getComputedStyle(focus).outlineStyle != 'none']; })()""")
        )
        # A player shows the focus at its buttons.
        assert is_visible or name == "BODY." or name.startswith("AUDIO")
        reached.append(name)
        if name == "BODY.":
            break
        if name == "f2-1":
            opened.keyboard.press("Space")
            group = opened.get_by_role("group", name="htsat")
            assert group.get_by_role("checkbox", name="wrong").is_checked()
            assert shown_examples(opened) == [4, 6]
        if name == "BUTTON.":
            opened.keyboard.press("Enter")
            assert len(shown_examples(opened)) == 8
        if name == "SUMMARY.example-2":
            assert not opened.locator("#example-2").evaluate("example => example.open")
            opened.keyboard.press("Enter")
            assert opened.locator("#example-2").evaluate("example => example.open")
    expected = ["A.", "f0-0", "f2-1", "BUTTON.", "SUMMARY.example-1"]
    expected += ["AUDIO.example-2", "SUMMARY.example-8"]
    order = [reached.index(name) for name in expected]
    assert order == sorted(order)


@pytest.fixture(scope="module")
def wide_report(audio):
    """The report of five arms, one with a name that no phone can show in one line."""
    long = "an_arm_of_a_name_that_is_longer_than_a_phone_is_wide_and_has_no_blank"
    arms = zip([long, "b", "c", "d", "e"], ["htsat", "mimi_full"] * 3)
    many = {name: [build_run(audio, arm)] for name, arm in arms}
    comparison = compare_runs(many, note="n" * 100)
    for results in comparison["arms"].values():
        results |= {"learning_curves": LEARNING_CURVES, "tokens_per_second": 12.5}
    write_report(audio / "many.html", comparison, many, audio)
    return audio / "many.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.usefixtures("comparison")
def test_report_fits_every_width_in_both_themes(browser, audio, wide_report, scheme):
    page = browser.new_page(color_scheme=scheme)
    for file in (audio / "report.html", wide_report):
        page.goto(file.as_uri())
        open_details(page)
        for width in (320, 390, 1200):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(19, 21, 24)") == (scheme == "dark")
    page.close()
