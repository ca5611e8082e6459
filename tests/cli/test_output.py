"""Where a command is to write: what cannot be written to is refused in one line, before anything else is done."""

import pytest
import typer

from profit_sft.cli.app import app, run_app

FOLDER = "cannot be a folder"
# Command lines, each with what of it names an output, and what is said where a file, and a folder, has that name.
OUTPUTS = {
    "train": (["--data", "ROWS", "--model", "MODEL"], {"--out": FOLDER}),
    "score": (["ROWS", "--model", "MODEL"], {"--out": FOLDER}),
    "inspect": (["--data", "ROWS", "--model", "MODEL"], {"--scores_dir": FOLDER, "--out": None}),
    "advise": (["--data", "ROWS", "--model", "MODEL"], {"--scores_dir": FOLDER}),
    "report": (["MODEL"], {"--out": None}),
    "merge": (["MODEL"], {"--out": "is there already"}),
    "quickstart": ([], {"--out": FOLDER}),
    "eval": (["MODEL", "--tasks", "generated"], {"--out": FOLDER}),
    "study": (["STUDY"], {"--out": FOLDER}),
}
WRITTEN = ("output_dir", "output_file", "scores_dir")
CASES = [(command, flag) for command, (_, flags) in OUTPUTS.items() for flag in flags]


@pytest.fixture
def refused(rows, tiny_folder, repo_root, tmp_path, monkeypatch, capsys):
    """Run a command whose output has this path, and return the one line that refuses it."""
    parts = {"ROWS": rows, "MODEL": tiny_folder, "STUDY": str(repo_root / "recipes/studies/one-to-many.yaml")}
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def run(command, flag, path):
        words = [parts.get(word, word) for word in OUTPUTS[command][0]]
        assert run_app([command, *words, flag, path]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before
        assert (tmp_path / "file").read_text() == "kept"
        lines = [line for line in err.splitlines() if not line.startswith(FACTS)]
        assert lines[0].startswith("error: ")
        return " ".join(lines)

    return run


FACTS = ("model ", "objective ", "data ", "batch ", "device ", "output ")  # with which `profit train` begins


def test_every_output_of_a_command_is_in_the_table():
    for name, command in typer.main.get_command(app).commands.items():
        flags = {next(iter(param.opts)) for param in command.params if param.name in WRITTEN}
        assert flags == set(OUTPUTS.get(name, (None, {}))[1]) - ({"--out"} if name == "train" else set()), name


@pytest.mark.parametrize(("command", "flag"), [case for case in CASES if OUTPUTS[case[0]][1][case[1]] is not None])
def test_a_file_is_no_folder_to_write_to(refused, command, flag):
    said = refused(command, flag, "file")
    assert OUTPUTS[command][1][flag] in said
    assert "Choose another" in said
    assert "'file'" in said


@pytest.mark.parametrize(("command", "flag"), CASES)
def test_nothing_can_be_written_below_a_file(refused, command, flag):
    said = refused(command, flag, "file/below")
    assert FOLDER in said
    assert "/file' is none. Choose another." in said
    assert said.split()[1] in [f"{name}:" for name in WRITTEN if name.startswith(flag[2:5])]


@pytest.mark.parametrize(("command", "flag"), [case for case in CASES if OUTPUTS[case[0]][1][case[1]] is None])
def test_a_folder_is_no_file_to_write_to(refused, command, flag):
    assert "output_file: 'folder' is a folder. Name a file in it." in refused(command, flag, "folder")


@pytest.mark.parametrize(("command", "flag"), CASES)
def test_an_empty_name_is_not_the_current_folder(refused, command, flag):
    if flag in ("--output_dir", "--output_file", "--out"):
        assert f"{flag} is empty" in refused(command, flag, "")


@pytest.mark.parametrize("words", [[], ["--out"], ["score", "--out"], ["train", "--out"]], ids=" ".join)
def test_a_line_that_ends_early_is_read_to_its_end(words, capsys):
    assert run_app(words) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert (out + err).strip()
