"""The report: what it says, that nothing in it depends on what the run cost, and how the page behaves in a browser."""

import itertools
import json
import re

import pytest
from made_study import made_plan, made_study

from color_vision import SIGHTS, contrast, difference
from profit_sft.study.report import _DASH, shade, write_report

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
        "# made-up\n\nIs \\<b>profit\\</b> better & why?\n\n"
        "**Worse than nll, 39.7% (31.3 to 48.6), over seeds and problems: dft 17."
    )
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["nll"].count("|") == rows["variant"].count("|")
    assert "2 of 3" in text
    assert "| profit-t0.5 | 1 of 1 |" in text
    assert "| 1 of 1 |\n" in text, "the collapse flag"
    assert "\n| profit-t0.5-s0 | 10 | 2.500 to 3.000 | 0.500 (0.020) | 2.500 to " in text
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
    assert found["headline"][0].startswith("Worse than nll, 39.7% (31.3 to 48.6), over seeds and problems: dft 17.")
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


@pytest.fixture
def two_models(tmp_path):
    models = [{"model_name_or_path": "embedded", "name": name} for name in ("small", "large", "unfinished")]
    plan = made_plan(model_name_or_path=None, models=models)
    unfinished = [cell.slug for cell in plan.cells if cell.model.name == "unfinished"]
    made_study(tmp_path, plan, RATES, skip=(*unfinished, "large.profit-t0.5-s0"))
    write_report(plan, tmp_path, command=COMMAND)
    return tmp_path


def test_a_map_has_the_difference_of_each_variant_from_the_baseline_model_by_model(two_models):
    text = (two_models / "report.md").read_text()
    rows = text[text.index("\n| variant | small") :].strip().split("\n\n")[0].splitlines()
    assert rows[0] == "| variant | small, 5.8% | large, 6.7% |", "in the plan's order, with the score before training"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| dft", "| profit-t0.1", "| profit-t0.5"]
    found = json.loads((two_models / "results.json").read_text())["comparisons"]
    row = next(row for row in found if (row["model"], row["first"]) == ("large", "dft"))
    difference, low, high = (100 * row["comparison"][name] for name in ("difference", "low", "high"))
    assert rows[2].endswith(f" | {difference:+.1f} ({low:+.1f} to {high:+.1f}), worse |")
    assert ", better, these models | " in rows[3], "one seed"
    assert ", not shown |  |" in rows[4], "not finished"


def test_one_model_with_comparisons_has_no_map(tmp_path, report):
    models = [{"model_name_or_path": "embedded", "name": name} for name in ("small", "large")]
    plan = made_plan(model_name_or_path=None, models=models)
    made_study(tmp_path, plan, RATES, skip=[cell.slug for cell in plan.cells if cell.slug.startswith("large.nll")])
    write_report(plan, tmp_path, command=COMMAND)
    for folder in (tmp_path, report):
        assert "model by model" not in (folder / "report.md").read_text()
        assert 'id="models"' not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("points", "look"),
    [(0, "same"), (-0.9, "same"), (1, "ahead1"), (-14.9, "behind2"), (15, "ahead3"), (-40, "behind4")],
)
def test_the_color_of_a_map_is_that_of_sign_and_size(points, look):
    assert shade(points / 100) == look


TUNE = {"learning_rate": [1e-5, 1e-4, 1e-3], "evaluate": {"tasks": ["gsm8k"]}}
TRIED = {
    "nll-lr1e-05-s0-try": 0.2,
    "nll-lr0.0001-s0-try": 0.4,
    "nll-lr0.001-s0-try": 0.3,
    "dft-lr1e-05-s0-try": 0.1,
    "dft-lr0.0001-s0-try": 0.25,
    "dft-lr0.001-s0-try": 0.5,
}


