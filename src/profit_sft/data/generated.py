"""A generated data set with many right wordings for one answer: short arithmetic stories, seeded.

What a solution must say (the equations and the final number: "core") is fixed by the problem; how it says it (all
other text: "style") is drawn from hundreds of wordings. Every character of a solution is marked as one or the other, so
that a token objective can be judged by what it keeps.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

from profit_sft.files import write_text

T = TypeVar("T")
Operation = Literal["+", "-", "*"]
SpanKind = Literal["core", "style"]
Split = Literal["train", "test"]

# Difficulty, chosen by measurement: embedded SmolLM2-135M-Instruct in fp32, 240 training problems (64 tokens a row with
# SYSTEM_PROMPT, 77 with the template's own), one epoch of batch 8, AdamW at 5e-5, 48 test problems decoded greedily,
# one seed. Plain NLL training took 130 s on two shared cores (118 tokens/s), accuracy rose from 8% to 60% and NLL fell
# from 2.55 to 0.58. Masking p < 0.1 gave 54% and NLL 3.29; at 3e-5 plain NLL gave 54%, masking 62%. The standard error
# is 7 points, so this does not rank the two objectives. Two steps (86 tokens a row): 2% to 40% with plain NLL at 5e-5.
# No wording of one step takes over 33 tokens, of two steps 51.
DEFAULT_STEPS = 1
DEFAULT_LARGEST = 50
SYSTEM_PROMPT = "Solve."

TEST_SHARE = 0.2  # of all number combinations
MAX_STEPS = 3
MAX_PROBLEMS = 50_000  # ten seconds
_MAX_MISSES = 100_000  # one after the other; of one step there are 2,000 problems, of two 80,000


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """Characters `start` to `end` (exclusive) of an answer, all of one kind."""

    start: int
    end: int
    kind: SpanKind


@dataclass(frozen=True, slots=True)
class ArithmeticStep:
    """One equation of a problem."""

    left: int
    operation: Operation
    right: int

    @property
    def result(self) -> int:
        """What the equation evaluates to."""
        if self.operation == "+":
            return self.left + self.right
        return self.left - self.right if self.operation == "-" else self.left * self.right

    def __str__(self) -> str:
        return f"{self.left} {self.operation} {self.right} = {self.result}"


@dataclass(frozen=True, slots=True)
class GeneratedProblem:
    """A story, its numbers, and one of its many right solutions."""

    question: str
    solution: str
    spans: tuple[AnswerSpan, ...]  # in order, without gap or overlap, alternating in kind
    final_answer: int
    steps: tuple[ArithmeticStep, ...]
    name: str
    item: str


def generate_problems(
    count: int, *, seed: int, split: Split = "train", steps: int = DEFAULT_STEPS, largest: int = DEFAULT_LARGEST
) -> list[GeneratedProblem]:
    """Generate `count` problems; the same arguments give the same problems on every machine and Python version.

    No two of them share their numbers, and no problem of one split shares its numbers with any problem of the other,
    whatever the seeds: which split a combination of numbers belongs to is a function of the numbers.

    Args:
        count: How many, at most `MAX_PROBLEMS`.
        seed: Any int.
        split: "train" has 80% of all number combinations, "test" the others.
        steps: Equations per solution, 1 to 3.
        largest: No number of a sum or difference exceeds it; at least 10. Factors stay below 10.

    Raises:
        ValueError: An argument is out of range, or so many different problems do not exist.

    Example:
        >>> problem = generate_problems(1, seed=0)[0]
        >>> problem.final_answer == problem.steps[-1].result
        True
    """
    if not 0 <= count <= MAX_PROBLEMS or not 1 <= steps <= MAX_STEPS or largest < 10 or split not in ("train", "test"):
        raise ValueError(
            f"cannot generate count={count}, steps={steps}, largest={largest}, split={split!r}. Use count 0 to "
            f"{MAX_PROBLEMS}, steps 1 to {MAX_STEPS}, largest >= 10, split 'train' or 'test'."
        )
    random = Random(seed)
    problems: dict[tuple[ArithmeticStep, ...], GeneratedProblem] = {}
    misses = 0  # since the last new one
    while len(problems) < count:
        equations = _draw_steps(random, steps, largest)
        if _split_of(equations) != split or equations in problems:
            misses += 1
            if misses > _MAX_MISSES:
                raise ValueError(
                    f"found only {len(problems)} different problems of the {split} split with steps={steps} and "
                    f"largest={largest}, {count} were asked for. Lower count, or raise steps or largest."
                )
            continue
        problems[equations] = _tell(random, equations)
        misses = 0
    return list(problems.values())


def to_row(problem: GeneratedProblem, *, system_prompt: str | None = None) -> dict[str, Any]:
    """Return the problem as a chat row.

    Args:
        problem: The problem.
        system_prompt: Put in front as a system message, such as `SYSTEM_PROMPT`. Without one SmolLM2's chat template
            adds its own, which is 13 tokens longer.

    Returns:
        `messages`, `answer_spans` (start, end and kind, in characters of the assistant's message) and `final_answer`.
    """
    messages = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": problem.solution}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    spans = [{"start": span.start, "end": span.end, "kind": span.kind} for span in problem.spans]
    return {"messages": messages, "answer_spans": spans, "final_answer": problem.final_answer}


def write_jsonl(problems: Iterable[GeneratedProblem], path: str | Path, *, system_prompt: str | None = None) -> None:
    """Write one `to_row` a line to `path`, completely or not at all."""
    rows = (json.dumps(to_row(problem, system_prompt=system_prompt)) for problem in problems)
    write_text(path, "".join(f"{row}\n" for row in rows))


def _pick(random: Random, options: Sequence[T]) -> T:
    # Of Random's methods only random() is documented to keep its sequence in later Python versions.
    return options[int(random.random() * len(options))]


def _draw_steps(random: Random, count: int, largest: int) -> tuple[ArithmeticStep, ...]:
    """Draw equations whose numbers lie in [1, largest], products aside; each goes on with the last one's result."""
    if _pick(random, (True, False, False)):
        steps = [ArithmeticStep(_pick(random, range(2, 10)), "*", _pick(random, range(2, 10)))]
    else:
        steps = [_draw_step(random, _pick(random, range(3, largest)), largest)]
    while len(steps) < count:
        steps.append(_draw_step(random, steps[-1].result, largest))
    return tuple(steps)


def _draw_step(random: Random, left: int, largest: int) -> ArithmeticStep:
    can_add = left + 2 <= largest
    can_subtract = left >= 4
    operation: Operation = "-" if can_subtract and (not can_add or _pick(random, (True, False))) else "+"
    limit = left - 1 if operation == "-" else max(3, largest - left + 1)
    return ArithmeticStep(left, operation, _pick(random, range(2, limit)))


def _split_of(steps: tuple[ArithmeticStep, ...]) -> Split:
    # Sorted, so that 3 + 5 and 5 + 3 share a split. A CRC, since hash() differs between runs.
    numbers = sorted([steps[0].left, *(step.right for step in steps)])
    key = f"{numbers}{sorted(step.operation for step in steps)}"
    return "test" if zlib.crc32(key.encode()) % 1000 < 1000 * TEST_SHARE else "train"


# The tables. {n} is the name, {i} the item. A piece of wording never contains a digit, or it would look like core.
# Split strings: as list literals the names would take forty lines.
_NAMES = "Anna Ben Carla Dan Ella Finn Gina Hugo Ivy Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Will".split()  # noqa: SIM905
_ITEMS = "apples books cards coins cups eggs flowers keys lemons marbles pens plums shells stamps stones toys".split()  # noqa: SIM905
_START = ("{n} has {a} {i}.", "{n} starts with {a} {i}.", "{n} owns {a} {i}.")
_START_GROUPS = (
    "{n} has {a} bags of {b} {i}.",
    "{n} fills {a} boxes with {b} {i} each.",
    "{n} owns {a} sets of {b} {i}.",
)
_EVENTS: dict[Operation, tuple[str, ...]] = {
    "+": ("{n} buys {b} more.", "{n} finds {b} more.", "A friend brings {b} more.", "{n} gets {b} more."),
    "-": ("{n} sells {b}.", "{n} loses {b}.", "{n} gives away {b}.", "Then {b} get lost."),
}
_ASK = ("How many {i} does {n} have now?", "How many {i} are there now?", "How many {i} is that now?")

# Wording in front of and behind the core text of a slot.
_Wording = tuple[str, str]
_OPENERS = ("", "Let us see. ", "We count. ")
_FIRST_LINKS = ("", "First, ")
_LINKS = ("", "Then ", "Next, ", "After that ")
_EQUATIONS: dict[Operation, tuple[_Wording, ...]] = {
    "+": (
        ("we add: ", ". "),
        ("adding gives ", ". "),
        ("the number grows: ", ". "),
        ("with the new {i} ", ". "),
        ("put them together: ", ". "),
        ("", " because more come in. "),
        ("", " after adding. "),
        ("", " with the new {i}. "),
    ),
    "-": (
        ("we subtract: ", ". "),
        ("taking away gives ", ". "),
        ("the number falls: ", ". "),
        ("without those {i} ", ". "),
        ("remove what is gone: ", ". "),
        ("", " because some are gone. "),
        ("", " after the loss. "),
        ("", " without those {i}. "),
    ),
    "*": (
        ("we multiply: ", ". "),
        ("all groups hold ", ". "),
        ("count every group: ", ". "),
        ("the groups make ", ". "),
        ("times the size of a group: ", ". "),
        ("", " in all groups. "),
        ("", " because the groups are equal. "),
        ("", " by multiplying. "),
    ),
}
_CLOSINGS: tuple[_Wording, ...] = (
    ("The answer is ", "."),
    ("Answer: ", ""),
    ("So the answer is ", "."),
    ("So {n} has ", " {i}."),
    ("That makes ", " {i}."),
    ("Now there are ", " {i}."),
    ("{n} has ", " now."),
    ("Result: ", "."),
    ("Hence ", " {i}."),
    ("We end with ", " {i}."),
    ("The total is ", "."),
    ("In the end ", " {i}."),
)


def _tell(random: Random, steps: tuple[ArithmeticStep, ...]) -> GeneratedProblem:
    name, item = _pick(random, _NAMES), _pick(random, _ITEMS)
    first, rest = steps[0], steps
    if first.operation == "*":
        sentences = [_pick(random, _START_GROUPS).format(n=name, i=item, a=first.left, b=first.right)]
        rest = steps[1:]
    else:
        sentences = [_pick(random, _START).format(n=name, i=item, a=first.left)]
    sentences += [_pick(random, _EVENTS[step.operation]).format(n=name, b=step.right) for step in rest]
    sentences.append(_pick(random, _ASK).format(n=name, i=item))
    solution, spans = _solve(random, steps, name, item)
    return GeneratedProblem(" ".join(sentences), solution, spans, steps[-1].result, steps, name, item)


def _slots(steps: tuple[ArithmeticStep, ...]) -> Iterator[tuple[str, tuple[_Wording, ...]]]:
    """Yield each core text with the wordings that may stand around it."""
    for index, step in enumerate(steps):
        starts = [opener + link for opener in _OPENERS for link in _FIRST_LINKS] if index == 0 else _LINKS
        yield (
            str(step),
            tuple(
                # Only what opens a sentence gets a capital.
                (start + (before.capitalize() if not start or start.endswith(". ") else before), after)
                for start in starts
                for before, after in _EQUATIONS[step.operation]
            ),
        )
    yield str(steps[-1].result), _CLOSINGS


def _solve(
    random: Random, steps: tuple[ArithmeticStep, ...], name: str, item: str
) -> tuple[str, tuple[AnswerSpan, ...]]:
    """Draw a wording for each slot; return the text and its spans."""
    pieces: list[tuple[SpanKind, str]] = []
    for core, options in _slots(steps):
        before, after = _pick(random, options)
        pieces += [("style", before.format(n=name, i=item)), ("core", core), ("style", after.format(n=name, i=item))]
    spans: list[AnswerSpan] = []
    end = 0
    for kind, text in pieces:
        start, end = end, end + len(text)
        if spans and spans[-1].kind == kind:
            spans[-1] = AnswerSpan(spans[-1].start, end, kind)
        elif text:
            spans.append(AnswerSpan(start, end, kind))
    return "".join(text for _, text in pieces), tuple(spans)
