import io

import pytest
from rich.console import Console

from profit_sft.mask.report import make_report
from profit_sft.mask.terminal import print_report, visible


def printed(report, *, terminal=False, **options):
    out = Console(
        file=io.StringIO(), width=100, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    print_report(report, out, **options)
    return out.file.getvalue()


@pytest.fixture
def scores(make_scores, text_example):
    examples = [
        text_example(0, "What?", "It is four.", p=[0.05, 0.1, 0.6, 0.95], kinds=[2, 2, 1, 0]),
        text_example(1, "Two?", "It is44", p=[0.2, 0.05, 0.3, 0.99], kinds=[2, 2, 1, 1]),
    ]
    return make_scores(examples)


def test_it_shows_shares_masked_tokens_and_examples(scores):
    text = printed(make_report([scores]))
    for line in ("│ kept share             │ 75.0% ", "│       0.1 │  75.0% │ 100.0% │  50.0% │"):
        assert line in text
    assert "│ ␣is   │ word start │ style │      2 │      1 │ 50.0% │  0.075 │" in text
    # Without a terminal nothing can be struck through, so what is masked stands in brackets.
    assert "What?⟨It⟩ is four." in text
    assert "Two?It⟨ is⟩44" in text
    assert "row 2" not in printed(make_report([scores]), examples=1)


def test_the_bands_of_the_histogram_hold_every_token(scores):
    lines = printed(make_report([scores])).split("Tokens by probability")[1].split("Most masked")[0].splitlines()
    shares = [line.split("│")[3].strip() for line in lines if line.startswith("│")]
    #         0..  .001  .01      .1       .25      .5       .75    .9       .99
    assert shares == ["0.0%", "0.0%", "25.0%", "25.0%", "12.5%", "12.5%", "0.0%", "12.5%", "12.5%"]


def test_on_a_terminal_the_masked_are_struck_through(scores):
    text = printed(make_report([scores]), terminal=True)
    assert "\x1b[2;9mIt\x1b[0m" in text
    assert "⟨" not in text


def test_two_models_are_compared(scores, make_scores, text_example):
    after = make_scores(
        [
            text_example(0, "What?", "It is four.", p=[0.5, 0.05, 0.6, 0.95], kinds=[2, 2, 1, 0]),
            text_example(1, "Two?", "It is44", p=[0.2, 0.05, 0.3, 0.99], kinds=[2, 2, 1, 1]),
        ]
    )
    text = printed(make_report([scores, after]))
    assert "75.0% → 75.0%" in text
    assert "│ kept before   │  5 (62.5%) │    1 (12.5%) │" in text
    assert "│ masked before │  1 (12.5%) │    1 (12.5%) │" in text
    assert "What?It⟨ is⟩ four." in text


def test_no_row_can_steer_the_terminal(make_scores, text_example):
    answer = " \x1b[2J[bold]\u202e"
    scores = make_scores([text_example(0, "\x1b]0;x\x07?", answer)])
    text = printed(make_report([scores], threshold=0.0))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "␛[2J[bold]⟨U+202E⟩" in text
    assert visible("a\tb \r\n") == "a⇥b␣␍↵"
