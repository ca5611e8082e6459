"""Render one self-contained HTML page: template, styles, scripts and data in a single file, no network; or Markdown.

Templates, styles and scripts lie in `templates/`. Every page extends `base.html`, whose look is `base.css` and whose
behavior (theme switch, small helpers) is `base.js`. A content security policy, by the hashes of our own scripts and
styles, forbids everything else: a script that came in with the data could not run, and nothing can be fetched.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from profit_sft.files import package_versions
from profit_sft.terminal import harmless


def _shown(value: Any) -> Any:
    """Return what a template writes: of a text nothing that could turn round what stands beside it."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("profit_sft.pages"),
    autoescape=True,
    finalize=_shown,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# In Markdown: what begins code, emphasis, a cell of a table, HTML, the target of a link or picture, a character.
_MARKDOWN = re.compile(r"[\\`*|~]|<(?=[A-Za-z/!?])|\](?=[(\[:])|&(?=#?\w+;)")


def render_page(
    template: str, *, data: Any, styles: Sequence[str] = (), scripts: Sequence[str] = (), values: Mapping[str, Any]
) -> str:
    """Return the page as one string of HTML.

    Args:
        template: File in `templates/` that extends `base.html`.
        data: What the scripts show, JSON values only. They find it as `DATA`.
        styles: Files in `templates/`, put in after `base.css`.
        scripts: Files in `templates/`, run after `base.js`, in one scope with it.
        values: What the template itself reads, beside `version`. Escaped.

    Example:
        >>> html = render_page("base.html", data={"a": "</script>"}, values={"title": "A & B"})
        >>> "A &amp; B" in html, html.count("</script>")
        (True, 2)
    """
    style = "\n".join(asset(name) for name in ("base.css", *styles))
    script = '"use strict";\n' + "\n".join(asset(name) for name in ("base.js", *scripts))
    return _ENVIRONMENT.get_template(template).render(
        values,
        version=package_versions(["profit-sft"])["profit-sft"],
        style=Markup(style),  # our own files
        script=Markup(script),
        data=embedded_json(data),
        policy=(
            f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
            "base-uri 'none'; form-action 'none'"
        ),
    )


def render_text(template: str, values: Mapping[str, Any]) -> str:
    """Return a template in Markdown with its values, each of which is text in a line and nothing else.

    Args:
        template: File in `templates/`. What it indents by four as a block of code goes through `code(...)` instead.
        values: What it reads.
    """
    environment = _ENVIRONMENT.overlay(autoescape=False, finalize=markdown_text)
    return environment.get_template(template).render(values, code=_code)


def markdown_text(value: Any) -> str:
    r"""Return a value as Markdown that shows it as it is, in one line, whatever it says.

    Example:
        >>> print(markdown_text("p < 0.1 | <b> [x](http://y)"))
        p < 0.1 \| \<b> [x\](http://y)
    """
    if isinstance(value, Markup):
        return value
    return _MARKDOWN.sub(r"\\\g<0>", harmless(" ".join(str(value).split())))


def _code(text: str) -> Markup:
    """Return a block of code, indented: no text can end it, as it could with a fence."""
    return Markup("".join(f"    {line}\n" for line in harmless(text).split("\n"))).rstrip("\n")


def embedded_json(data: Any) -> Markup:
    r"""Return `data` as JSON that may stand in a `<script type="application/json">` element, whatever its texts say.

    Raises:
        ValueError: A number is NaN or infinite, for which JSON has no word.

    Example:
        >>> print(embedded_json({"text": "</script> &"}))
        {"text":"\u003c/script\u003e \u0026"}
    """
    text = htmlsafe_json_dumps(data, dumps=json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair, which JSON allows in a row's text, has no UTF-8.
    return Markup(text.encode("utf-8", "backslashreplace").decode())


def asset(name: str) -> str:
    """Return the text of a file in `templates/`."""
    return (files("profit_sft.pages") / "templates" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return what names an inline script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
