"""A task on which strength is a dial: several-step arithmetic in characters, worded one of many ways.

A reference is `OPEN 12+30=42 LINK 42-4=38. CLOSE 38.`: the equations and the last number are its core, the words
around them its wording. An annotator of one's own words as the start was taught to; an alien one with words that it
has never seen. A wrong reference has a wrong number that later steps follow, or a wrong last number alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

CHARACTERS = sorted("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 +-*=.,:?")
PAD, EOS = 0, 1
ID_OF = {character: index + 2 for index, character in enumerate(CHARACTERS)}
VOCAB_SIZE = len(CHARACTERS) + 2
IGNORE_INDEX = -100
TEST_SEED, VALIDATION_SEED = 99, 78  # of the problems, of each skill in its turn; the task files have them, too
LARGEST_ANSWER = 180  # characters; of four steps in the longest wording, with room

_OWN = (
    ("", "We see ", "So ", "First ", "Note ", "Now "),
    (" then ", " next ", " and ", ", ", " so "),
    ("Answer: ", "Result: ", "So it is ", "Final: ", "That makes "),
)
_ALIEN = (
    ("Good day: ", "As asked, ", "Friends, "),
    (" whereupon ", " hence ", " leading on, "),
    ("In sum we hold ", "Verily it be ", "Tally stands at "),
)
WORDINGS = {"own": _OWN, "alien": _ALIEN}
STEPS = {"old": 2, "new": 3, "longer": 4}  # of a skill; the starts are taught the old one alone


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its equations: left, operation, right, result."""

    equations: tuple[tuple[int, str, int, int], ...]

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        first, *rest = self.equations
        return f"Q:{first[0]}{first[1]}{first[2]}" + "".join(f"{step[1]}{step[2]}" for step in rest) + "?A:"

    @property
    def answer(self) -> int:
        """The right last number."""
        return self.equations[-1][3]


@dataclass(frozen=True, slots=True)
class Reference:
    """A problem's prompt, an answer to learn from, and which of the answer's characters are core."""

    prompt: str
    answer: str
    is_core: tuple[bool, ...]


def draw_problem(random: Random, skill: str) -> Problem:
    """Draw a problem whose numbers stay between 0 and 139, from left to right."""
    while True:
        value, equations = random.randint(2, 99), []
        for _ in range(STEPS[skill]):
            operation, right = random.choice("+-"), random.randint(2, 40)
            result = value + right if operation == "+" else value - right
            equations.append((value, operation, right, result))
            value = result
        if all(0 <= step[3] <= 139 for step in equations):
            return Problem(tuple(equations))


def draw_problems(random: Random, skill: str, count: int) -> list[Problem]:
    """Draw problems; some may be alike."""
    return [draw_problem(random, skill) for _ in range(count)]


def task_data(*, seed: int, counts: dict[str, int], skill: str, **_: Any) -> dict[str, Any]:
    """Return the problems of a skill as the task files beside this one ask them, by the `metadata` there.

    Args:
        seed: Of the test or validation problems.
        counts: How many are drawn, by skill, one skill after the other.
        skill: Which of them are asked.
    """
    from datasets import Dataset

    random = Random(seed)
    drawn = {name: draw_problems(random, name, count) for name, count in counts.items()}
    return {"test": Dataset.from_list([{"prompt": one.prompt, "answer": str(one.answer)} for one in drawn[skill]])}


def draw_reference(random: Random, problem: Problem, *, wording: str, wrong_share: float) -> Reference:
    """Word an answer, wrong with this probability."""
    openings, links, closings = WORDINGS[wording]
    equations, said = list(problem.equations), problem.answer
    if random.random() < wrong_share:
        if random.random() < 0.5:
            said = _wrong(random, said)
        else:
            equations, said = _with_a_wrong_step(random, problem)
    parts = [(random.choice(openings), False)]
    for index, (left, operation, right, result) in enumerate(equations):
        parts += [(random.choice(links), False)] * (index > 0)
        parts.append((f"{left}{operation}{right}={result}", True))
    parts += [(". " + random.choice(closings), False), (f"{said}", True), (".", False)]
    return Reference(
        problem.prompt,
        "".join(text for text, _ in parts),
        tuple(core for text, core in parts for _ in text),
    )


def _with_a_wrong_step(random: Random, problem: Problem) -> tuple[list[tuple[int, str, int, int]], int]:
    """One result is wrong, and what follows is computed from it."""
    wrong_at, equations, value = random.randrange(len(problem.equations)), [], problem.equations[0][0]
    for index, (_, operation, right, _) in enumerate(problem.equations):
        result = value + right if operation == "+" else value - right
        if index == wrong_at:
            result = _wrong(random, result)
        result = max(result, 0)
        equations.append((value, operation, right, result))
        value = result
    return equations, value


def _wrong(random: Random, number: int) -> int:
    while True:
        found = max(0, number + random.choice([-10, -3, -2, -1, 1, 2, 3, 10]))
        if found != number:
            return found


@dataclass(frozen=True, slots=True)
class Coder:
    """Text to token ids and back, for one model.

    Attributes:
        encode: Token ids of a text, and how many characters each stands for.
        decode: The text of token ids.
        pad: Id of what fills up a batch.
        eos: Id of what ends an answer.
    """

    encode: Callable[[str], tuple[list[int], list[int]]]
    decode: Callable[[list[int]], str]
    pad: int
    eos: int

    def batch_of(self, references: list[Reference]) -> dict[str, Tensor]:
        """Return `input_ids`, `labels` and `attention_mask`, `(B, S)`; the answer and its end token carry labels."""
        rows = [(self.encode(row.prompt)[0], [*self.encode(row.answer)[0], self.eos]) for row in references]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        found: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for prompt, answer in rows:
            size = len(prompt) + len(answer)
            found["input_ids"].append(prompt + answer + [self.pad] * (longest - size))
            found["labels"].append([IGNORE_INDEX] * len(prompt) + answer + [IGNORE_INDEX] * (longest - size))
            found["attention_mask"].append([1] * size + [0] * (longest - size))
        return {name: torch.tensor(values) for name, values in found.items()}

    def answer_of(self, ids: list[int]) -> str:
        """Return the text of token ids up to the end token."""
        return self.decode(ids[: ids.index(self.eos)] if self.eos in ids else ids)


CHARACTER_CODER = Coder(
    encode=lambda text: ([ID_OF[character] for character in text], [1] * len(text)),
    decode=lambda ids: "".join(CHARACTERS[index - 2] for index in ids if index >= 2),
    pad=PAD,
    eos=EOS,
)


def last_number(text: str) -> int | None:
    """Return the last number of an answer, or None."""
    digits = "".join(character if character.isdigit() else " " for character in text).split()
    return int(digits[-1]) if digits and len(digits[-1]) < 10 else None
