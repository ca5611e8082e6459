"""The page of a run in a real chromium, against the numbers it was made of."""

import json
import math
import re
from itertools import combinations

import pytest
from made_run import HOSTILE, made_rows, made_run

from profit_sft.errors import ConfigurationError
from profit_sft.pages.render import asset
from profit_sft.runs.page import write_run_page


@pytest.fixture
def opened(browser):
    """Open pages; at the end none may have complained or asked the network."""
    pages, complaints = [], []

    def open_page(path, **options):
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 900}, **options})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def test_one_run_shows_its_curves_marks_rows_and_figures(opened, tmp_path):
    folder = made_run(tmp_path / "first", warning="collapse: it rose")
    (folder / "rows.json").write_text(json.dumps(made_rows()))
    page = opened(write_run_page([folder]))
    assert page.locator("h1").inner_text() == "first"
    assert "Done: step 40 of 40" in page.locator(".lead").inner_text()
    assert "2 →" in page.locator(".tiles .card").first.inner_text()
    assert "1.6" in page.locator(".tiles .card").first.inner_text()
    assert page.locator("#curves figure").count() == 9
    assert page.locator("#more-curves figure h3").all_inner_texts()  # what is folded has titles too
    assert page.locator(".warned li").inner_text() == "step 10: collapse: it rose"
    first = page.locator("#curves figure").first
    assert first.locator(".warning").count() == first.locator(".checkpoint").count() == 1
    tokens = page.locator("#rows .t")
    assert tokens.all_inner_texts() == ["four", ".", "four", "."]
    assert [name.split()[1] for name in tokens.evaluate_all("all => all.map(one => one.className)")] == [
        *("w10", "w0"),
        *("w10", "w5"),
    ]
    assert "p 0.01 at the start, 0.25 at step 40; weight 0.5" in tokens.nth(3).get_attribute("title")
    assert "profit train 'a b'" in page.locator("pre").inner_text()


def test_all_charts_are_read_at_one_step_by_pointer_and_by_keys(opened, tmp_path):
    page = opened(write_run_page([made_run(tmp_path / "run")]))
    readings = page.locator("#curves .reading")
    page.locator("#curves .plot").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert readings.nth(0).inner_text() == "step 1: 2"
    assert readings.nth(1).inner_text() == "step 1: NLL, same rows 2 (step 0); NLL, batches 2.48"
    plot = page.locator("#curves .plot").nth(2)
    plot.hover(position={"x": plot.bounding_box()["width"] - 2, "y": 50})
    assert readings.nth(0).inner_text() == "step 40: 0.05"
    page.mouse.move(2, 2)
    assert readings.nth(0).inner_text() == ""


def test_smoothing_draws_another_line(opened, tmp_path):
    page = opened(write_run_page([made_run(tmp_path / "run")]))
    line = page.locator("#curves polyline").first
    before = line.get_attribute("points")
    page.check("input[value='0.93']", force=True)
    assert line.get_attribute("points") != before


def test_runs_side_by_side_differ_by_color_dash_and_marker_and_their_settings_are_told(opened, tmp_path):
    folders = [
        made_run(tmp_path / name, offset=index / 10, facts={"objective": objective})
        for index, (name, objective) in enumerate([("a", "NLL()"), ("b", "ProFit()"), ("c", "DFT()")])
    ]
    page = opened(write_run_page(folders))
    chart = page.locator("#curves svg").first
    assert [text.text_content() for text in chart.locator(".end").all()] == ["c", "b", "a"]  # highest first
    lines = chart.locator("polyline")
    looks = lines.evaluate_all(
        "all => all.map(one => { const s = getComputedStyle(one); return s.stroke + s.strokeDasharray })"
    )
    assert len(set(looks)) == 3
    markers = chart.locator("g").evaluate_all(
        "all => all.map(one => one.querySelector('.marker').getAttribute('d').split('m')[1])"
    )
    assert len(set(markers)) == 3
    assert "NLL()" in page.locator(".apart").inner_text()
    assert "train.jsonl" not in page.locator(".apart").inner_text()  # the same in all


