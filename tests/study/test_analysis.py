"""From finished cells to figures and words."""

import pytest
from made_study import made_plan, made_study

from profit_sft.study.analysis import analyze, headline, limits, mean_curve, problem_scores
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


def test_a_comparison_is_of_scores_averaged_over_seeds(tmp_path):
    results, analysis = analyzed(tmp_path, made_plan())
    row = by_name(analysis.comparisons)["dft", "nll"]
    of = {name: [result for result in results if result.cell.variant.name == name] for name in ("dft", "nll")}
    first, _ = problem_scores(of["dft"], "generated")
    second, _ = problem_scores(of["nll"], "generated")
    assert row.comparison == paired_comparison(first, second, strata=["generated"] * 120)
    assert {round(3 * score, 9) for score in first} == {0, 1, 2, 3}
    adjusted = holm([other.comparison.p_value for other in analysis.comparisons])
    assert [other.adjusted_p for other in analysis.comparisons] == adjusted
    assert row.adjusted_p > row.comparison.p_value
    assert (row.seeds.first_seeds, row.seeds.second_seeds) == (3, 3)


def test_a_comparison_is_of_the_seeds_that_both_have(tmp_path):
    results, analysis = analyzed(tmp_path, made_plan())
    rows = by_name(analysis.comparisons)
    scores = {result.cell.slug: result.scores["generated"] for result in results}
    one = paired_comparison(scores["profit-t0.1-s0"], scores["nll-s0"], strata=["generated"] * 120)
    assert rows["profit-t0.1", "nll"].comparison == one
    assert (rows["profit-t0.1", "nll"].seeds.first_seeds, rows["profit-t0.1", "nll"].seeds.second_seeds) == (1, 1)
    nll, _ = problem_scores([result for result in results if result.cell.variant.name == "nll"], "generated")
    against_untrained = paired_comparison(scores["untrained"], nll, strata=["generated"] * 120)
    assert rows["untrained", "nll"].comparison == against_untrained


def test_only_what_is_shown_is_said(tmp_path):
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
    assert headline(plan, analysis) == [
        "Worse than nll: dft.",
        "Better than nll as trained here, not shown for other seeds: profit-t0.1.",
        "No difference from nll shown: profit-t0.5.",
        "These models of profit-t0.1 are better than those of profit-t0.5; with one seed of either it is not shown "
        "that another run would be.",
    ]


def test_nothing_shown_is_one_sentence(tmp_path):
    plan = made_plan()
    _, analysis = analyzed(tmp_path, plan, dict.fromkeys(RATES, 0.5))
    assert headline(plan, analysis) == [
        "No difference shown between nll and any of 3 other variants.",
        "nll is not shown to be better than the untrained model.",
    ]


def test_without_the_baseline_there_is_nothing_to_say(tmp_path):
    plan = made_plan()
    _, analysis = analyzed(tmp_path, plan, skip=("nll-s0", "nll-s1", "nll-s2"))
    assert analysis.comparisons == ()
    assert headline(plan, analysis)[0].startswith("There is nothing to compare yet")


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
    assert "profit-t0.1 (a), profit-t0.1 (b)" in " ".join(headline(plan, analysis))


def test_the_limits_follow_from_what_was_run(tmp_path):
    plan = made_plan()
    _, analysis = analyzed(tmp_path / "three", plan, skip=("dft-s1",))
    said = " ".join(limits(plan, analysis))
    assert "On 120 problems a 95% interval reaches about" in said
    assert "corrected for 4 comparisons (Holm)" in said
    assert "With 3 seeds" in said
    assert "2 to 4 degrees of freedom" in said
    assert "1 of 9 cells are not finished: dft-s1." in said
    single = made_plan(cells=[{"objective": ["nll", "dft"]}])
    _, analysis = analyzed(tmp_path / "one", single)
    assert "Every variant has one seed" in " ".join(limits(single, analysis))


def test_curves_are_means_over_the_runs_that_have_the_step():
    logs = [[{"step": 1, "nll": 2.0}, {"step": 2, "nll": 1.0, "loss": 9.0}], [{"step": 1, "nll": 4.0}]]
    assert mean_curve(logs, "nll") == [[1, 3.0], [2, 1.0]]
    assert mean_curve(logs, "loss") == [[2, 9.0]]
