"""Programs that models write: what passes, what is stopped, and that nothing runs unasked."""

import os
import time

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.code_check import check_confirmed, confirm_run_unsafe_code, passes
from profit_sft.evaluation.tasks.paper import grade_code

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("print('x' * 100_000)", True),
        ("input()", False),
        ("1 +", False),
        ("import sys; sys.exit(0)", False),  # before its tests
        ("import os; os._exit(0)", False),
        ("while True: pass", False),
        ("x = bytearray(3 << 30)", False),
        ("open('big', 'wb').write(bytes(2 << 20))", False),
        ("open('small', 'wb').write(bytes(1 << 10))", True),
        ("import os; assert not os.listdir('.') and not set(os.environ) - {'LC_CTYPE'}", True),
        ("def check(): return token\ncheck()", False),
    ],
)
def test_a_program_passes_if_it_comes_to_its_end(program, passed):
    assert passes(program, cpu_seconds=1) is passed


def test_a_program_that_waits_is_stopped_with_what_it_started():
    began = time.monotonic()
    assert not passes("import time; time.sleep(60)", wall_seconds=1)
    assert not passes("import subprocess; subprocess.run(['sleep', '60'])", wall_seconds=1)
    assert time.monotonic() - began < 30


PROMPT = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Add them up."""\n'
DOC = {"prompt": PROMPT, "entry_point": "total", "test": "def check(f):\n    assert f([1, 2]) == 3"}


@pytest.mark.parametrize(
    ("text", "correct", "rule"),
    [
        ("```python\ndef total(numbers: List[int]) -> int:\n    return sum(numbers)\n```", True, "block"),
        ("Try\n```\ndef total(n):\n    return 3\n```\nUse it:\n```python\nprint(total([1]))\n```", True, "block"),
        ("    return sum(numbers)", True, "whole"),
        ("def total(numbers):\n    return 4", False, "whole"),
        ("```python\ndef total(numbers):\n    return sum(numbers)", True, "block"),  # cut off behind the function
        ("I cannot do that.", False, "whole"),
    ],
)
def test_the_function_is_found_in_an_answer(text, correct, rule):
    with confirm_run_unsafe_code():
        grade = grade_code(DOC, text)
    assert (grade.correct, grade.rule) == (correct, rule)


def test_nothing_runs_unless_it_was_allowed(monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(
        ConfigurationError,
        match="humaneval_paper runs code that the model wrote.*--confirm_run_unsafe_code.*HF_ALLOW_CODE_EVAL=1",
    ):
        grade_code(DOC, "    return 3")
    with confirm_run_unsafe_code():
        check_confirmed("humaneval_paper")
    with pytest.raises(ConfigurationError, match="leave humaneval_paper out"):
        check_confirmed("humaneval_paper")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    check_confirmed("humaneval_paper")
