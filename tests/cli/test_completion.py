"""Completion of a command line in a real bash, by the script that `profit --show-completion` gives it."""

import shutil
import stat
import subprocess
import sys

import pytest

from profit_sft.cli.train_flags import make_parser
from profit_sft.cli.train_help import flags_to_complete

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")
COMPLETE = """
eval "$(profit --show-completion)"
complete -p profit
shopt -s nullglob
read -r -a COMP_WORDS <<< "$1"
[[ $1 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_profit_completion profit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    """Return what bash offers for a line that was typed so far."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "profit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m profit_sft.cli "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def run(line):
        command = f'PATH="{folder}:$PATH"\n{COMPLETE}'
        found = subprocess.run(
            [BASH, "--norc", "-c", command, "bash", line], capture_output=True, text=True, check=True
        )
        assert found.stderr == ""
        script, *offered = found.stdout.splitlines()
        assert script == "complete -o default -F _profit_completion profit"  # by default: files
        return [word for word in offered if word]

    return run


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("profit sc", ["score"]),
        ("profit train --learn", ["--learning_rate"]),
        ("profit train --model embedded --learning-r", ["--learning_rate"]),
        ("profit train --threshold", ["--threshold", "--threshold_direction"]),
        ("profit train --mod", ["--model", "--model_name_or_path", "--model_revision", "--model_init_kwargs"]),
        ("profit train --dry", ["--dry-run"]),
        ("profit train --config ", []),
        ("profit train --data tr", []),
        ("profit score --max-b", ["--max_batch_tokens"]),
        ("profit score a --out b --mod", ["--model", "--model_name_or_path", "--model_revision"]),
        ("profit score --out", ["--out", "--output_dir"]),
    ],
)
def test_bash_offers_what_may_follow(completions, line, offered):
    assert sorted(completions(line)) == sorted(offered)


def test_every_flag_of_train_is_offered_and_none_twice():
    flags = list(flags_to_complete())
    assert len(flags) == len(set(flags))
    assert {f"--{action.dest}" for action in make_parser()._actions} <= set(flags)
