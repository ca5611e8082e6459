"""`profit train` from end to end as recipes/accelerate starts it: two processes train, save and resume as one does.

Two nodes, and the command that launches itself, are started by accelerate; others get from it the environment that the
recipe's file asks for.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from distributed.launched import (
    TIMEOUT_SECONDS,
    accelerate_environment,
    deepspeed_fault,
    environment,
    launch_as_node,
    with_cpu_engines,
)
from forks import run_ranks, start
from profit_sft.cli.app import run_app
from tiny import save_tiny_chat_model, write_questions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (str(Path(__file__).with_name("cpu_engines.py")), "profit_sft.cli")
ROWS_A_STEP, STEPS, SAVED = 12, 4, 2
ON_CPUS = {"DS_ACCELERATOR": "cpu"}


def of_recipe(recipe: str) -> list[str]:
    """Flags of `accelerate launch`: the recipe's own file, with what CPUs need: fewer processes, fp32, and gloo."""
    file = str(ROOT / "recipes" / "accelerate" / f"{recipe}.yaml")
    return ["--config_file", file, "--num_processes", "2", "--mixed_precision", "no"]


def run_launched(flags: list[str], words: list[str], folder: Path, *, processes: int = 2) -> None:
    """Run the words as that many processes, in the environment that `accelerate launch` with the flags gives them."""
    statuses, printed = run_ranks(
        *(with_cpu_engines, run_app, [*words, *batch(processes), "--output_dir", str(folder)]),
        folder=folder.with_name("printed"),
        ranks=processes,
        environment={**accelerate_environment(*flags, "--main_process_port", "0"), **ON_CPUS},
        timeout_seconds=TIMEOUT_SECONDS,
    )
    assert not any(statuses), f"{statuses}: {printed[-8000:]}"


def batch(processes: int) -> list[str]:
    steps = ROWS_A_STEP // (2 * processes)
    return ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", str(steps)]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a run that masks in every step, all but batch and output folder."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = write_questions(folder / "rows.jsonl", 48, ragged=True)
    return [
        *("train", "--model_name_or_path", save_tiny_chat_model(folder / "model"), "--dataset_name", rows),
        *("--threshold", "0.0033", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant"),
        *("--logging_steps", "1", "--save_strategy", "steps", "--save_steps", str(SAVED)),
        *("--max_steps", str(STEPS), "--gradient_checkpointing", "False"),
    ]


@pytest.fixture(scope="module")
def one_process(flags, tmp_path_factory):
    """The run folder of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert run_app([*flags, *batch(1), "--output_dir", str(folder), "--use_cpu", "True"]) == 0
    return folder


def steps_of(folder: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def logits_of(folder: Path) -> torch.Tensor:
    """Load the folder with plain transformers and return its logits of a sentence."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    input_ids = AutoTokenizer.from_pretrained(folder)("What is two plus two?", return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def check(folder: Path, one_process: Path, flags: list[str], *, first: int = 1) -> None:
    """Steps from `first` on, and the model at the end, are those of one process."""
    found, expected = steps_of(folder), steps_of(one_process)
    assert sorted(found) == list(range(first, STEPS + 1))
    for step, line in found.items():
        assert 0.1 < line["kept_share"] < 0.95
        for name in ("loss", "grad_norm", "nll", "kept_share", "mean_p_kept", "num_tokens"):
            assert line[name] == pytest.approx(expected[step][name], rel=1e-5), (step, name)
    logits, start = logits_of(folder), logits_of(Path(flags[2]))
    torch.testing.assert_close(logits, logits_of(one_process), rtol=0, atol=1e-5)
    assert (logits - start).abs().max() > 1e-2


def stopped(folder: Path) -> Path:
    """A folder as a run leaves it that was stopped at the checkpoint in the middle."""
    left = folder.with_name("resumed")
    left.mkdir()
    shutil.copytree(folder / f"checkpoint-{SAVED}", left / f"checkpoint-{SAVED}")
    return left


def test_fsdp2_trains_as_one_process(flags, one_process, tmp_path):
    """Going on with another number of ranks is seen where the command launches itself."""
    run_launched(of_recipe("fsdp2_8gpu"), flags, tmp_path / "run")
    check(tmp_path / "run", one_process, flags)


def test_zero3_trains_and_goes_on_as_one_process(flags, one_process, tmp_path):
    if (fault := deepspeed_fault()) is not None:
        pytest.skip(fault)
    folder = tmp_path / "run"
    run_launched(of_recipe("zero3_8gpu"), flags, folder)
    check(folder, one_process, flags)
    run_launched(of_recipe("zero3_8gpu"), [*flags, "--resume_from_checkpoint", "latest"], stopped(folder))
    check(folder.with_name("resumed"), one_process, flags, first=SAVED + 1)


def test_two_nodes_train_as_one_process(flags, one_process, tmp_path):
    folder = tmp_path / "run"
    words = [*COMMAND, *flags, *batch(2), "--output_dir", str(folder)]
    statuses, printed = run_ranks(
        *(launch_as_node, of_recipe("two_nodes"), words),
        folder=tmp_path / "printed",
        environment=environment(**ON_CPUS),
        timeout_seconds=TIMEOUT_SECONDS,
    )
    assert statuses == [0, 0], printed[-8000:]
    check(folder, one_process, flags)


@pytest.fixture
def on_cpus(tmp_path, monkeypatch):
    """The recipe for eight GPUs with nothing changed but its precision; processes it starts take up FSDP on CPUs."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'LOCAL_RANK' in os.environ:\n"
        f"    sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "    import cpu_engines\n"
        "    cpu_engines.install()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    settings = yaml.safe_load((ROOT / "recipes" / "accelerate" / "fsdp2_8gpu.yaml").read_text())
    file = tmp_path / "fsdp2.yaml"
    file.write_text(yaml.safe_dump(settings | {"mixed_precision": "no", "main_process_port": 0}))
    return str(file)


def test_the_command_launches_itself_as_the_file_says_and_goes_on_from_its_own_settings(
    flags, one_process, on_cpus, tmp_path
):
    """It goes on with another number of ranks; below is a run that launches itself again."""
    folder = tmp_path / "run"
    named = ["--accelerate_config", on_cpus, "--num_processes", "2"]
    words = [*flags, *batch(2), *named, "--output_dir", str(folder)]
    process = start(words, tmp_path / "log", **environment(**ON_CPUS))
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()[-8000:]
    check(folder, one_process, flags)
    left = stopped(folder)
    words = ["train", "--config", str(folder / "config.yaml"), "--resume_from_checkpoint", "latest"]
    three = ["--num_processes", "3"]
    run_launched(["--config_file", on_cpus, *three], [*words, *three], left, processes=3)
    check(left, one_process, flags, first=SAVED + 1)
    assert json.loads((left / "environment.json").read_text())["world_size"] == 3


def processes_of(folder: Path) -> list[str]:
    """The command lines that name the folder, zombies aside."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc, which is Linux's")