def test_values_tried_are_told_and_enter_nothing_else(tmp_path):
    cells = [{"objective": ["nll", "dft"], "seed": [0, 1, 2]}]
    tuned, plain = made_plan(cells=cells, tune=TUNE), made_plan(cells=cells)
    ran_at = {
        cell.slug: {"learning_rate": 1e-4 if cell.variant.name == "nll" else 1e-3} for cell in tuned.cells[1:]
    } | {"nll-s2": {"learning_rate": 1e-5}}
    made_study(tmp_path, tuned, RATES | TRIED)
    write_report(plain, tmp_path, command=COMMAND)
    without = json.loads((tmp_path / "results.json").read_text())
    made_study(tmp_path, tuned, RATES | TRIED, ran_at=ran_at)
    write_report(tuned, tmp_path, command=COMMAND)
    found, text = json.loads((tmp_path / "results.json").read_text()), (tmp_path / "report.md").read_text()
    for name in without.keys() - {"tuning", "cost"}:
        assert found[name] == without[name], name
    assert without["tuning"] is None
    assert [cost["cell"] for cost in found["cost"]["cells"]] == [cell.slug for cell in tuned.runs]
    assert found["tuning"]["rows"][1] == {
        "model": "embedded",
        "variant": "dft",
        "accuracies": {"1e-05": 0.1, "0.0001": 0.25, "0.001": 0.5},
        "chosen": 0.001,
    }
    page = (tmp_path / "report.html").read_text()
    assert "## Values tried of learning_rate" in text
    assert "| variant | 1e-05 | 0.0001 | 0.001 | chosen |" in text
    assert "| nll | 20.0% | 40.0% | 30.0% | 0.0001 |" in text
    assert "<b>40.0%</b>" in page
    for said in (
        "The best learning_rate is the largest of those tried, 0.001, for dft: a larger one may be better. ",
        "nll-s2 was run with learning_rate = 1e-05, though 0.0001 is the best of those tried now.",
    ):
        assert said in text
        assert said in page
    assert text.count(" was run with learning_rate") == 1
    assert "is the smallest of those tried" not in text


