"""A package that a setting needs and that is not installed: one line that says what to install, before data is read."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread

import pytest

from profit_sft.cli.app import _exit_status, run_app

# Each with the package, and what the line must say. None of these is a dependency, so they are truly missing in tests.
MISSING = [
    (["--report_to", "wandb"], "wandb", "pip install wandb"),
    (["--report_to", "trackio"], "trackio", "pip install trackio"),
    (["--report_to", "mlflow"], "mlflow", "pip install mlflow"),
    (["--report_to", "comet_ml"], "comet_ml", "pip install comet-ml"),
    (["--report_to", "swanlab"], "swanlab", "pip install swanlab"),
    (["--report_to", "clearml"], "clearml", "pip install clearml"),
    (["--report_to", "codecarbon"], "codecarbon", "pip install codecarbon"),
    (["--report_to", "dvclive"], "dvclive", "pip install dvclive"),
    (["--report_to", "tensorboard"], "tensorboard", "install tensorboard"),
    (["--optim", "adamw_bnb_8bit"], "bitsandbytes", "bitsandbytes"),
    (["--optim", "paged_lion_8bit"], "bitsandbytes", "bitsandbytes"),
    (["--optim", "adamw_torch_8bit"], "torchao", "torchao"),
    (["--optim", "lomo"], "lomo_optim", "pip install lomo-optim"),
    (["--optim", "grokadamw"], "grokadamw", "pip install grokadamw"),
    (["--optim", "schedule_free_adamw"], "schedulefree", "pip install schedulefree"),
    (["--optim", "galore_adamw", "--optim_target_modules", "all-linear"], "galore_torch", "pip install"),
    (["--optim", "apollo_adamw", "--optim_target_modules", "all-linear"], "apollo_torch", "pip install"),
    (["--load_in_4bit", "True", "--use_peft", "True"], "bitsandbytes", "bitsandbytes"),
    (["--load_in_8bit", "True", "--use_peft", "True"], "bitsandbytes", "bitsandbytes"),
    (["--attn_implementation", "flash_attention_2"], "flash_attn", "pip install flash-attn"),
    (["--attn_implementation", "kernels-community/flash-attn2"], "kernels", "kernels"),
]


@pytest.mark.parametrize(("flags", "package", "said"), MISSING, ids=[" ".join(flags) for flags, *_ in MISSING])
def test_a_missing_package_is_told_before_data_is_read(flags, package, said, tiny_folder, tmp_path, capsys):
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    # There are no rows: a setting that is looked at only after they are read would give another error.
    where = ["--dataset_name", str(tmp_path / "none.jsonl"), "--output_dir", str(tmp_path / "run"), "--use_cpu", "True"]
    assert run_app(["train", "--model_name_or_path", tiny_folder, *where, *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert "install" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


WITHOUT_DEEPSPEED = [
    (["--deepspeed", '{"zero_optimization": {"stage": 2}}'], "deepspeed: DeepSpeed is not installed"),
    (["--accelerate_config", "recipes/accelerate/zero3_8gpu.yaml"], "8 ranks, ZeRO-3 needs DeepSpeed"),
]


@pytest.mark.parametrize(("flags", "said"), WITHOUT_DEEPSPEED, ids=["its own settings", "a launch"])
def test_deepspeed_that_is_missing_is_told(flags, said, tiny_folder, tmp_path, capsys, monkeypatch, repo_root):
    monkeypatch.chdir(repo_root)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    where = ["--dataset_name", str(tmp_path / "none.jsonl"), "--output_dir", str(tmp_path / "run"), "--use_cpu", "True"]
    assert run_app(["train", "--model_name_or_path", tiny_folder, *where, *flags]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "pip install deepspeed" in told
    assert len(told.splitlines()) == 1


# Of what an extra brings: the command, the package, the extra, and what says so.
OF_AN_EXTRA = [
    (["eval", "MODEL", "--tasks", "generated"], "lm_eval", "eval", "profit eval"),
    (["eval", "MODEL", "--tasks", "ifeval"], "langdetect", "eval", "profit eval"),
    (["merge", "MODEL", "--out", "merged"], "peft", "train", "profit merge"),
    (["train", "--model_name_or_path", "MODEL", "--dataset_name", "none.jsonl"], "trl", "train", "this command"),
    (["score", "none.jsonl", "--model", "MODEL", "--out", "scored"], "pyarrow", "train", "this command"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "package", "extra", "who"), OF_AN_EXTRA, ids=lambda value: str(value))
def test_a_missing_extra_is_told_by_the_command(arguments, package, extra, who, tiny_folder, tmp_path):
    """In a process of its own, since here the package has been imported already."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[0] = 'profit'; from profit_sft.cli import main; main()"
    )
    words = [tiny_folder if word == "MODEL" else word for word in arguments]
    found = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True
    )
    assert found.returncode == 2
    told = found.stderr.splitlines()[-1]
    needed = f"error: {who} needs the extra '{extra}': {package} is not installed. Run pip install '.[{extra}]'"
    assert told.startswith(needed)
    assert "Traceback" not in found.stderr


def test_whatever_else_asks_for_a_package_is_told_in_a_line(capsys):
    def library_of_another():
        raise ImportError("You need to install `some_kernels`: pip install some-kernels.\nSee its page.")

    def import_of_another():
        import surely_not_there.part  # noqa: F401

    assert _exit_status(library_of_another) == 2
    assert capsys.readouterr().err == "error: You need to install `some_kernels`: pip install some-kernels.\n"
    assert _exit_status(import_of_another) == 2
    assert "surely_not_there is not installed. Run pip install surely_not_there, or" in capsys.readouterr().err


def test_a_part_that_an_installed_package_lacks_keeps_its_traceback():
    def mistake_of_ours():
        import profit_sft.no_such_part  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        _exit_status(mistake_of_ours)


def test_a_name_that_a_package_lacks_keeps_its_traceback_wherever_it_is_installed(tmp_path, monkeypatch):
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "some_library.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "installed")

    def mistake_of_ours():
        from some_library import no_such_name  # noqa: F401

    with pytest.raises(ImportError, match="cannot import name 'no_such_name' .*installed"):
        _exit_status(mistake_of_ours)


@pytest.mark.slow
def test_a_model_that_cannot_be_pushed_is_told_with_where_it_is(tiny_folder, tmp_path):
    """A hub that takes the repository, and then nothing."""

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            takes = self.path.startswith("/api/repos/create")
            body = b'{"url": "http://127.0.0.1/a/b", "name": "b"}' if takes else b'{"error": "gone"}'
            self.send_response(200 if takes else 403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_POST

        def log_message(self, *args):
            pass

    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text('{"question": "What is 1 + 1?", "answer": "It is 2."}\n' * 4)
    flags = ["--use_cpu", "True", "--max_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    flags += ["--push_to_hub", "True", "--hub_model_id", "a/b", "--hub_token", "hf_x"]
    code = "from profit_sft.cli import main; main()"
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        # Its address is read when huggingface_hub is imported.
        address = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
        words = ["train", "--model_name_or_path", tiny_folder, "--dataset_name", str(rows), "--output_dir", str(run)]
        found = subprocess.run(
            [sys.executable, "-c", code, *words, *flags],
            env={**os.environ, **address},
            capture_output=True,
            text=True,
        )
        hub.shutdown()
    assert found.returncode == 1
    told = found.stderr.splitlines()[-1]
    assert f"error: push_to_hub: the trained model is in '{run}', whole, but could not be pushed" in told
    assert f"hf upload a/b {run}" in told
    assert (run / "model.safetensors").is_file()
