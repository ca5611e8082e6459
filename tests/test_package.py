"""The package's face: names, imports, errors, files, docs that are generated, code that the README shows."""

import ast
import graphlib
import os
import re
import subprocess
import sys

import pytest

import profit_sft
from forks import run_script
from profit_sft import errors
from profit_sft.files import atomic_path, write_text
from profit_sft.objectives import OBJECTIVES

PUBLIC = [
    "ASFT",
    "DEFT",
    "DFT",
    "EAFT",
    "NLL",
    "PSFT",
    "STM",
    "Focal",
    "Given",
    "HighEntropy",
    "Objective",
    "Power",
    "ProFit",
    "ProFitCallback",
    "ProFitConfig",
    "ProFitTrainer",
    "Rho",
    "SelectiveLoss",
    "TrSFT",
    "apply_profit",
    "make_objective",
    "remove_profit",
    "selective_cross_entropy",
    "selective_linear_cross_entropy",
    "token_weights",
]


def test_public_names_are_pinned_and_there():
    assert profit_sft.__all__ == PUBLIC
    assert {objective.__name__ for objective in OBJECTIVES.values()} < set(PUBLIC)
    for name in PUBLIC:
        assert getattr(profit_sft, name).__doc__
    with pytest.raises(AttributeError, match="module 'profit_sft' has no attribute 'profit'"):
        _ = profit_sft.profit


# What must not have been imported after a statement and those above it; all but the first are run in one process.
STATEMENTS = [
    ("import profit_sft.cli.app", ["torch", "transformers", "datasets", "trl", "numpy", "accelerate", "pydantic"]),
    ("import profit_sft.loss, profit_sft.objectives", ["transformers", "trl", "datasets", "peft"]),
    ("from profit_sft import ProFit, selective_linear_cross_entropy", ["transformers", "trl"]),
    ("import profit_sft.head", ["trl", "datasets", "profit_sft.train.trainer"]),
    ("import profit_sft.train.trainer", ["profit_sft.cli", "profit_sft.train.run"]),
]


@pytest.mark.parametrize("statements", [STATEMENTS[:1], STATEMENTS[1:]], ids=["the command", "the library"])
def test_imports_point_downward_and_stay_light(statements):
    code = "import sys\n" + "\n".join(
        f"{statement}; print({statement!r}, [name for name in {absent} if name in sys.modules])"
        for statement, absent in statements
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{statement} []" for statement, _ in statements]


def test_every_error_a_user_meets_is_a_profit_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProFitError)]
    kinds.remove(errors.ProFitError)
    assert {kind.__name__ for kind in kinds} == {
        "ConfigurationError",
        "DataError",
        "DownloadError",
        "LossBypassedError",
        "MissingExtraError",
        "UnsupportedModelError",
    }
    for kind in kinds:
        assert issubclass(kind, errors.ProFitError)
        assert kind.__name__ in (errors.__doc__ or "")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "report.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_interrupted_write_leaves_no_file_where_there_was_none(tmp_path):
    path = tmp_path / "report.txt"
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        assert temporary.parent == tmp_path  # on the same file system, or the rename would copy
        temporary.write_text("half")
        assert not path.exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_text_is_written_whole_over_what_was_there_as_utf8(tmp_path):
    path = tmp_path / "report.txt"
    write_text(path, "a longer text that was there before")
    write_text(str(path), "τ ≥ 0.1\n")
    assert path.read_bytes() == "τ ≥ 0.1\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_that_open_would_have_given(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "ours.txt", "x")
        (tmp_path / "plain.txt").write_text("x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("ours.txt", "plain.txt")]
    assert modes[0] == modes[1] == 0o666 & ~umask


def test_generated_pages_are_up_to_date(repo_root, tmp_path):
    status, printed = run_script(repo_root / "docs" / "generate.py", "--check", folder=tmp_path)
    assert status == 0, printed


def test_code_on_the_readme_runs(repo_root):
    blocks = re.findall(r"```python\n(.*?)```", (repo_root / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    done = subprocess.run([sys.executable, "-W", "error", "-c", blocks[0]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_that_the_pages_name_are_there(repo_root):
    pages = [repo_root / "README.md", *(repo_root / "docs").rglob("*.md"), *(repo_root / "recipes").rglob("*.yaml")]
    named = {(page.name, name) for page in pages for name in re.findall(r"\brecipes/[\w./-]*\w", page.read_text())}
    named |= {(page.name, name) for page in pages for name in re.findall(r"\bbenchmarks/\w+\.py", page.read_text())}
    assert len(named) > 20
    assert [(page, name) for page, name in named if not (repo_root / name).exists()] == []
    for page in (repo_root / "docs").rglob("*.md"):
        for link in re.findall(r"\]\(([^)h#][^)#]*)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)


# From the bottom up: a room imports from those before it. integrations stands beside them; a command alone imports it.
ROOMS = (
    *("errors", "ranges", "files", "terminal", "ranks", "interrupts", "objectives", "loss", "padding", "linears"),
    *("head_module", "head_forward", "head", "models", "data", "scores", "pages", "mask", "runs", "train"),
    *("integrations", "evaluation", "study", "quickstart", "cli"),
)


def imports_of(repo_root):
    """Return {module: modules of this package it imports, anywhere in its code}."""
    package = repo_root / "src" / "profit_sft"
    names = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("profit_sft."):
                of_package = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {entry if entry in names else node.module for entry in of_package}
    return found


def test_rooms_import_downward_and_no_module_in_a_circle(repo_root):
    found = imports_of(repo_root)
    del found["profit_sft"]  # the root's names, each loaded when it is asked for
    upward = [
        (module, other)
        for module, others in found.items()
        for other in others
        if ROOMS.index(other.split(".")[1]) > ROOMS.index(module.split(".")[1])
    ]
    assert upward == []
    importers = {module for module, others in found.items() if any("integrations" in other for other in others)}
    assert {module for module in importers if ".integrations." not in module} == {"profit_sft.cli.other_trainers"}
    list(graphlib.TopologicalSorter(found).static_order())  # raises CycleError


def test_readme_lists_every_module(repo_root):
    readme = (repo_root / "README.md").read_text()
    package = repo_root / "src" / "profit_sft"
    for path in package.rglob("*.py"):
        told_as_a_whole = path.relative_to(package).parts[0] in ("evaluation", "study", "cli")
        if not path.name.startswith("__") and not told_as_a_whole:
            assert re.search(rf"\b{path.name}", readme), path
    for path in package.iterdir():
        assert path.name.startswith("__") or path.name == "py.typed" or path.name in readme, path
    for link in re.findall(r"\]\(([^)h][^)]*)\)", readme):
        assert (repo_root / link).exists(), link