def test_a_random_mask_of_a_variant_that_has_run_again_is_told(tmp_path):
    like = {"objective": "profit", "direction": "random", "kept_share_of": "nll", "seed": [0, 1]}
    plan = made_plan(cells=[{"objective": "nll", "seed": [0, 1]}, like], tune=TUNE)
    tried = {cell.slug: 0.3 for cell in plan.tries}
    made_study(tmp_path, plan, RATES | tried | {"random-as-nll": 0.4})
    for slug, rate in (("random-as-nll-lr1e-05-s0-try", 1.0), ("random-as-nll-s0", 1.0), ("random-as-nll-s1", 0.8)):
        path = tmp_path / "cells" / slug / "cell.json"
        summary = json.loads(path.read_text())
        summary["training"]["rate"] = rate
        path.write_text(json.dumps(summary))
    write_report(plan, tmp_path, command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "random-as-nll-s1 was run at rate 0.8, the kept share of nll-s1, which has been run again since" in text
    assert text.count(" was run at rate ") == 1, "nll keeps all"


def test_of_several_seeds_the_mean_is_told(tmp_path):
    plan = made_plan(cells=[{"objective": "nll"}], tune=TUNE | {"seed": [0, 4]})
    second = {"nll-lr1e-05-s4-try": 0.5, "nll-lr0.0001-s4-try": 0.1, "nll-lr0.001-s4-try": 0.2}
    made_study(tmp_path, plan, RATES | TRIED | second, skip=("nll-s0",))
    write_report(plan, tmp_path, command=COMMAND)
    text, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "| nll | 35.0% | 25.0% | 25.0% | 1e-05 |" in text
    assert "with seeds 0, 4" in text
    assert "with seeds 0, 4" in page
    made_study(tmp_path / "half", plan, RATES | TRIED | second, skip=("nll-s0", "nll-lr0.001-s4-try"))
    write_report(plan, tmp_path / "half", command=COMMAND)
    assert f"| nll | 35.0% | 25.0% | {_DASH} | {_DASH} |" in (tmp_path / "half" / "report.md").read_text()


def test_before_the_tries_are_finished_nothing_is_chosen(tmp_path):
    plan = made_plan(cells=[{"objective": ["nll", "dft"]}], tune=TUNE)
    made_study(tmp_path, plan, RATES | TRIED, skip=("nll-lr0.0001-s0-try", *(cell.slug for cell in plan.cells)))
    write_report(plan, tmp_path, command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert f"| nll | 20.0% | {_DASH} | 30.0% | {_DASH} |" in text
    assert "| dft | 10.0% | 25.0% | 50.0% | 0.001 |" in text
    assert text.count("may be better") == 1, "of dft, whose tries are finished"
    without_tasks = made_plan(cells=[{"objective": "nll"}], tune=TUNE | {"evaluate": {"greedy": True}})
    write_report(without_tasks, tmp_path / "empty", command=COMMAND)  # --report_only runs nothing that would refuse it
    write_report(made_plan(), tmp_path, command=COMMAND)
    assert "Values tried" not in (tmp_path / "report.html").read_text()


def test_a_study_without_evaluation_or_a_finished_baseline_still_has_a_report(tmp_path):
    plan = made_plan(evaluate={}, heldout_dataset_name=None)
    made_study(tmp_path, plan, RATES, skip=("nll-s0", "nll-s1", "nll-s2"))
    write_report(plan, tmp_path, command=COMMAND)
    assert "There is nothing to compare yet" in (tmp_path / "report.html").read_text()


@pytest.fixture
def open_page(browser):
    """Call it for the page in a folder; a request or an error of any page fails the test."""
    pages, problems = [], []

    def open_report(folder):
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
        page.goto(f"file://{folder}/report.html")
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.close()
    assert problems == []


@pytest.fixture
def page(open_page, report):
    return open_page(report)


@pytest.mark.slow
def test_the_page_draws_every_comparison_and_curve(page):
    assert page.locator("#forest circle").count() == 4
    assert page.locator("#forest .shown circle").count() == 2, "untrained and dft; one seed of profit is hollow"
    names = page.locator("#forest .name").all_text_contents()
    assert names == ["profit-t0.1", "profit-t0.5", "dft", "untrained"], "best first"
    assert page.locator(".scores tbody th").all_text_contents()[0] == "profit-t0.1"
    first = page.locator("#curves figure").first
    assert page.locator("#curves svg").count() == 4
    assert first.locator("polyline").count() == 4
    assert first.locator("text.end").all_text_contents() == ["profit-t0.5", "nll", "dft", "profit-t0.1"]
    assert first.get_by_text("optimizer step", exact=True).count() == 1
    assert page.get_by_text("Is <b>profit</b> better & why?").is_visible()
    page.get_by_role("button", name="dft").click()
    assert first.locator("polyline").count() == 3
    page.get_by_role("button", name="dft").click()
    assert first.locator("polyline").count() == 4
    first.locator("svg").hover()
    assert page.locator("#curves .reading").first.inner_text().startswith("step ")


@pytest.mark.slow
def test_the_page_fits_a_phone_and_both_themes(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    columns = page.locator(".scores tbody tr").nth(1).locator("td:not(:empty)")
    for box in (columns.nth(index).bounding_box() for index in range(columns.count())):
        assert 0 <= box["x"] <= 360 - box["width"], "no column lies out of sight"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1100])
def test_names_of_any_length_need_no_sideways_scrolling(open_page, tmp_path, width):
    name = "profit_threshold_0.1_reference_scores_of_the_untrained_model"
    cells = [{"objective": "nll", "seed": [0, 1]}, {"objective": "profit", "name": name, "seed": [0, 1]}]
    models = [{"model_name_or_path": "embedded", "name": short} for short in ("small", f"a{name}")]
    plan = made_plan(model_name_or_path=None, models=models, cells=cells, question=f"{name}?" * 9)
    made_study(tmp_path, plan, RATES | {name: 0.8}, collapsed=(name,), not_probed=("nll",))
    write_report(plan, tmp_path, command=COMMAND)
    page = open_page(tmp_path)
    page.set_viewport_size({"width": width, "height": 740})
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [label.bounding_box() for label in page.locator("#forest text").all()]
    assert all(0 <= box["x"] <= width - box["width"] for box in boxes)


def test_answers_are_shown_where_one_variant_said_nothing_and_not_where_none_did(tmp_path):
    plan = made_plan(cells=[{"objective": ["nll", "dft"], "seed": [0]}])
    made_study(tmp_path, plan, RATES)

    def shown():
        write_report(plan, tmp_path, command=COMMAND)
        content = (tmp_path / "report.html").read_text().split('id="data">')[1].split("</script>")[0]
        (model,) = json.loads(content)["models"]
        return [[text for _, _, text in task["problems"][0]["answers"]] for task in model["answers"]]

    assert shown() == [[f"<b>0</b> of {name}" for name in ("untrained", "nll", "dft")]]
    for cells, left in (("untrained", [["", "<b>0</b> of nll", "<b>0</b> of dft"]]), ("[nd]*", [])):
        for path in tmp_path.glob(f"cells/{cells}/**/samples/generated.jsonl"):
            path.write_text(re.sub(r'"answer": "[^"]*"', '"answer": ""', path.read_text()))
        assert shown() == left


@pytest.mark.slow
def test_answers_are_found_by_who_is_right(page):
    def shown(**filters):
        for name, value in filters.items():
            choice = page.locator(f"#filters [name={name}]")
            choice.fill(value) if name == "text" else choice.select_option(value)
        return page.locator("#count").inner_text()

    assert shown() == "120 of 120 problems; 20 shown"
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#problems .problem").count() == 40
    found = shown(first="nll", first_is="wrong", second="profit-t0.1", second_is="right")
    count = int(found.split()[0])
    assert 30 < count < 80, "about 43% are right by one alone"
    grades = page.locator("#problems .problem").first.locator("tr")
    assert grades.filter(has_text="profit-t0.1").locator(".grade").inner_text() == "right"
    assert grades.filter(has=page.get_by_text("nll", exact=True)).locator(".grade").inner_text() in (
        "wrong",
        "33% right",
    )
    assert (
        shown(first_is="right or wrong", second_is="right or wrong", text="question 17?")
        == "1 of 120 problems; 1 shown"
    )
    assert "<b>17</b> of nll" in page.locator("#problems .answer").all_inner_texts()


@pytest.mark.slow
def test_the_map_is_a_table_framed_where_shown_and_fits_a_phone(open_page, two_models):
    page = open_page(two_models)
    grid = page.get_by_role("figure", name="Difference from nll, model by model")
    grid.focus()
    assert page.evaluate("document.activeElement.matches('#models figure')"), "scrolled by keys where it is wide"
    assert grid.get_by_role("columnheader").all_inner_texts() == ["small\n5.8% untrained", "large\n6.7% untrained"]
    assert grid.get_by_role("rowheader").all_inner_texts() == ["dft", "profit-t0.1", "profit-t0.5"]
    cell = grid.get_by_role("row", name="dft").get_by_role("cell").last
    assert re.fullmatch(r"-\d+\.\d -\d+\.\d to -\d+\.\d, worse", cell.text_content())
    looks = [cell.get_attribute("class") for cell in grid.locator("tbody td").all()]
    assert looks == ["behind3 shown", "behind3 shown", *["ahead4 here"] * 2, looks[4], ""]
    assert not looks[4].endswith(("shown", "here"))
    for width in (1100, 360):
        page.set_viewport_size({"width": width, "height": 740})
        for box in (cell.bounding_box() for cell in grid.locator("tbody td").all()):
            assert 0 <= box["x"] <= width - box["width"], "no cell lies out of sight"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colors_of_the_map_can_be_read_and_told_apart_by_all(open_page, two_models, theme):
    page = open_page(two_models)
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    colors = page.locator(".map.legend span").evaluate_all(
        """spans => spans.map((span) => {
            const paper = new OffscreenCanvas(1, 1).getContext("2d");
            return ["backgroundColor", "color"].map((name) => {
                paper.fillStyle = getComputedStyle(span)[name];
                paper.fillRect(0, 0, 1, 1);
                return [...paper.getImageData(0, 0, 1, 1).data].slice(0, 3);
            });
        })"""
    )
    assert len(colors) == 9
    for fill, ink in colors:
        assert contrast(fill, ink) >= 4.5
    fills = [fill for fill, _ in colors]
    for sight in SIGHTS:
        for behind, ahead in zip(fills[:4], reversed(fills), strict=False):
            assert difference(behind, ahead, sight) > 8, "2.3 is just noticeable"
        for one, other in itertools.pairwise(fills):
            assert difference(one, other, sight) > 4
