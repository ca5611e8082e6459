"""Score sets of given texts, and a real browser to look at pages with."""

from datetime import date

import numpy as np
import pytest

from made_scores import write_scores
from profit_sft.mask.page import MaskPage
from profit_sft.mask.report import make_report
from profit_sft.scores.store import ScoredExample
from tiny import chat_tokenizer


@pytest.fixture(scope="session")
def text_example():
    """Call it for an example of a prompt and an answer, with probabilities given or drawn."""
    plain = chat_tokenizer()

    def make(number, prompt, answer, *, p=None, kinds=None, seed=0, tokenizer=plain, likeliest=None):
        prompt_ids, answer_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        count = len(answer_ids)
        random = np.random.default_rng((seed, number))
        p = random.beta(0.4, 0.4, count).clip(1e-6, 1 - 1e-6) if p is None else np.array(p)
        assert len(p) == count, tokenizer.convert_ids_to_tokens(answer_ids)
        return ScoredExample(
            example=number,
            row=number + 1,
            input_ids=np.array(prompt_ids + answer_ids, np.int32),
            positions=np.arange(len(prompt_ids), len(prompt_ids) + count, dtype=np.int32),
            log_probs=np.log(p).astype(np.float32),
            entropy=random.random(count, np.float32),
            top1=np.array(answer_ids if p is None else random.integers(3, 300, count), np.int32),
            rank=random.integers(1, 400, count).astype(np.int32),
            token_kinds=None if kinds is None else np.array(kinds, np.int8),
            # Texts of single tokens with their probabilities, the same in every place.
            likeliest=None if likeliest is None else np.tile(ids_of(likeliest, tokenizer), (count, 1)),
            likeliest_log_probs=None
            if likeliest is None
            else np.tile(np.log(list(likeliest.values())).astype(np.float16), (count, 1)),
        )

    def ids_of(texts, tokenizer):
        return np.array([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], np.int32).T

    return make


@pytest.fixture
def open_page(browser):
    """Call it for a page on a file; a request, an error or a dialog of any page fails the test."""
    contexts, seen = [], []

    def open_file(path, *, width=1200, height=900, address="", permissions=(), **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", permissions=permissions, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: seen.append(request.url.split("#")[0]))
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri() + address)
        page.locator("article").first.wait_for()
        assert seen[-1:] == [path.as_uri()]
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not [entry for entry in seen if not entry.startswith("file:")], seen
    assert len(seen) == len(contexts)


@pytest.fixture
def write_page(tmp_path):
    """Call it for the page of score sets."""

    def write(*score_sets, **view):
        path = tmp_path / "mask.html"
        MaskPage(make_report(score_sets, **view)).write(path, date(2026, 5, 4))
        return path

    return write


@pytest.fixture
def make_scores(tmp_path):
    """Call it for a finished score set of examples."""
    made = []

    def make(examples, **options):
        made.append(write_scores(tmp_path / f"scores{len(made)}", examples, **options))
        return made[-1]

    return make
