"""A study file as it was written: its content, checked by pydantic models, and the line that a mistake is on."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from profit_sft.errors import ConfigurationError, brief
from profit_sft.files import read_yaml

Place = tuple[int | str, ...]  # of a value: ("cells", 2, "seed")

# Where pydantic speaks to Python programmers.
_WORDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
}
_EXAMPLES: dict[int | str, str] = {
    "dataset_name": "train.jsonl or `generated`",
    "cells": "[{objective: nll, seed: 0}]",
    "objective": "nll, dft or profit",
    "model_name_or_path": "`embedded` or Qwen/Qwen3-0.6B-Base",
}


class Section(BaseModel):
    """A mapping of the file. Values are taken as YAML reads them; null stands for an absent key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        known = list(cls.model_fields)
        unknown = {key: unknown_text(key, known) for key in content if key not in known}
        if unknown and cls.model_config["extra"] == "forbid":
            raise key_errors(unknown)
        return {key: value for key, value in content.items() if value is not None or key in unknown}


_SectionT = TypeVar("_SectionT", bound=Section)


@dataclass(frozen=True, slots=True)
class StudyFile:
    """What a study file says.

    Attributes:
        content: Its mapping.
        path: Where it was read. None: it is not from a file.
        root: Its YAML node, which knows the lines.
    """

    content: Mapping[str, Any]
    path: Path | None = None
    root: yaml.Node | None = None

    @classmethod
    def read(cls, path: str | Path) -> "StudyFile":
        """Read a file.

        Raises:
            ConfigurationError: See `profit_sft.files.read_yaml`.
        """
        content, root = read_yaml(path)
        return cls(content, Path(path), root)

    def parse(self, section: type[_SectionT]) -> _SectionT:
        """Return the whole content as this model.

        Raises:
            ConfigurationError: Something is missing, unknown or of another kind; every mistake is named on a line.
        """
        try:
            return section.model_validate(self.content)
        except ValidationError as error:
            mistakes = [
                self.error(*self._in_words(found["loc"], found["type"], found["msg"], found["input"]))
                for found in error.errors()
            ]
            raise ConfigurationError("\n".join(map(str, mistakes))) from None

    def error(self, place: Place, text: str) -> ConfigurationError:
        """Return the error for what is at `place`: file, line and the place's name, then `text`."""
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
        line = self._line(place)
        file = "" if self.path is None else f"{self.path}: " if line is None else f"{self.path}, line {line}: "
        return ConfigurationError(f"{file}{name}{brief(text, 1000)}")

    def _line(self, place: Place) -> int | None:
        """Return the line of the key or, where it is not in the file, of what it would be in."""
        node, line = self.root, None
        for key in place:
            if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                node = node.value[key]
                line = node.start_mark.line
            elif isinstance(node, yaml.MappingNode):
                # The last of a name is the one that counts; a merge (<<) has put what it brings before.
                mark, node = next(
                    ((name.start_mark, value) for name, value in reversed(node.value) if name.value == key),
                    (None, None),
                )
                line = line if mark is None else mark.line
        return None if line is None else line + 1

    def _in_words(self, place: Place, kind: str, message: str, value: Any) -> tuple[Place, str]:
        if kind == "value_error":  # of a validator of ours
            return place, message.removeprefix("Value error, ")
        if kind in ("missing", "too_short"):
            example = f", such as {_EXAMPLES[place[-1]]}" if place[-1] in _EXAMPLES else ""
            return place, f" is {'missing' if kind == 'missing' else 'empty: name at least one'}{example}."
        or_list = ""
        if isinstance(place[-1], int) and not isinstance(self._value(place[:-1]), list):  # see `one_or_more`
            place, or_list = place[:-1], ", or a list of them"
        text = f"must be {_WORDS[kind]}" if kind in _WORDS else message.replace("Input should", "must")
        hint = " YAML reads 1e-5 as text; write 1.0e-5." if kind == "float_type" and isinstance(value, str) else ""
        return place, f" {text}{or_list}, got {value!r}.{hint}"

    def _value(self, place: Place) -> Any:
        value: Any = self.content
        for key in place:
            value = value[key]
        return value


def one_or_more(value: Any) -> Any:
    """Wrap a value that is no list, for keys that take either."""
    return value if isinstance(value, list) else [value]


def key_errors(texts: Mapping[str, str]) -> ValidationError:
    """Return the error of a validator that finds fault with keys, each with the text that follows its name."""
    return ValidationError.from_exception_data(
        "keys",
        [{"type": "value_error", "loc": (key,), "input": None, "ctx": {"error": text}} for key, text in texts.items()],
    )


def unknown_text(key: str, known: Sequence[str]) -> str:
    """Return what to say of a name that does not exist: the nearest one, or all of a few."""
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}." if len(known) < 30 else ""
    return f" is unknown.{hint}"
