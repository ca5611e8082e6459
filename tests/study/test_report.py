"""The report: what it says, that nothing in it depends on what the run cost, and how the page behaves in a browser."""

import json

import pytest
from made_study import made_plan, made_study

from profit_sft.study.report import write_report

RATES = {"untrained": 0.1, "nll": 0.5, "dft": 0.25, "profit-t0.1": 0.85, "profit-t0.5": 0.5}
COMMAND = "profit study some.yaml --output_dir out"


@pytest.fixture
def report(tmp_path):
    plan = made_plan()
    made_study(tmp_path, plan, RATES, collapsed=("profit-t0.5",), not_probed=("dft",), skip=("dft-s2",))
    write_report(plan, tmp_path, command=COMMAND)
    return tmp_path


def test_markdown_has_verdict_tables_limits_and_settings(report):
    text = (report / "report.md").read_text()
    assert text.startswith(
        "# made-up\n\nIs \\<b>profit\\</b> better & why?\n\n**Worse than nll, over seeds and problems: dft.**\n"
    )
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["nll"].count("|") == rows["variant"].count("|")
    assert "2 of 3" in text
    assert "| profit-t0.5 | 1 of 1 |" in text
    assert "| 1 of 1 |\n" in text, "the collapse flag"
    assert "- profit-t0.5-s0: collapse: plain NLL of the reference rose" in text
    assert "Not looked at, for want of a probe in their logs: dft-s0, dft-s1.\n" in text
    assert "for want of a probe in their logs: dft-s0, dft-s1." in (report / "report.html").read_text()
    assert "no difference shown between profit-t0.5 and nll" in text
    assert "\n- profit-t0.1 80.8% [72.6 to 87.4], NLL 0.530, nll " in text
    assert "What this cannot show" in text
    assert f"    {COMMAND}" in text
    assert "python 3.12.1, torch 2.9.0, trl 1.16.0" in text
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if lines[0].startswith("| "):
            assert len({line.count("|") for line in lines}) == 1, f"ragged table: {block[:200]}"


def test_json_holds_every_figure(report):
    found = json.loads((report / "results.json").read_text())
    assert found["missing"] == ["dft-s2"]
    assert found["comparisons"][1]["first"] == "dft"
    assert 0 < found["comparisons"][1]["adjusted_p"] < 0.05
    assert found["comparisons"][1]["method_p"] <= found["comparisons"][1]["adjusted_method_p"] < 0.05
    assert found["comparisons"][1]["shown"] == "worse"
    assert found["headline"][0] == "Worse than nll, over seeds and problems: dft."
    assert found["cost"]["cells"][1]["tokens_per_second"] == round(16000 / 120)


def test_two_runs_give_the_same_report_up_to_their_cost(report, tmp_path_factory):
    plan, again = made_plan(), tmp_path_factory.mktemp("again")
    made_study(again, plan, RATES, collapsed=("profit-t0.5",), not_probed=("dft",), skip=("dft-s2",), attempts=3)
    write_report(plan, again, command=COMMAND)

    def without_cost(folder):
        text = (folder / "report.md").read_text()
        return text[: text.index("## Cost")], {
            name: value for name, value in json.loads((folder / "results.json").read_text()).items() if name != "cost"
        }

    assert without_cost(again) == without_cost(report)
    assert (again / "report.md").read_text() != (report / "report.md").read_text()


def test_several_models_get_a_column(tmp_path):
    models = [{"model_name_or_path": "embedded", "name": name} for name in ("small", "large")]
    plan = made_plan(model_name_or_path=None, models=models)
    made_study(tmp_path, plan, RATES)
    write_report(plan, tmp_path, command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "| large | profit-t0.1 |" in text
    assert '<select id="model">' in (tmp_path / "report.html").read_text()


def test_a_study_without_evaluation_or_a_finished_baseline_still_has_a_report(tmp_path):
    plan = made_plan(evaluate={}, heldout_dataset_name=None)
    made_study(tmp_path, plan, RATES, skip=("nll-s0", "nll-s1", "nll-s2"))
    write_report(plan, tmp_path, command=COMMAND)
    assert "There is nothing to compare yet" in (tmp_path / "report.html").read_text()


@pytest.fixture
def page(browser, report):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
    page.goto(f"file://{report}/report.html")
    yield page
    page.close()
    assert problems == []


@pytest.mark.slow
def test_the_page_draws_every_comparison_and_curve(page):
    assert page.locator("#forest circle").count() == 4
    assert page.locator("#forest .shown circle").count() == 2, "untrained and dft; one seed of profit is hollow"
    assert page.locator("#curves svg").count() == 4
    assert page.locator("#curves figure").first.locator("polyline").count() == 4
    assert page.get_by_text("Is <b>profit</b> better & why?").is_visible()
    page.get_by_role("button", name="dft").click()
    assert page.locator("#curves figure").first.locator("polyline").count() == 3
    page.get_by_role("button", name="dft").click()
    assert page.locator("#curves figure").first.locator("polyline").count() == 4
    page.locator("#curves figure svg").first.hover()
    assert "step" in page.locator("#curves .reading").first.inner_text()


@pytest.mark.slow
def test_the_page_fits_a_phone_and_both_themes(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
