"""Reading a mapping that a person wrote: every value checked where it stands, every unknown key refused by name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from profit_sft.errors import ConfigurationError

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


class Section:
    """One mapping of the file and where it stands, such as `cells[2]`. Take what is known, then call `finish`."""

    def __init__(self, place: str, content: Any) -> None:
        if not isinstance(content, Mapping):
            raise ConfigurationError(f"{place} must be a mapping of names to values, got {content!r}.")
        self.place = place
        self._left = dict(content)
        self._known: list[str] = []

    def at(self, key: str) -> str:
        """Return the full name of a key, as error messages write it."""
        return f"{self.place}.{key}" if self.place else key

    def take(self, key: str, kind: type, default: Any = None, *, required: bool = False) -> Any:
        """Return the value of `key` and tick it off.

        Args:
            key: Name of the key.
            kind: str, int, float (which takes whole numbers too), bool, dict, list, or object for anything.
            default: Returned when the key is absent or null.
            required: Refuse an absent key.

        Raises:
            ConfigurationError: The value is of another kind, or missing.
        """
        self._known.append(key)
        value = self._left.pop(key, None)
        if value is None:
            if required:
                raise ConfigurationError(f"{self.at(key)} is missing. It must be {_WORDS[kind]}.")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            hint = " YAML reads 1e-5 as text; write 1.0e-5." if kind is float and isinstance(value, str) else ""
            raise ConfigurationError(f"{self.at(key)} must be {_WORDS[kind]}, got {value!r}.{hint}")
        return value

    def take_count(self, key: str, default: int | None = None, *, least: int = 1) -> int | None:
        """Return a whole number of at least `least`."""
        value: int | None = self.take(key, int, default)
        if value is not None and value < least:
            raise ConfigurationError(f"{self.at(key)} must be at least {least}, got {value}.")
        return value

    def take_positive(self, key: str, default: float | None = None) -> float | None:
        """Return a number above 0."""
        value: float | None = self.take(key, float)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigurationError(f"{self.at(key)} must be above 0, got {value}.")
        return default if value is None else value

    def take_choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str | None:
        """Return one of `choices`."""
        value: str | None = self.take(key, str, default)
        if value is not None and value not in choices:
            raise ConfigurationError(f"{self.at(key)} must be one of {', '.join(choices)}, got {value!r}.")
        return value

    def rest(self) -> dict[str, Any]:
        """Return what was not taken, and tick it all off."""
        rest, self._left = self._left, {}
        return rest

    def finish(self) -> None:
        """Refuse what was not taken."""
        for key in self._left:
            raise unknown_key(self.at(str(key)), str(key), self._known)


def unknown_key(place: str, key: str, known: Sequence[str]) -> ConfigurationError:
    """Return the error for a key that does not exist; it names the nearest one, or all of a few."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}." if len(known) < 30 else ""
    return ConfigurationError(f"{place} is unknown. {hint}".rstrip())