def test_however_the_command_ends_its_ranks_save_a_checkpoint_and_end_too_and_it_goes_on(flags, on_cpus, tmp_path):
    """It is asked to stop, goes on by the command that it prints, and is killed."""
    folder, log = tmp_path / "run", tmp_path / "log"
    long = ["--max_steps", "2000", "--save_strategy", "no", "--output_dir", str(folder)]
    words = [*flags, *batch(2), "--accelerate_config", on_cpus, "--num_processes", "2", *long]
    metrics, before, saved = folder / "metrics.jsonl", 0, set()
    for number, status in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(words, log, **environment(**ON_CPUS))
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not metrics.exists() or metrics.read_text().count('"loss"') <= before:
            assert process.is_alive(), log.read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.join(TIMEOUT_SECONDS)
        assert process.exitcode == status
        while processes_of(folder):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (checkpoint,) = set(folder.glob("checkpoint-*")) - saved
        assert (checkpoint / "trainer_state.json").is_file()
        saved.add(checkpoint)
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
        assert steps == list(range(1, len(steps) + 1))
        before, said = len(steps), log.read_text()
        assert "2 ranks, FSDP2" in said
        assert "Traceback" not in said
        words = shlex.split(said.split("Go on with:\n", 1)[1].splitlines()[0])[1:]
    assert json.loads((folder / "environment.json").read_text())["world_size"] == 2


def test_what_was_not_launched_as_the_file_says_is_refused(flags, on_cpus, tmp_path):
    folder = tmp_path / "run"
    words = [*flags, "--accelerate_config", on_cpus, "--output_dir", str(folder)]
    statuses, printed = run_ranks(
        *(with_cpu_engines, run_app, words), folder=tmp_path / "printed", environment={**os.environ, **ON_CPUS}
    )
    assert 2 in statuses, printed[-4000:]
    assert f"accelerate_config: '{on_cpus}' asks for 8 ranks, FSDP2, and launched is 2 ranks, DDP." in printed
    assert not folder.exists()


def test_a_mistake_under_a_file_is_one_line_before_anything_is_launched(flags, on_cpus, tmp_path, capfd):
    without_data = [*flags[:3], "--accelerate_config", on_cpus, "--output_dir", str(tmp_path / "run")]
    assert run_app(without_data) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: dataset_name is missing")
    assert err.count("\n") == 1
