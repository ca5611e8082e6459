"""From finished cells to figures."""

import pytest
from made_study import made_plan, made_study

from profit_sft.study.analysis import analyze, mean_curve, problem_accuracies
from profit_sft.study.results import read_results
from profit_sft.study.statistics import holm, paired_comparison

RATES = {"untrained": 0.1, "nll": 0.5, "dft": 0.25, "profit-t0.1": 0.85, "profit-t0.5": 0.5}


def analyzed(folder, plan, rates=RATES, **options):
    made_study(folder, plan, rates, **options)
    results = read_results(plan, folder)
    return results, analyze(plan, results)


def by_name(rows):
    return {(row.first, row.second): row for row in rows}


def test_one_row_a_variant_with_its_seeds(tmp_path):
    results, analysis = analyzed(tmp_path, made_plan(), skip=("dft-s2",), collapsed=("dft",))
    rows = {row.variant: row for row in analysis.rows}
    assert list(rows) == ["untrained", "nll", "dft", "profit-t0.1", "profit-t0.5"]
    assert (rows["dft"].seeds, rows["dft"].planned, rows["dft"].collapsed) == ((0, 1), 3, 2)
    assert rows["untrained"].seeds == (None,)
    assert rows["untrained"].kept_share is None
    score = rows["nll"].scores[0]
    assert score.mean == pytest.approx(sum(score.by_seed) / 3)
    assert score.low < score.mean < score.high
    assert 0.35 < score.mean < 0.6
    # made_study gives cell number i a held-out NLL of 0.5 + 0.01 i; the seeds of nll are cells 1, 5 and 7.
    assert rows["nll"].heldout_nll == pytest.approx(0.5 + 0.01 * (1 + 5 + 7) / 3)
    assert analysis.missing == ("dft-s2",)
    assert analysis.num_problems == {"generated": 120}
    assert len(results) == 9 - 1


def test_a_comparison_is_of_accuracies_averaged_over_seeds(tmp_path):
    results, analysis = analyzed(tmp_path, made_plan())
    row = by_name(analysis.comparisons)["dft", "nll"]
    of = {name: [result for result in results if result.cell.variant.name == name] for name in ("dft", "nll")}
    first, _ = problem_accuracies(of["dft"], "generated")
    second, _ = problem_accuracies(of["nll"], "generated")
    assert row.comparison == paired_comparison(first, second, strata=["generated"] * 120)
    assert {round(3 * score, 9) for score in first} == {0, 1, 2, 3}
    adjusted = holm([other.comparison.p_value for other in analysis.comparisons])
    assert [other.adjusted_p for other in analysis.comparisons] == adjusted
    assert row.adjusted_p > row.comparison.p_value
    assert (row.seeds.first_seeds, row.seeds.second_seeds, row.seeds.paired) == (3, 3, True)


def test_a_finding_on_the_methods_needs_problems_and_seeds(tmp_path):
    _, analysis = analyzed(tmp_path, made_plan())
    rows = by_name(analysis.comparisons)
    for row in (rows["dft", "nll"], rows["untrained", "nll"]):
        assert row.method_p == max(row.comparison.p_value, row.seeds.p_value)
    # Two of the four comparisons have two seeds or more on both sides, or the untrained model on one.
    tested = [row for row in analysis.comparisons if row.method_p is not None]
    assert [row.first for row in tested] == ["untrained", "dft"]
    assert [row.adjusted_method_p for row in tested] == holm([row.method_p for row in tested])
    assert rows["profit-t0.1", "nll"].adjusted_method_p is None


def test_a_comparison_is_of_the_seeds_that_both_have(tmp_path):
    results, analysis = analyzed(tmp_path, made_plan())
    rows = by_name(analysis.comparisons)
    scores = {result.cell.slug: result.accuracies["generated"] for result in results}
    one = paired_comparison(scores["profit-t0.1-s0"], scores["nll-s0"], strata=["generated"] * 120)
    assert rows["profit-t0.1", "nll"].comparison == one
    assert (rows["profit-t0.1", "nll"].seeds.first_seeds, rows["profit-t0.1", "nll"].seeds.second_seeds) == (1, 1)
    nll, _ = problem_accuracies([result for result in results if result.cell.variant.name == "nll"], "generated")
    against_untrained = paired_comparison(scores["untrained"], nll, strata=["generated"] * 120)
    assert rows["untrained", "nll"].comparison == against_untrained


def test_what_is_shown_of_each_comparison(tmp_path):
    plan = made_plan(comparisons=[["profit-t0.1", "profit-t0.5"]])
    _, analysis = analyzed(tmp_path, plan)
    rows = by_name(analysis.comparisons)
    assert list(rows) == [
        ("untrained", "nll"),
        ("dft", "nll"),
        ("profit-t0.1", "nll"),
        ("profit-t0.5", "nll"),
        ("profit-t0.1", "profit-t0.5"),
    ]
    assert rows["untrained", "nll"].shown == "worse"
    assert rows["dft", "nll"].shown == "worse"
    assert rows["profit-t0.1", "nll"].shown == "better here"
    assert rows["profit-t0.5", "nll"].shown == "no difference"


def test_without_an_evaluation_there_are_still_rows_and_curves(tmp_path):
    plan = made_plan(evaluate={})
    _, analysis = analyzed(tmp_path, plan)
    assert analysis.outcomes == ()
    assert analysis.comparisons == analysis.main_comparisons == ()
    assert analysis.rows[1].scores == ()
    assert len(analysis.rows[1].curves["nll"]) == 30


def test_several_tasks_are_averaged_first_and_all_are_corrected_together(tmp_path):
    plan = made_plan(evaluate={"tasks": ["gsm8k", "aime24"], "greedy": True})
    _, analysis = analyzed(tmp_path, plan)
    assert analysis.outcomes == ("average", "gsm8k", "aime24")
    assert len(analysis.comparisons) == 4 * 3
    assert [row.outcome for row in analysis.main_comparisons] == ["average"] * 4
    average, *tasks = analysis.rows[1].scores
    assert average.mean == pytest.approx(sum(task.mean for task in tasks) / 2)
    assert average.high - average.low < tasks[0].high - tasks[0].low


def test_models_are_compared_within_themselves(tmp_path):
    models = [{"model_name_or_path": "embedded", "name": name} for name in ("a", "b")]
    plan = made_plan(model_name_or_path=None, models=models)
    _, analysis = analyzed(tmp_path, plan)
    assert [(row.model, row.first) for row in analysis.comparisons[:5]] == [
        ("a", "untrained"),
        ("a", "dft"),
        ("a", "profit-t0.1"),
        ("a", "profit-t0.5"),
        ("b", "untrained"),
    ]


def test_curves_are_means_over_the_runs_that_have_the_step():
    logs = [[{"step": 1, "nll": 2.0}, {"step": 2, "nll": 1.0, "loss": 9.0}], [{"step": 1, "nll": 4.0}]]
    assert mean_curve(logs, "nll") == [[1, 3.0, 2.0, 4.0], [2, 1.0, 1.0, 1.0]]
    assert mean_curve(logs, "loss") == [[2, 9.0, 9.0, 9.0]]
