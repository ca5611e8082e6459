"""What is said of a comparison and of a study, and no more than is shown."""

import pytest
from made_study import made_plan, made_study

from profit_sft.study.analysis import analyze
from profit_sft.study.results import read_results
from profit_sft.study.statistics import PairedComparison, in_words, what_is_shown
from profit_sft.study.verdict import headline, limits, standings, summary

RATES = {"untrained": 0.1, "nll": 0.5, "dft": 0.25, "profit-t0.1": 0.85, "profit-t0.5": 0.5}


def analyzed(folder, plan, rates=RATES, **options):
    made_study(folder, plan, rates, **options)
    return analyze(plan, read_results(plan, folder))


def comparison(difference, *, better=30, worse=10):
    return PairedComparison(
        difference=difference, low=0.0, high=1.0, p_value=0.01, better=better, worse=worse, num_problems=100
    )


@pytest.mark.parametrize(
    ("difference", "adjusted_p", "adjusted_method_p", "shown", "words"),
    [
        (0.2, 0.05, 0.05, "no difference", "no difference shown between a and b"),
        (0.2, 0.01, 0.01, "better", "a is better than b, over seeds and problems"),
        (-0.2, 0.01, 0.01, "worse", "a is worse than b, over seeds and problems"),
        (
            *(0.2, 0.01, 0.05, "better here"),
            "no difference between the methods shown; these trained models of a are better than those of b",
        ),
        (
            *(-0.2, 0.01, None, "worse here"),
            "one seed cannot tell the methods apart; these trained models of a are worse than those of b",
        ),
        (-0.2, 0.05, None, "no difference", "no difference shown between a and b"),
    ],
)
def test_a_comparison_says_no_more_than_is_shown(difference, adjusted_p, adjusted_method_p, shown, words):
    found = comparison(difference)
    assert what_is_shown(found, adjusted_p, adjusted_method_p) == shown
    assert in_words(shown, found, first="a", second="b", one_seed=adjusted_method_p is None) == words


def test_two_that_answer_alike_are_said_to():
    text = in_words("no difference", comparison(0.0, better=0, worse=0), first="a", second="b", one_seed=False)
    assert text == "no difference shown: a and b do the same on each of 100 problems"


def test_only_what_is_shown_is_said(tmp_path):
    plan = made_plan(comparisons=[["profit-t0.1", "profit-t0.5"]])
    analysis = analyzed(tmp_path, plan)
    assert summary(plan, analysis) == [
        "Worse than nll, 39.7% (31.3 to 48.6), over seeds and problems: dft 18.1%, 21.7 points less (14.8 to 28.6).",
        "Better than nll, as trained here, which is not shown of the methods: profit-t0.1 80.8%, 42.5 points "
        "more (32.6 to 51.3).",
        "No difference from nll shown: profit-t0.5 38.3%, +0.0 points (-5.1 to +5.1).",
        "One seed cannot tell the methods apart; these trained models of profit-t0.1 are better than those of "
        "profit-t0.5.",
    ]
    assert headline(plan, analysis) == summary(plan, analysis) + standings(plan, analysis)


def test_the_standings_are_figures_best_first(tmp_path):
    plan = made_plan()
    lines = standings(plan, analyzed(tmp_path, plan))
    assert [line.split()[0] for line in lines] == ["profit-t0.1", "nll", "profit-t0.5", "dft", "untrained"]
    assert lines[0] == (
        "profit-t0.1 80.8% [72.6 to 87.4], NLL 0.530, nll 38.3% on the same seeds, difference +42.5 points [+32.6 to "
        "+51.3], corrected p < 0.001 over problems, one seed"
    )
    assert lines[1] == "nll 39.7% [31.3 to 48.6], NLL 0.543"
    assert lines[3].endswith("corrected p < 0.001 over problems, p < 0.001 over seeds and problems")


