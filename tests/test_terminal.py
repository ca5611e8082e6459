"""What is printed: no text can steer the terminal, whichever channel it takes."""

import io
import logging
import re
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from profit_sft.cli.progress import ProgressDisplay, quiet_libraries
from profit_sft.terminal import HarmlessConsole, console, harmless

# Of each sort: clearing the screen, a title, an 8-bit control, overwriting a line, erasing, bidi, markup, halves.
HOSTILE = (
    *("a\x1b[2J", "a\x1b]0;owned\x07", "a\x9b31m", "paid\rfree", "a\x08\x7f", "a\u202eb\u2066c", "[/x]"),
    *("[red]", "[link=http://x]y[/link]", ":smile:", "\udcff", "a\u2028b", "\x00"),
)


def on_console(*, terminal, printed):
    """Return what a console writes, without the codes that rich itself adds."""
    out = HarmlessConsole(
        file=io.StringIO(), markup=False, emoji=False, highlight=False, force_terminal=terminal, color_system=None
    )
    out.print(printed)
    return out.file.getvalue()


def table_of(text):
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("form", [str, Text, table_of])
def test_what_is_printed_shows_the_text_and_cannot_steer(text, form):
    printed = on_console(terminal=True, printed=form(text))
    assert all(character == "\n" or character.isprintable() for character in printed)
    assert harmless(text) in printed or form is Text  # of which rich takes some out


def test_lines_tabs_and_what_joins_emoji_stay():
    kept = "two\nlines\tand \U0001f469\u200d\U0001f680"
    assert harmless(kept) == kept


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_channel_of_a_command_lets_it_through(text, capsys):
    quiet_libraries()
    logger = logging.getLogger("profit_sft.somewhere")
    handlers, logging.root.handlers = logging.root.handlers, [logging.root.handlers[-1]]
    try:
        logging.basicConfig(force=True)
        logging.root.handlers.clear()
        quiet_libraries()
        logger.warning("row %s", text)
        logging.getLogger("transformers.somewhere").error(text)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning(UserWarning(text), UserWarning, "file", 1)
    finally:
        logging.root.handlers = handlers
    with ProgressDisplay(console(stderr=True), line="{task}: {done} of {total}") as display:
        display.update(text, 1, 1, figures=text)
    err = capsys.readouterr().err
    assert err.count(harmless(text)) == 5
    assert all(character == "\n" or character.isprintable() for character in err)


def test_a_bar_is_labeled_with_the_text_as_it_is():
    out = HarmlessConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    with ProgressDisplay(out, line="") as display:
        display.update("[/x]\x1b[2J", 1, 2)
    assert "[/x]␛[2J" in out.file.getvalue()
    assert "\x1b[2J" not in out.file.getvalue()


def test_no_command_makes_a_console_of_its_own(repo_root):
    package = repo_root / "src" / "profit_sft"
    made = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"(?<!Harmless)\bConsole\(", path.read_text(encoding="utf-8"))
    }
    assert made <= {"data/prepare.py"}  # a bar without a text of the data