def test_a_figure_that_is_not_finite_is_a_gap(opened, tmp_path):
    folder = made_run(
        tmp_path / "run", ended=False, logs=[{"step": 41, "loss": math.nan}, {"step": 42, "loss": math.inf}]
    )
    page = opened(write_run_page([folder]))
    page.locator("#curves .plot").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#curves .reading").first.inner_text() == "step 42: not finite"


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_cut_off_sideways_and_hostile_text_stays_text(opened, tmp_path, runs, width, theme):
    folders = [
        made_run(tmp_path / f"run{index}", warning=HOSTILE, facts={"data": HOSTILE, "model": f"m{index}" * 90})
        for index in range(runs)
    ]
    for folder in folders:
        (folder / "rows.json").write_text(json.dumps(made_rows(HOSTILE)))
    page = opened(write_run_page(folders), viewport={"width": width, "height": 900}, color_scheme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert HOSTILE.split("\x1b")[0].strip() in page.locator(".warned li").first.inner_text()
    assert page.locator("main img, main script").count() == 0


def test_a_run_that_goes_on_is_loaded_again_and_one_that_is_over_is_not(opened, tmp_path):
    page = opened(write_run_page([made_run(tmp_path / "on", ended=False)]))
    assert page.locator("#reload").is_checked()
    page.uncheck("#reload")
    page.reload()
    assert not page.locator("#reload").is_checked()
    page = opened(write_run_page([made_run(tmp_path / "over")]))
    assert page.locator("#reload").is_hidden()


def test_a_page_that_is_loaded_again_stands_as_it_was_left(opened, tmp_path):
    folder = made_run(tmp_path / "on", ended=False)
    (folder / "rows.json").write_text(json.dumps(made_rows()))
    page = opened(write_run_page([folder]))
    as_logged = page.locator("#curves polyline").first.get_attribute("points")
    page.uncheck("#reload")
    page.check("input[value='0.93']", force=True)
    page.click("#theme")
    for summary in page.locator("summary").all():
        summary.click()
    smooth = page.locator("#curves polyline").first.get_attribute("points")
    assert smooth != as_logged
    page.wait_for_function("/open=0.+1/.test(location.hash)")  # a browser tells of what was opened a moment later
    page.reload()
    assert not page.locator("#reload").is_checked()
    assert page.locator("input[value='0.93']").is_checked()
    assert page.locator("#curves polyline").first.get_attribute("points") == smooth
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.locator("details").count() == page.locator("details[open]").count() == 2


def test_what_a_broken_model_thought_of_a_row_is_not_finite(opened, tmp_path):
    folder = made_run(tmp_path / "run")
    rows = made_rows()
    rows["rows"][0]["now"] = {"p": [math.nan] * 4, "w": [0, 0, math.nan, math.nan], "nll": math.nan}
    (folder / "rows.json").write_text(json.dumps(rows))
    page = opened(write_run_page([folder]))
    assert "p 0.25 at the start, not finite at step 40; weight not finite" in [
        token.get_attribute("title") for token in page.locator("#rows .t").all()
    ]
    assert "At step 40: 0 of 2 label tokens have a weight, NLL not finite" in page.locator("#rows").inner_text()


@pytest.mark.parametrize(("text", "order"), [("שלום", -1), ("abcd", 1), ("\u202eabc", 1), ("a\u2067bc", 1)])
def test_a_row_runs_as_its_script_does_and_no_token_turns_its_neighbors(opened, tmp_path, text, order):
    folder = made_run(tmp_path / "run")
    rows = made_rows()
    rows["rows"][0] |= {
        "tokens": ["?", *text],
        **{side: {"p": [None, *[0.5] * 4], "w": [0, *[1] * 4], "nll": 0.7} for side in ("start", "now")},
    }
    (folder / "rows.json").write_text(json.dumps(rows))
    page = opened(write_run_page([folder]))
    places = [span.bounding_box()["x"] for span in page.locator("#rows .flow").first.locator(".t").all()]
    assert places == sorted(places, reverse=order < 0)
    assert places[0] != places[-1]


def test_more_runs_than_can_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="7 runs cannot be told apart on one page. Name 6 at most"):
        write_run_page([tmp_path] * 7)


# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
SEEN_BY = {
    "everybody": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(color):
    values = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def seen(color, matrix):
    return [sum(a * b for a, b in zip(row, linear(color), strict=True)) for row in matrix]


def lab(rgb):
    xyz = [
        sum(a * b for a, b in zip(row, rgb, strict=True))
        for row in ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    ]
    f = [
        max(0.0, v / n) ** (1 / 3) if v / n > 0.008856 else 7.787 * v / n + 16 / 116
        for v, n in zip(xyz, (0.9505, 1.0, 1.089), strict=True)
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_series_are_told_apart_under_color_blindness(theme, eyes):
    css = asset("charts.css")
    looks = re.findall(r"\.look-(\d) \{ --look: light-dark\((#\w{6}), (#\w{6})\)", css)
    assert len(looks) == 6
    colors = [lab(seen(look[1 + theme], SEEN_BY[eyes])) for look in looks]
    dashes = [re.search(rf"\.dash-{index} {{ stroke-dasharray: ([\d. ]+)", css) for index in range(6)]
    patterns = [found[1] if found else "solid" for found in dashes]
    assert len(set(patterns)) == 6
    # The first two share most charts: these must be far apart by color alone. Others have their dash and marker too.
    assert math.dist(colors[0], colors[1]) > 40
    assert min(math.dist(a, b) for a, b in combinations(colors, 2)) > 11


def test_a_figure_that_was_logged_once_has_no_before_and_after(opened, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "probe_nll": 2.5}\n{"step": 1, "loss": 3}\n{"step": 2, "loss": 1}\n'
    )
    page = opened(write_run_page([tmp_path]))
    assert [text.split("\n") for text in page.locator(".tiles .card").all_inner_texts()] == [
        ["NLL, same rows", "2.5"],
        ["loss", "3 → 1"],
    ]


def test_the_step_that_is_read_stays_marked_when_the_charts_are_drawn_again(opened, tmp_path):
    page = opened(write_run_page([made_run(tmp_path / "run")]))
    page.locator("#curves .plot").first.focus()
    page.keyboard.press("ArrowLeft")
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(300)
    assert page.locator("#curves .cursor:not(.hidden)").count() == 9
    assert page.locator("#curves .reading").first.inner_text() == "step 40: 0.05"