def test_nothing_shown_is_one_sentence(tmp_path):
    plan = made_plan()
    analysis = analyzed(tmp_path, plan, dict.fromkeys(RATES, 0.5))
    assert summary(plan, analysis) == [
        "No difference shown between nll, 39.7% (31.3 to 48.6), and any of 3 other variants; the best of these, dft "
        "40.8%, +1.1 points (-1.8 to +4.1).",
        "nll is not shown to be better than the untrained model.",
    ]


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0, "at the floor of generated: all intervals include 1% or less"), (1.05, "at the ceiling of generated")],
)
def test_where_all_are_at_an_edge_that_is_said_in_place_of_no_difference(tmp_path, rate, words):
    plan = made_plan()
    analysis = analyzed(tmp_path, plan, dict.fromkeys(RATES, rate))
    said = summary(plan, analysis)
    assert words in said[0]
    assert not any(sentence.startswith("No difference shown between nll, ") for sentence in said)


def test_one_task_at_the_floor_is_said_besides_the_rest(tmp_path):
    plan = made_plan(evaluate={"tasks": ["gsm8k", "aime24"], "greedy": True})
    made_study(tmp_path, plan, dict.fromkeys(RATES, 0.5))
    for path in tmp_path.glob("cells/*/**/samples/aime24.jsonl"):
        path.write_text(path.read_text().replace("true", "false"))
    said = summary(plan, analyze(plan, read_results(plan, tmp_path)))
    assert said[0].startswith("Every variant is at the floor of aime24")
    assert said[1].startswith("No difference shown between nll, 19.9% (15.7 to 24.6), and any of 3 other variants")


def test_plain_nll_and_collapses_are_part_of_the_outcome(tmp_path):
    plan = made_plan()
    # made_study gives cell number i a held-out NLL of 0.5 + 0.01 i: none is 5% above that of nll. Then one is.
    said = summary(plan, analyzed(tmp_path, plan, collapsed=("dft",)))
    assert said[-1] == "Collapsed: dft, 3 of 3 runs."
    assert not any("Plain NLL" in sentence for sentence in said)
    path = next(tmp_path.glob("cells/profit-t0.1-s0/cell.json"))
    path.write_text(path.read_text().replace('"nll": 0.53', '"nll": 1.53'))
    said = summary(plan, analyze(plan, read_results(plan, tmp_path)))
    assert said[-2] == (
        "Plain NLL on held-out data is more than 5% above that of nll, 0.543: profit-t0.1 1.530 (not tested)."
    )


def test_without_the_baseline_there_is_nothing_to_say_but_the_figures(tmp_path):
    plan = made_plan()
    analysis = analyzed(tmp_path, plan, skip=("nll-s0", "nll-s1", "nll-s2"))
    assert analysis.comparisons == ()
    assert summary(plan, analysis)[0].startswith("There is nothing to compare yet")
    assert standings(plan, analysis)[0].startswith("profit-t0.1 80.8% [72.6 to 87.4], NLL")


def test_without_an_evaluation_the_order_is_that_of_nll(tmp_path):
    plan = made_plan(evaluate={})
    lines = standings(plan, analyzed(tmp_path, plan))
    assert lines[0] == "untrained NLL 0.500"


def test_several_models_are_named(tmp_path):
    models = [{"model_name_or_path": "embedded", "name": name} for name in ("a", "b")]
    plan = made_plan(model_name_or_path=None, models=models)
    analysis = analyzed(tmp_path, plan)
    said = " ".join(summary(plan, analysis))
    assert "Worse than nll, a 39.7% (31.3 to 48.6), b 39.4% (31.0 to 48.4), over seeds and problems: dft (b)" in said
    assert "profit-t0.1 (a) 80.8%, 42.5 points more" in said
    assert "profit-t0.1 (b) " in said
    assert standings(plan, analysis)[0].startswith("profit-t0.1 (a) 8")


def test_the_limits_follow_from_what_was_run(tmp_path):
    plan = made_plan()
    said = " ".join(limits(plan, analyzed(tmp_path / "three", plan, skip=("dft-s1",))))
    assert "On 120 problems a 95% interval reaches about" in said
    assert "of the methods for the 2 comparisons with two seeds or more, of these trained models for all 4" in said
    assert "That 3 seeds say anything of a method rests on one assumption" in said
    assert "1 of 9 cells are not finished: dft-s1." in said
    single = made_plan(cells=[{"objective": ["nll", "dft"]}])
    said = " ".join(limits(single, analyzed(tmp_path / "one", single)))
    assert "Every variant has one seed" in said
