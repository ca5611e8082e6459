import numpy as np
import pytest

from profit_sft import ProFit
from profit_sft.mask.report import make_report, masked_most, summary


def test_the_summary_is_what_the_tokens_say(make_scores, text_example):
    kinds = [2, 2, 1, 1]
    before, after = (
        make_scores([text_example(n, "Two?", "It is44", kinds=kinds, seed=seed) for n in range(5)]) for seed in (1, 2)
    )
    found = summary(make_report([before, after], threshold=0.3))
    columns = [scores.column("log_probs") for scores in (before, after)]
    kept = [values >= np.float32(np.log(0.3)) for values in columns]
    core = before.column("token_kinds") == 1
    assert found["all"]["kept_share"] == [values.mean() for values in kept]
    assert found["all"]["masked_kept"] == (~kept[0] & kept[1]).sum()
    by_kind = {group["label"]: group for group in found["by_kind"]}
    assert by_kind["core"]["kept_share"] == [values[core].mean() for values in kept]
    assert by_kind["core"]["mean_p"] == pytest.approx([np.exp(values[core]).mean() for values in columns])
    assert found["mean_nll"] == pytest.approx([-values.mean() for values in columns])
    for entry in found["kept_shares"]:
        floor = np.float32(np.log(entry["threshold"]))
        assert entry["kept_share"] == [(values >= floor).mean() for values in columns]
    assert [sum(counts) for counts in found["histogram"]["counts"]] == [20, 20]
    masked = {"It": 0, " is": 0, "4": 0}
    for text, values in zip(("It", " is", "4", "4"), (~kept[1]).reshape(5, 4).T, strict=True):
        masked[text] += int(values.sum())
    rows = {row["label"]: round(row["tokens"] * (1 - row["kept_share"][1])) for row in found["most_masked_tokens"]}
    assert rows == {text: count for text, count in masked.items() if count}
    assert list(rows.values()) == sorted(rows.values(), reverse=True)


def test_lower_keeps_what_higher_masks(make_scores, text_example):
    scores = make_scores([text_example(0, "Two?", "It is44", p=[0.1, 0.2, 0.3, 0.4])])
    assert summary(make_report([scores], threshold=0.3))["all"]["kept_share"] == [0.5]
    report = make_report([scores], threshold=0.25, direction="lower")
    assert summary(report)["all"]["kept_share"] == [0.5]
    assert [group.label for group in masked_most(report, report.figures.tokens)] == ["4"]


def test_a_band_keeps_both_of_its_ends(make_scores, text_example):
    scores = make_scores([text_example(0, "Two?", "It is44", p=[0.1, 0.2, 0.3, 0.4])])
    report = make_report([scores], threshold=0.2, direction="middle", upper_threshold=0.3)
    assert summary(report)["all"]["kept_share"] == [0.5]
    assert report.weights_of(0, next(iter(scores)), 0).tolist() == [0, 1, 1, 0]
    assert report.rule == "0.2 ≤ p ≤ 0.3"
    of_the_objective = make_report([scores], objective=ProFit(threshold=0.2, direction="middle", upper_threshold=0.3))
    assert (of_the_objective.index, of_the_objective.upper) == (report.index, report.upper)


def test_examples_are_spread_over_the_data(make_scores, text_example):
    report = make_report([make_scores([text_example(n, "Two?", "It is44") for n in range(9)])])
    assert [(place, example[0].row) for place, example in report.examples(3)] == [(0, 1), (4, 5), (8, 9)]
    assert [example[0].row for _, example in report.examples(500)] == list(range(1, 10))


@pytest.mark.parametrize(
    ("view", "told"),
    [
        ({"threshold": 10}, r"threshold must be a probability in \[0, 1\], got 10. Write 10% as 0.1."),
        ({"direction": "up"}, "threshold_direction must be 'higher', 'lower' or 'middle' here, got 'up'"),
        ({"direction": "middle"}, "direction 'middle' needs upper_threshold"),
        ({"direction": "middle", "upper_threshold": 0.05}, "upper_threshold must exceed threshold"),
    ],
)
def test_a_view_that_is_none_is_refused(make_scores, text_example, view, told):
    with pytest.raises(ValueError, match=told):
        make_report([make_scores([text_example(0, "Two?", "It is44")])], **view)
    band = {"direction": "middle", "upper_threshold": 0.5}
    both = [make_scores([text_example(0, "Two?", "It is44")]) for _ in range(2)]
    with pytest.raises(ValueError, match="threshold_direction 'middle' shows one model"):
        make_report(both, **band)
    with pytest.raises(ValueError, match="one score set or two can be looked at, got 0"):
        make_report([])
