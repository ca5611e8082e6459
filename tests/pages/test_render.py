import base64
import hashlib
import json
import re

import pytest

from profit_sft.pages.render import embedded_json, render_page

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
    "caveat": "",
    "facts": [],
    "label_tokens": "",
    "examples_note": "",
    "compared": False,
    "has_kinds": False,
    "versions": "",
}
