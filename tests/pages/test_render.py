import base64
import hashlib
import json
import re

import pytest

from profit_sft.pages.render import _code, embedded_json, markdown_text, render_page

HOSTILE = "</script><script>alert(1)</script> <!-- & ' \" {{ 7*7 }} {% raw %} \u2028 \u2029 答"


def test_data_come_back_as_they_were_and_cannot_end_their_element():
    text = str(embedded_json({"row": HOSTILE, "p": 0.1}))
    assert json.loads(text) == {"row": HOSTILE, "p": 0.1}
    assert not set("<>&") & set(text)  # line separators may stay: the element holds JSON, and no script


def test_half_a_surrogate_pair_does_not_stop_the_page():
    html = render_page("base.html", data={"row": "\ud83c"}, values={"title": "x"})
    assert '{"row":"\\ud83c"}' in html
    html.encode()


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        embedded_json(float("nan"))


def test_values_of_the_template_are_escaped():
    html = render_page("base.html", data=None, values={"title": HOSTILE})
    assert "<script>alert" not in html
    assert "{{ 7*7 }}" in html  # a template's values are not templates


def test_the_policy_allows_our_style_and_script_and_nothing_else():
    html = render_page("mask.html", data={}, styles=["mask.css"], scripts=["mask.js"], values=_MASK_VALUES)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for element in ("style", "script"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}';" in policy
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", html)


_MASK_VALUES = {
    "title": "",
    "summary": "",
    "caveat": "",
    "facts": [],
    "label_tokens": "",
    "examples_note": "",
    "compared": False,
    "has_kinds": False,
    "objective": None,
    "versions": "",
}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "<!-- x",
            "</td>",
            "<?x?>",
            "&lt;b&gt;",
            "a | b",
        ),
        *("[x](javascript:alert(1))", "![x](http://tracker/x.png)", "[x]: http://y", "<http://y>", "`x`", "**x**"),
        *(
            "x\n\n# A heading\n<b>",
            "x\r<b>",
            "\u2028<b>",
            "\x1b[2J<b>",
            "\\<b>",
            "\\\\<b>",
            "```\n<b>",
            "x\n    ```\n<b>",
        ),
    ],
    ids=ascii,
)
def test_a_text_is_shown_as_it_is_by_markdown_and_is_neither_html_nor_link(text, tmp_path):
    from markdown_it import MarkdownIt

    read = MarkdownIt("commonmark").enable("table")
    line = markdown_text(text)
    assert "\n" not in line
    for place in (f"# {line}\n", f"- {line}\n", f"a paragraph\n{line}\n", f"|a|b|\n|---|---|\n|{line}|x|\n"):
        html = read.render(place)
        shown = re.sub(r"</?(?:h1|ul|li|p|table|thead|tbody|tr|th|td)>", "", html)
        assert "<" not in shown
        assert "href" not in shown
        assert html.count("<td>") in (0, 2)
    code = read.render(f"text\n\n{_code(text)}\n\nmore\n")
    assert code.count("<code>") == 1
    assert code.startswith("<p>text</p>\n<pre><code>")
    assert code.endswith("</code></pre>\n<p>more</p>\n")
    assert "<b>" not in code


def test_no_name_turns_round_what_stands_beside_it():
    html = render_page("base.html", data={}, values={"title": "a\u202eb\u2066c \udcff \U0001f469\u200d\U0001f467"})
    assert "a⟨U+202E⟩b⟨U+2066⟩c ⟨U+DCFF⟩ \U0001f469\u200d\U0001f467" in html
