"""What is printed: one console for all commands, in which no text of data, paths or names can steer the terminal."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Controls (of the cursor, of colors, of the direction of text), halves of surrogate pairs, and separators of lines.
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
_KEPT = "\n\t\u200c\u200d"  # the last two join letters and emoji, and steer nothing


def harmless(text: str) -> str:
    r"""Return a text in which no character can steer a terminal: each that could is shown by a sign or its number.

    Args:
        text: Any text. Its line breaks and tabs stay.

    Example:
        >>> harmless("\x1b[2Jred\u202e\n")
        '␛[2Jred⟨U+202E⟩\n'
    """
    if text.isprintable():
        return text
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _STEERING:
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


class HarmlessConsole(Console):
    """Rich's console for texts that nobody has checked: `harmless`, and brackets are brackets, not markup."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Return a text as Rich's `Text`, of the width that it will have."""
        return super().render_str(harmless(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the pieces of whatever is printed: tables, bars, texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def console(*, stderr: bool = False, wrap: bool = True) -> HarmlessConsole:
    """Return the console of a command. Styles are given by `style=`; there is no markup.

    Args:
        stderr: Print there, as everything but data does.
        wrap: Leave it to the terminal to break long lines, so that a command can be copied. False: break at words.
    """
    return HarmlessConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=wrap)
