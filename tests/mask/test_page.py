"""The page in a real chromium, against the numbers it was made of."""

import base64
import csv
import dataclasses
import io
import math
import re

import numpy as np
import pytest

from color_vision import SIGHTS, difference
from profit_sft import ASFT, Power, Rho
from profit_sft.mask.page import MaskPage, page_data
from profit_sft.mask.report import make_report
from profit_sft.mask.tokens import threshold_grid
from profit_sft.scores.store import ScoreSet
from tiny import chat_tokenizer

GRID = threshold_grid()
ELEMENTS = ["<img src=x onerror=alert(2)>", "<b>bold</b>"]
HOSTILE = '<script>alert(1)</script> "quotes" \' </script> {{ 7*7 }} <!-- \u2028 & ' + "".join(ELEMENTS)


def likely(scores, threshold):
    """Label tokens of `p >= threshold`, as the objective compares them."""
    with np.errstate(divide="ignore"):
        return scores.column("log_probs") >= np.log(threshold, dtype=np.float32)


def percent(share):
    """As the page rounds it: half up, where Python's format rounds half to even."""
    return f"{math.floor(1000 * share + 0.5) / 10:.1f}%"


def masked_on_page(page):
    """Numbers of the label tokens shown as masked, over all pages of examples."""
    found = []
    while True:
        found += page.locator(".flow .t.m").evaluate_all("spans => spans.map(span => Number(span.dataset.label))")
        if page.locator("#next").is_disabled():
            break
        page.click("#next")
    while page.locator("#previous").is_enabled():
        page.click("#previous")
    return found


def settle(page):
    """Wait until what a change of the threshold redraws is drawn, off the screen too."""
    # In the page, since its policy forbids the evaluation of strings that wait_for_function would need.
    page.evaluate(
        """() => new Promise((done, fail) => {
            setTimeout(() => fail(new Error("never drawn")), 20000);
            (function look() { frame || stale.size ? setTimeout(look, 10) : done(); })();
        })"""
    )


def type_threshold(page, text):
    page.fill("#threshold", text)
    page.press("#threshold", "Enter")
    settle(page)


def shown_share(page):
    return page.locator("#kept").inner_text()


@pytest.fixture
def scores(make_scores, text_example):
    return make_scores([text_example(n, f"What is {n}?", "It is four." * 3) for n in range(25)])


def test_what_is_packed_is_what_the_store_holds(make_scores, text_example):
    scores = make_scores([text_example(n, "What?", "It is 答.", kinds=[2, 2, 0, 1, 1, 1, 2]) for n in range(2)])
    report = make_report([scores])
    examples = page_data(report, list(report.examples(9)))["examples"]
    found = examples["sets"][0]

    def unpacked(text, dtype):
        return np.frombuffer(base64.b64decode(text), dtype)

    np.testing.assert_array_equal(unpacked(found["log_probs"], "<f4"), scores.column("log_probs"))
    np.testing.assert_array_equal(unpacked(found["entropy"], "<u2"), np.round(1000 * scores.column("entropy")))
    np.testing.assert_array_equal(unpacked(found["rank"], "<u2"), scores.column("rank"))
    np.testing.assert_array_equal(unpacked(examples["kinds"], "u1"), scores.column("token_kinds"))
    texts = [examples["texts"][index] for index in unpacked(examples["tokens"], "u1")]
    assert "".join(texts) == "What?It is 答." * 2
    assert texts.count("") == 4  # two further bytes of each 答
    stretches = unpacked(examples["stretches"], "u1").reshape(-1, 4).tolist()
    prompt = len(next(iter(scores)).input_ids) - 7
    role = examples["roles"].index
    assert stretches == [[role("prompt"), 0, prompt, 0], [role("answer"), prompt, 7, 1]] * 2
    assert (found["likeliest_log_probs"], found["alternatives"], found["weights"]) == (None, 1, None)
    likeliest = [examples["texts"][index] for index in unpacked(found["likeliest"], "u1")]
    assert likeliest == [report.texts.text(int(index)) for index in scores.column("top1")]


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_moving_the_slider_changes_exactly_what_is_masked(scores, write_page, open_page, direction):
    page = open_page(write_page(scores, direction=direction))
    for threshold in (0.1, 0.5, 0.0, 1.0, 0.03):
        if threshold != 0.1:  # where it starts
            type_threshold(page, str(threshold))
        kept = likely(scores, threshold) == (direction == "higher")
        assert masked_on_page(page) == np.flatnonzero(~kept).tolist()
        assert shown_share(page) == f"{percent(kept.mean())} kept"
        assert f"{percent(kept.mean())} of {kept.size} label tokens kept" in page.locator("#summary").inner_text()
    # Not by color alone, and struck through where that is wanted.
    masked = page.locator(".flow .t.m").first
    assert "inset" in masked.evaluate("span => getComputedStyle(span).boxShadow")
    for wanted in ("none", "line-through"):
        assert masked.evaluate("span => getComputedStyle(span).textDecorationLine") == wanted
        page.check("#struck")
    page.locator("#slider").focus()
    for key, index in (("ArrowRight", 1), ("PageUp", 11), ("ArrowLeft", 10), ("End", 622), ("Home", 0)):
        page.press("#slider", key)
        start = GRID.index(0.03)
        at = index if key in ("End", "Home") else start + index
        settle(page)
        kept = likely(scores, GRID[at]) == (direction == "higher")
        assert page.input_value("#threshold") == str(GRID[at]).removesuffix(".0")
        assert masked_on_page(page) == np.flatnonzero(~kept).tolist()
        page.locator("#slider").focus()


