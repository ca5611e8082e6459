"""Accuracies by token budget in a study: the curves, where a difference goes away, and how the report shows it."""

import json

import numpy as np
import pytest
from made_study import made_plan, made_study

from profit_sft.errors import DataError
from profit_sft.evaluation.budgets import BudgetTable, budget_file, write_budgets
from profit_sft.evaluation.results import BudgetRow
from profit_sft.evaluation.statistics import estimate_mean
from profit_sft.study.budgets import BudgetPoint, findings_by_budget, where_it_goes_away
from profit_sft.study.layout import StudyFolder
from profit_sft.study.report import write_report
from profit_sft.study.results import read_results

RATES = {"untrained": 0.1, "nll": 0.5, "dft": 0.5, "profit-t0.1": 0.5, "profit-t0.5": 0.5}
LONG_ANSWERS = ("nll",)  # of which a small budget cuts most
BUDGETS = (128, 256, 512)


def at(budget, mean, half=0.05):
    return BudgetPoint(budget=budget, mean=mean, low=mean - half, high=mean + half, truncated_share=None)


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((0.2, 0.1, 0.01), "+10.0 points (+5.0 to +15.0) at 256 tokens; the difference goes away at a larger budget, "),
        ((-0.2, 0.0, 0.01), "-20.0 points (-25.0 to -15.0) at 128 tokens"),
        ((0.2, 0.2, 0.2), None),  # it stays
        ((0.01, 0.0, 0.01), None),  # it never was
        ((0.2, 0.0, 0.2), None),  # it comes back
    ],
)
def test_a_difference_goes_away_where_no_later_interval_excludes_zero(means, expected):
    points = [at(budget, mean) for budget, mean in zip(BUDGETS, means, strict=True)]
    found = where_it_goes_away(points, first="dft", second="nll", task="gsm8k")
    if expected is None:
        assert found is None
    else:
        assert found.startswith(f"dft against nll on gsm8k: {expected}")


def give_budgets(folder, plan, *, skip=(), problems=120):
    """Give each cell accuracies by budget, of which the last are those it has."""
    for cell in plan.cells:
        files = StudyFolder(folder).cell(cell.slug)
        if cell.slug in skip:
            continue
        lines = (files.evaluation / "samples" / "generated.jsonl").read_text().splitlines()
        whole = np.array([float(json.loads(line)["correct"]) for line in lines])
        accuracies, rows = {}, []
        for budget in BUDGETS:
            cut = budget < 512 and cell.variant.name in LONG_ANSWERS
            accuracies[budget] = list(whole * (np.arange(problems) % 8 == 0) if cut else whole)
            accuracy = estimate_mean([[grade] for grade in accuracies[budget]])
            rows.append(BudgetRow(budget=budget, truncated_share=0.875 if cut else 0.0, accuracy=accuracy))
        table = BudgetTable(rows=tuple(rows), accuracies=accuracies, inexact_cut_share=0.0)
        write_budgets(budget_file(files.evaluation, "generated"), table)


@pytest.fixture
def study(tmp_path):
    plan = made_plan()
    made_study(tmp_path, plan, RATES)
    give_budgets(tmp_path, plan)
    return plan, tmp_path


def test_curves_and_differences(study):
    plan, folder = study
    found = findings_by_budget(plan, read_results(plan, folder))
    curves = {curve.variant: curve.points for curve in found.curves}
    assert [point.budget for point in curves["nll"]] == list(BUDGETS)
    assert [point.truncated_share for point in curves["nll"]] == [0.875, 0.875, 0.0]
    assert curves["nll"][0].mean < 0.1 < 0.3 < curves["nll"][2].mean
    assert curves["nll"][2].low < curves["nll"][2].mean < curves["nll"][2].high
    dft = next(row for row in found.comparisons if row.first == "dft")
    assert dft.points[0].low > 0.2
    assert dft.points[2].low < 0 < dft.points[2].high
    assert dft.points[0].mean == pytest.approx(curves["dft"][0].mean - curves["nll"][0].mean)
    assert "at 256 tokens; the difference goes away at a larger budget" in dft.sentence
    assert len(found.sentences) == 3  # dft and both of profit; the untrained model stays worse


def test_the_report_shows_them(study):
    plan, folder = study
    write_report(plan, folder, command="profit study x.yaml")
    text = (folder / "report.md").read_text()
    section = text[text.index("## By token budget") : text.index("## What this cannot show")]
    assert "- dft against nll on generated: " in section
    head = "| variant, on generated | 128 tokens | 256 tokens | 512 tokens | \n|---|---|---|---|\n| untrained | "
    assert head in section
    assert section.count(", 88% |") == 2
    page = (folder / "report.html").read_text()
    assert 'id="budgets"' in page
    assert "88% cut off" in page
    figures = json.loads((folder / "results.json").read_text())["by_budget"]
    assert [point["budget"] for point in figures["curves"][0]["points"]] == list(BUDGETS)


def test_a_task_that_some_cell_lacks_is_left_out(tmp_path):
    plan = made_plan()
    made_study(tmp_path, plan, RATES)
    give_budgets(tmp_path, plan, skip=("dft-s1",))
    assert findings_by_budget(plan, read_results(plan, tmp_path)).curves == ()
    write_report(plan, tmp_path, command="profit study x.yaml")
    assert "By token budget" not in (tmp_path / "report.md").read_text()
    assert 'id="budgets"' not in (tmp_path / "report.html").read_text()


def test_a_file_that_cannot_be_read_is_named(study):
    plan, folder = study
    path = budget_file(StudyFolder(folder).cell("dft-s1").evaluation, "generated")
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"by_budget/generated.jsonl cannot be read.*Delete it"):
        read_results(plan, folder)


@pytest.mark.slow
def test_the_page_draws_a_curve_of_each_variant(study, browser):
    plan, folder = study
    write_report(plan, folder, command="profit study x.yaml")
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{folder}/report.html")
    assert page.locator("#budgets polyline").count() == 5
    assert page.locator("#curves svg").count() == 4
    assert "512" in page.locator("#budgets svg text").all_text_contents()
    assert page.locator("#budgets .band").count() == 5, "intervals over problems"
    page.locator("#budgets svg").first.hover()
    assert " tokens: " in page.locator("#budgets .reading").first.inner_text()
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
    assert errors == []
