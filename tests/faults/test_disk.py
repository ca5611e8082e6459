"""A disk that is full, or a limit on the size of files: the same to a program, and what `RLIMIT_FSIZE` can make."""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from injection import ended, report
from safetensors import SafetensorError, safe_open

from campaign import sampled
from profit_sft.files import atomic_path

pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")


@contextmanager
def full_after(size: int):
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def torn_files(folder: Path) -> list[str]:
    """Return files that say they are complete and are not."""
    found = [str(path) for path in folder.rglob("*.tmp")]
    for path in folder.rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(str(path))
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            found.append(str(path))
    return [path for path in found if "/.saving" not in path]


COMMANDS = {
    "train": lambda train, rows, model, out: [*train, "--save_strategy", "steps", "--save_steps", "1"],
    "score": lambda train, rows, model, out: ["score", rows, "--model", model, "--out", f"{out}/scores"],
    "inspect": lambda train, rows, model, out: [
        *("inspect", "--dataset_name", rows, "--model_name_or_path", model, "--scores_dir", f"{out}/scores"),
    ],
    "eval": lambda train, rows, model, out: [
        *("eval", model, "--tasks", "generated", "--output_dir", f"{out}/eval", "--greedy", "--limit", "4"),
        *("--max_new_tokens", "8"),
    ],
}
SIZES = (0, 10, 200, 1000, 3000, 5000, 10_000, 20_000, 40_000, 60_000, 100_000, 150_000)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(command, train, rows, tiny_folder, tmp_path, capsys):
    found = {}
    for size in sampled(SIZES, 4):
        out = tmp_path / "out"
        out.mkdir()
        words = COMMANDS[command](
            [word.replace("/out/run", f"/out/run{size}") for word in train], rows, tiny_folder, out
        )
        with full_after(size):
            _, defect = ended(words, capsys)
        torn = torn_files(out)
        found[f"{command}, {size} bytes"] = defect or (f"half written: {torn[:3]}" if torn else None)
        out.rename(tmp_path / f"out of {size}")
    report(f"full disk, {command}", found)


def test_the_file_that_had_no_room_is_named(tmp_path):
    path = tmp_path / "report.html"
    with full_after(100), pytest.raises(OSError, match="File too large") as caught, atomic_path(path) as temporary:
        temporary.write_text("x" * 10_000)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
