"""The page in a real chromium, against the numbers it was made of."""

import base64
import dataclasses
import math

import numpy as np
import pytest

from profit_sft.mask.page import page_data
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
    assert page.locator(".facts dd").first.evaluate("fact => fact.textContent") == HOSTILE
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