def test_the_pointer_moves_slider_and_charts(scores, write_page, open_page):
    page = open_page(write_page(scores))
    box = page.locator("#slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    settle(page)
    assert page.input_value("#threshold") == "0.5"
    page.locator("#curve").scroll_into_view_if_needed()
    chart = page.locator("#curve").bounding_box()
    page.mouse.move(chart["x"] + chart["width"] / 2, chart["y"] + 60)
    page.mouse.down()
    page.mouse.move(chart["x"] + chart["width"] * 0.8, chart["y"] + 60)
    page.mouse.up()
    settle(page)
    threshold = float(page.input_value("#threshold"))
    assert 0.95 < threshold < 1
    assert shown_share(page) == f"{percent(likely(scores, threshold).mean())} kept"
    assert percent(likely(scores, threshold).mean()) in page.locator("#curve").inner_text()


def test_direction_turns_the_mask_round(scores, write_page, open_page):
    page = open_page(write_page(scores, threshold=0.3))
    before = set(masked_on_page(page))
    page.locator('#direction input[value="lower"]').check(force=True)
    settle(page)
    assert set(masked_on_page(page)) == set(range(len(scores.column("rank")))) - before


def test_a_threshold_that_is_none_changes_nothing(scores, write_page, open_page):
    page = open_page(write_page(scores, threshold=0.1234))
    assert page.input_value("#threshold") == "0.1234"
    for text in ("7", "-1", ""):
        type_threshold(page, text)
        assert page.input_value("#threshold") == "0.1234"
    type_threshold(page, "0.12341")  # the nearest of the grid
    assert page.input_value("#threshold") == "0.1234"


def test_each_example_says_its_own_share_and_nll(scores, write_page, open_page):
    page = open_page(write_page(scores))
    page.select_option("#order", "kept-up")
    kept = likely(scores, 0.1).reshape(25, -1).mean(axis=1)
    order = np.argsort(kept, kind="stable")
    cards = page.locator("article")
    assert [int(cards.nth(n).get_attribute("data-row")) for n in range(10)] == (order[:10] + 1).tolist()
    first = next(example for example in scores if example.row == order[0] + 1)
    assert f"NLL {-first.log_probs.mean():.2f}" in cards.first.inner_text()
    assert f"kept {percent(kept[order[0]])}" in cards.first.inner_text()
    page.select_option("#order", "nll-down")
    nll = -scores.column("log_probs").reshape(25, -1).mean(axis=1, dtype=np.float64)
    assert int(cards.first.get_attribute("data-row")) == nll.argmax() + 1


def test_tokens_show_their_figures_to_pointer_and_keyboard(make_scores, text_example, write_page, open_page):
    scores = make_scores(
        [text_example(0, "What?", "It is four.\n", p=[0.05, 0.25, 0.5, 0.95, 0.3], kinds=[2, 2, 1, 1, 0])]
    )
    example = next(iter(scores))
    page = open_page(write_page(scores))
    tip, tokens = page.locator("#tip"), page.locator(".flow .t")
    assert tip.is_hidden()
    tokens.nth(1).hover()
    text = tip.inner_text()
    for words in (
        "␣is",
        "0.25",
        "-1.386 nats",
        str(example.rank[1]),
        f"{example.entropy[1]:.3f} nats",
        "style token, kept",
    ):
        assert words in text
    page.mouse.move(1, 1)
    assert tip.is_hidden()
    # One stop for Tab; inside, the arrow keys.
    page.locator("#order").focus()
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.closest('.flow')") is None:
        page.keyboard.press("Tab")
    assert "masked" in tip.inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    for key, words in (("ArrowRight", "␣is"), ("End", "↵"), ("ArrowRight", "↵"), ("Home", "It")):
        page.keyboard.press(key)
        assert tip.locator(".word").inner_text() == words
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.flow')") is None
    tokens.nth(2).click()
    assert "core token, kept" in tip.inner_text()


def test_search_finds_text_and_rows(scores, write_page, open_page):
    page = open_page(write_page(scores))
    cards = page.locator("article")
    page.fill("#search", "is 2")
    assert [int(cards.nth(n).get_attribute("data-row")) for n in range(cards.count())] == [3, 21, 22, 23, 24, 25]
    assert page.locator("#found").inner_text() == "6 of 25 examples"
    assert cards.first.locator("mark").all_inner_texts() == ["is 2"]
    page.fill("#search", "IS FOUR.IT")
    assert cards.first.locator(".hit").all_inner_texts() == [" is", " four", ".", "It", " is", " four", ".", "It"]
    page.fill("#search", "row:7")
    assert (cards.count(), cards.first.get_attribute("data-row")) == (1, "7")
    page.fill("#search", "row:99")
    assert page.locator("#found").inner_text() == "Row 99 is not among the 25 examples on this page."
    page.fill("#search", "nowhere")
    assert page.locator("#found").inner_text() == "No example on this page contains that."
    assert cards.count() == 0
    page.fill("#search", "")
    assert cards.count() == 10


def test_a_row_s_text_is_shown_as_text_and_nothing_runs(make_scores, text_example, write_page, open_page):
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(ELEMENTS)  # a vocabulary may hold whole elements, so that one token is one
    example = text_example(0, HOSTILE, HOSTILE, tokenizer=tokenizer)
    example = dataclasses.replace(
        example, top1=np.full_like(example.top1, tokenizer.convert_tokens_to_ids(ELEMENTS[0]))
    )
    scores = make_scores([example], tokenizer=tokenizer)
    named = dataclasses.replace(
        scores.manifest, model_name_or_path=HOSTILE, data={**scores.manifest.data, "dataset_name": HOSTILE}
    )
    page = open_page(write_page(ScoreSet(scores.folder, named), threshold=0.9))
    page.check("#template")
    assert page.locator(".flow").first.evaluate("flow => flow.textContent") == HOSTILE + HOSTILE
    assert ELEMENTS[0] in page.locator(".flow .t").all_inner_texts()
    name = HOSTILE.replace("\u2028", "⟨U+2028⟩")  # no name breaks its line
    assert page.locator(".facts dd").first.evaluate("fact => fact.textContent") == name
    page.select_option("#rank", "count")
    page.click("#more")
    assert ELEMENTS[1] in page.locator("#token-table button").all_inner_texts()
    page.fill("#search", "<script>alert(1)</script>")
    assert page.locator("mark").first.inner_text() == "<script>alert(1)</script>"
    page.locator(".flow .t").nth(3).hover()
    assert ELEMENTS[0].replace(" ", "␣") in page.locator("#tip").inner_text()
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator("img, b:not(.segments b, .lead b)").count() == 0


def test_tables_count_over_all_examples(make_scores, text_example, write_page, open_page):
    kinds = [2, 2, 1, 1]
    scores = make_scores([text_example(n, "Two?", "It is44", kinds=kinds) for n in range(30)])
    page = open_page(write_page(scores))
    masked = ~likely(scores, 0.1).reshape(30, 4)
    settle(page)
    counts = {"It": masked[:, 0].sum(), "␣is": masked[:, 1].sum(), "4": masked[:, 2:].sum()}
    rows = page.locator("#token-table tbody tr")

    def table():
        cells = [rows.nth(n).locator("th, td").all_inner_texts() for n in range(rows.count())]
        return {row[0]: (row[1], row[2], int(row[3]), int(row[4]), row[5]) for row in cells}

    shown = table()
    assert {text: row[3] for text, row in shown.items()} == {text: count for text, count in counts.items() if count}
    assert list(shown) == sorted(shown, key=lambda text: -counts[text])
    assert shown["4"] == ("number", "core", 60, counts["4"], percent(counts["4"] / 60))
    page.select_option("#kind", "style")
    assert set(table()) == {"It", "␣is"}
    page.locator('#unit input[value="words"]').check(force=True)
    assert set(table()) == {"It", "is"}
    page.select_option("#kind", "")
    page.select_option("#sort", "number")
    assert set(table()) == {"44"}
    page.click("#token-table button")
    assert page.input_value("#search") == "44"


def test_two_models_show_how_the_mask_moved(make_scores, text_example, write_page, open_page):
    before, after = (
        make_scores([text_example(n, "Two?", "It is four." * 2, seed=seed) for n in range(12)]) for seed in (1, 2)
    )
    page = open_page(write_page(before, after))

    def labels(look):
        return page.locator(f".flow .t.{look}").evaluate_all("spans => spans.map(span => Number(span.dataset.label))")

    for threshold in (0.1, 0.6):
        type_threshold(page, str(threshold))
        kept = [likely(scores, threshold) for scores in (before, after)]
        counts = {
            "kept_kept": kept[0] & kept[1],
            "kept_masked": kept[0] & ~kept[1],
            "masked_kept": ~kept[0] & kept[1],
            "masked_masked": ~kept[0] & ~kept[1],
        }
        for name, where in counts.items():
            assert page.locator(f"#{name}").inner_text().split() == [str(where.sum()), percent(where.mean())]
        assert shown_share(page) == " → ".join(percent(values.mean()) for values in kept) + " kept"
        first_page = 10 * 8
        for look, name in (("gone", "kept_masked"), ("came", "masked_kept"), ("m", "masked_masked")):
            assert labels(look) == np.flatnonzero(counts[name][:first_page]).tolist()
    for model in (0, 1):
        page.locator(f'#view input[value="{model}"]').check(force=True)
        settle(page)
        assert labels("m") == np.flatnonzero(~kept[model][:first_page]).tolist()
    page.select_option("#order", "moved-down")
    moved = (kept[0] != kept[1]).reshape(12, 8).sum(axis=1)
    assert int(page.locator("article").first.get_attribute("data-row")) == moved.argmax() + 1
    page.locator(".flow .t").first.hover()
    assert "before\tafter" in page.locator("#tip").inner_text()


def test_five_hundred_examples(make_scores, text_example, write_page, open_page):
    answer = "It is four.\n" * 40
    scores = make_scores([text_example(n, "Two plus two?", answer) for n in range(500)])
    page = open_page(write_page(scores))
    assert page.locator("article").count() == 10
    assert page.locator("#page").inner_text() == "Page 1 of 50"
    texts = [page.locator(f".flow {part}").first.inner_text() for part in (".role", ".prompt")]
    assert texts == ["prompt", "Two plus two?"]
    shown = page.locator(".flow .text").first.evaluate("text => text.textContent")
    assert shown == answer
    assert shown_share(page) == f"{percent(likely(scores, 0.1).mean())} kept"
    page.select_option("#order", "kept-down")
    kept = likely(scores, 0.1).reshape(500, -1).mean(axis=1)
    assert int(page.locator("article").first.get_attribute("data-row")) == kept.argmax() + 1


def test_a_phone_needs_no_sideways_scrolling(make_scores, text_example, write_page, open_page):
    kinds = [2] * 3 + [1] * 3 + [0] * 2
    both = [
        make_scores([text_example(n, "x" * 900, "It is four." * 2, kinds=kinds, seed=seed) for n in range(3)])
        for seed in (1, 2)
    ]
    page = open_page(write_page(*both), width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#kept").bounding_box()["x"] + page.locator("#kept").bounding_box()["width"] <= 360
    # A long prompt is folded to a line, and opens.
    whole = page.locator(".flow details > .prompt").first
    assert whole.is_hidden()
    assert page.locator(".flow summary").first.bounding_box()["height"] < 60
    page.locator(".flow summary").first.click()
    assert whole.inner_text() == "x" * 900
    page.locator(".flow .t").nth(5).click()
    tip = page.locator("#tip").bounding_box()
    assert tip["x"] >= 0
    assert tip["x"] + tip["width"] <= 360


@pytest.mark.parametrize(("width", "most"), [(1400, 400), (390, 700)])
def test_the_text_comes_first(scores, make_scores, text_example, write_page, open_page, width, most):
    other = make_scores([text_example(n, f"What is {n}?", "It is four." * 3, seed=3) for n in range(25)])
    for score_sets in ([scores], [scores, other]):
        page = open_page(write_page(*score_sets), width=width)
        assert page.locator("article").first.bounding_box()["y"] < most
        assert page.locator("#summary b").first.inner_text().endswith("%")
    # Before and after, the figures that say which model is better come before the kept share.
    summary = page.locator("#summary").inner_text()
    assert re.search(r"Mean NLL .* → .*: the reference answers have become (likelier|less likely)", summary)
    assert summary.index("likeliest token in") < summary.index("kept at p ≥ 0.1")


def test_without_a_script_the_page_says_the_share_and_has_no_dead_controls(scores, write_page, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(write_page(scores).as_uri())
    shown = page.locator("body").inner_text()
    controls = page.locator("button, input, select")
    visible = [controls.nth(index).is_visible() for index in range(controls.count())]
    context.close()
    kept = likely(scores, 0.1)
    assert f"{percent(kept.mean())} of {kept.size} label tokens kept, p ≥ 0.1. Mean NLL" in shown
    assert "which is switched off here" in shown
    assert "train.jsonl" in shown
    assert not any(visible)


def test_the_view_is_in_the_address(scores, write_page, open_page):
    path = write_page(scores)
    page = open_page(path)
    settle(page)
    assert page.url == path.as_uri() + "#"
    type_threshold(page, "0.3")
    page.locator('#direction input[value="lower"]').check(force=True)
    page.select_option("#order", "nll-down")
    page.click("#theme")
    page.click("#next")
    page.locator("article h3 a").nth(2).click()
    row = page.locator("article").nth(2).get_attribute("data-row")
    settle(page)
    page.wait_for_url(lambda url: f"row={row}" in url and "keep=lower" in url)
    again = open_page(path, address="#" + page.url.split("#")[1])
    settle(again)
    for look in (page, again):
        assert look.input_value("#threshold") == "0.3"
        assert look.locator('#direction input[value="lower"]').is_checked()
        assert look.input_value("#order") == "nll-down"
        assert look.locator("#page").inner_text() == "Page 2 of 3"
        assert look.locator("article.chosen").get_attribute("data-row") == row
        assert look.evaluate("document.documentElement.dataset.theme") == "dark"
    assert masked_on_page(page) == masked_on_page(again)
    # A row alone leads to its page; what is no view is left alone.
    found = open_page(path, address="#row=17&threshold=7&keep=none&order=x&page=-3&search=")
    assert (found.locator("article.chosen").get_attribute("data-row"), found.input_value("#threshold")) == ("17", "0.1")
    searched = open_page(path, address="#search=is+2%3F")
    assert (searched.locator("article").count(), searched.input_value("#search")) == (1, "is 2?")


def test_the_likeliest_tokens_are_shown_with_their_p(make_scores, text_example, write_page, open_page):
    likeliest = {" four": 0.6, " is": 0.25, ".": 0.1, "4": 0.02, "W": 0.01}
    scores = make_scores([text_example(0, "What?", "It is four.", p=[0.05, 0.25, 0.6, 0.9], likeliest=likeliest)])
    page = open_page(write_page(scores))
    page.locator(".flow .t").nth(1).hover()
    rows = page.locator("#tip .likeliest tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        ["␣four", "0.6"],
        ["␣is", "0.25"],
        [".", "0.1"],
        ["4", "0.02"],
        ["W", "0.01"],
    ]


def test_a_band_keeps_what_lies_between_two_thresholds(scores, write_page, open_page):
    page = open_page(write_page(scores, threshold=0.2, direction="middle", upper_threshold=0.7))
    kept = likely(scores, 0.2) & (scores.column("log_probs") <= np.log(0.7, dtype=np.float32))
    assert masked_on_page(page) == np.flatnonzero(~kept).tolist()
    page.fill("#upper", "0.5")
    page.press("#upper", "Enter")
    settle(page)
    kept &= scores.column("log_probs") <= np.log(0.5, dtype=np.float32)
    assert masked_on_page(page) == np.flatnonzero(~kept).tolist()
    assert shown_share(page) == f"{percent(kept.mean())} kept"
    type_threshold(page, "0.9")  # the upper one goes ahead of it
    assert float(page.input_value("#upper")) > 0.9
    page.locator('#direction input[value="higher"]').check(force=True)
    settle(page)
    assert page.locator("#upper").is_hidden()
    assert masked_on_page(page) == np.flatnonzero(~likely(scores, 0.9)).tolist()


def test_an_objective_s_weights_shade_the_tokens(scores, write_page, open_page):
    page = open_page(write_page(scores, objective=Power(k=2.0)))
    settle(page)
    weights = np.exp(2 * scores.column("log_probs").astype(np.float64))
    assert page.locator("#kept").inner_text() == f"mean weight {weights.mean():.3f}"
    assert f"Power(k=2.0): mean weight {weights.mean():.3f}" in page.locator("#summary").inner_text()
    assert not page.locator("#slider").is_visible()
    spans = page.locator(".flow .t")
    shades = [int(re.search(r" p(\d+)", spans.nth(at).get_attribute("class"))[1]) for at in range(12)]
    assert np.abs(10 * weights[:12] - shades).max() <= 0.5 + 1e-6
    spans.first.hover()
    assert "weight" in page.locator("#tip").inner_text()
    assert page.locator("#token-table th").all_inner_texts()[:4] == ["token", "sort", "tokens", "mean weight"]
    page.locator('#mode input[value="mask"]').check(force=True)
    settle(page)
    assert page.locator("#slider").is_visible()
    assert masked_on_page(page) == np.flatnonzero(~likely(scores, 0.1)).tolist()


def test_weights_of_zero_are_masked_and_negative_ones_are_told(make_scores, text_example, write_page, open_page):
    both = [
        make_scores([text_example(0, "Two?", "It is44", p=p)]) for p in ([0.9, 0.9, 0.1, 0.2], [0.1, 0.5, 0.9, 0.4])
    ]
    page = open_page(write_page(*both, objective=Rho(keep_share=0.5)))
    page.locator('#view input[value="1"]').check(force=True)
    settle(page)
    assert masked_on_page(page) == [2, 3]
    assert page.locator("#movement").is_hidden()
    page = open_page(write_page(*both, objective=ASFT(kl_coef=0.9)))
    page.locator('#view input[value="1"]').check(force=True)
    settle(page)
    negative = page.locator(".flow .t.negative").evaluate_all("all => all.map(span => Number(span.dataset.label))")
    assert negative == [2]


def test_the_system_prompt_stands_once_and_turns_are_marked(make_scores, text_example, write_page, open_page):
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    examples = [text_example(n, chat.format(f"What is {n}?\nSay it."), "It is four.<|im_end|>") for n in range(4)]
    examples.append(text_example(4, chat.replace("brief", "long").format("What?"), "It is."))
    page = open_page(write_page(make_scores(examples)))
    assert page.locator("#system").inner_text().split("\n") == ["system (in 4 of 5 examples)", "Be brief."]
    cards = page.locator("article")
    assert cards.nth(1).locator(".role").all_inner_texts() == ["user", "assistant"]
    assert cards.nth(4).locator(".role").all_inner_texts() == ["system", "user", "assistant"]
    assert cards.nth(1).locator("summary").inner_text().split("\n")[-1] == "What is 1? Say it."
    assert "<|im_start|>" not in cards.nth(1).inner_text()
    page.fill("#search", "Say it")  # opens what it was found in
    assert cards.nth(1).locator("details mark").inner_text() == "Say it"
    page.check("#template")
    assert (
        cards.nth(1).locator(".text").evaluate("text => text.textContent").startswith("<|im_start|>system\nBe brief.")
    )


@pytest.mark.parametrize(("answer", "order"), [("שלום עולם", -1), ("abcd", 1), ("\u202eabc", 1), ("a\u2067bc", 1)])
def test_a_text_runs_as_its_script_does_and_no_token_turns_its_neighbors(
    make_scores, text_example, write_page, open_page, answer, order
):
    page = open_page(write_page(make_scores([text_example(0, "What?", answer)])))
    spans = [span for span in page.locator(".flow .t").all() if span.text_content()]
    places = [span.bounding_box()["x"] for span in spans]
    assert places == sorted(places, reverse=order < 0)
    assert places[0] != places[-1]


def test_what_is_found_is_marked_where_lower_case_is_longer(make_scores, text_example, write_page, open_page):
    page = open_page(write_page(make_scores([text_example(0, "İİİ İZMİR is Four", "İİ Four")])))
    page.fill("#search", "four")
    assert page.locator("mark").all_inner_texts() == ["Four"]
    assert "".join(page.locator(".t.hit").all_inner_texts()).strip() == "Four"
    page.fill("#search", "İzm")
    assert page.locator("mark").all_inner_texts() == ["İZM"]


def test_n_and_p_go_to_masked_tokens(make_scores, text_example, write_page, open_page):
    scores = make_scores([text_example(0, "What?", "It is four.", p=[0.05, 0.25, 0.01, 0.95])])
    page = open_page(write_page(scores))
    page.locator(".flow .t").nth(0).click()
    for key, place in (("n", 2), ("n", 2), ("p", 0), ("p", 0)):
        page.keyboard.press(key)
        assert page.evaluate("Number(document.activeElement.dataset.label)") == place


def test_figures_and_examples_are_copied_as_csv_and_as_pictures(scores, write_page, open_page):
    page = open_page(write_page(scores), permissions=["clipboard-read", "clipboard-write"])
    settle(page)

    def copied(place, name):
        button = page.locator(place).get_by_role("button", name=name)
        button.click()
        page.locator(place).get_by_role("button", name="copied").wait_for()

    def rows_copied(place):
        copied(place, "CSV")
        return list(csv.DictReader(io.StringIO(page.evaluate("navigator.clipboard.readText()"), newline="")))

    rows = rows_copied("article >> nth=0")
    first = next(iter(scores))
    assert [int(row["position"]) for row in rows] == first.positions.tolist()
    assert [float(row["log_prob"]) for row in rows] == pytest.approx(first.log_probs.tolist())
    assert [row["kept"] == "1" for row in rows] == likely(scores, 0.1)[: len(rows)].tolist()
    rows = rows_copied('[data-copy="sorts"]')
    assert sum(int(row["tokens"]) for row in rows) == len(scores.column("rank"))
    for place in ('[data-copy="histogram"]', "article >> nth=0"):
        copied(place, "PNG")
        seen = page.evaluate(
            """async () => {
                const [item] = await navigator.clipboard.read();
                const image = await createImageBitmap(await item.getType("image/png"));
                const paper = new OffscreenCanvas(image.width, image.height).getContext("2d");
                paper.drawImage(image, 0, 0);
                const { data } = paper.getImageData(0, 0, image.width, image.height);
                const colors = new Set();
                for (let at = 0; at < data.length; at += 4) colors.add(data.slice(at, at + 3).join());
                return { width: image.width, colors: colors.size };
            }"""
        )
        assert seen["width"] == pytest.approx(2 * page.locator(place).bounding_box()["width"], abs=2)
        assert seen["colors"] > 20  # text, and fills of several shades


def test_what_cannot_be_copied_is_saved(scores, write_page, open_page):
    page = open_page(write_page(scores))
    page.evaluate("() => { navigator.clipboard.write = () => Promise.reject(new Error('denied')); }")
    with page.expect_download() as found:
        page.locator('[data-copy="curve"]').get_by_role("button", name="CSV").click()
    assert found.value.suggested_filename == "curve.csv"


def test_a_notebook_shows_the_page(scores, browser, tmp_path):
    html = MaskPage(make_report([scores], threshold=0.3))._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{html}")
    page = browser.new_page()
    page.goto((tmp_path / "notebook.html").as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("article").first.wait_for()
    assert frame.locator("#kept").inner_text() == f"{percent(likely(scores, 0.3).mean())} kept"
    frame.locator("#next").click()
    assert frame.locator("#page").inner_text() == "Page 2 of 3"
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_looks_are_told_apart_by_the_color_blind(scores, make_scores, text_example, write_page, open_page, theme):
    other = make_scores([text_example(n, f"What is {n}?", "It is four." * 3, seed=3) for n in range(25)])
    page = open_page(write_page(scores, other), color_scheme=theme)

    def fill(look):
        """The fill of a token of this look, as red, green, blue."""
        return page.locator("#list").evaluate(
            """(list, look) => {
                const span = document.createElement("span");
                span.className = `t ${look}`;
                list.append(span);
                const paper = new OffscreenCanvas(1, 1).getContext("2d");
                paper.fillStyle = getComputedStyle(span).backgroundColor;
                paper.fillRect(0, 0, 1, 1);
                span.remove();
                return [...paper.getImageData(0, 0, 1, 1).data].slice(0, 3);
            }""",
            look,
        )

    pairs = [("p6", "m m3"), ("p10", "m m5"), ("p3", "m m3"), ("gone", "came"), ("gone", "m m1"), ("came", "m m1")]
    for one, other_look in pairs:
        for sight in SIGHTS:
            assert difference(fill(one), fill(other_look), sight) > 4, (one, other_look, sight)
        # And by something else than color: a box, a slant or weight of the letters.
        shapes = [
            page.locator("#list").evaluate(
                """(list, look) => {
                    const span = document.createElement("span");
                    span.className = `t ${look}`;
                    list.append(span);
                    const { boxShadow, fontStyle, fontWeight } = getComputedStyle(span);
                    span.remove();
                    return [boxShadow === "none", fontStyle, fontWeight];
                }""",
                look,
            )
            for look in (one, other_look)
        ]
        assert shapes[0] != shapes[1], (one, other_look)


def test_the_theme_can_be_switched(scores, write_page, open_page):
    page = open_page(write_page(scores))
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != light
    assert page.locator("#theme").get_attribute("aria-label") == "Switch to the light theme"
    page.click("#theme")
    assert page.evaluate(background) == light


def test_every_control_has_a_name(scores, make_scores, text_example, write_page, open_page):
    other = make_scores([text_example(n, f"What is {n}?", "It is four." * 3, seed=3) for n in range(25)])
    page = open_page(write_page(scores, other))
    tree = page.locator("body").aria_snapshot()
    for line in (
        'slider "Threshold"',
        'spinbutton "Threshold, a probability"',
        'searchbox "Search"',
        'combobox "Sort"',
    ):
        assert line in tree
    names = page.locator("input, select, button").evaluate_all(
        "all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert names == []
