"""`profit train`: YAML and flags in, one training run out, here or under `accelerate launch` of the same command."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from profit_sft.cli.data import data_facts, print_notes
from profit_sft.cli.progress import quiet_libraries
from profit_sft.interrupts import signals_handled, stop_with_parent
from profit_sft.ranks import works_here
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.runs.record import RunRecord
    from profit_sft.train.arguments import RunArguments
    from profit_sft.train.dry_run import DryRunReport, SettingsReport
    from profit_sft.train.run import RunResult

_ON_CPU = ("--use_cpu", "True")
_LAUNCHED = "PROFIT_LAUNCHED"  # a launcher leaves no mark of its own in a single process


def train_command(context: typer.Context) -> int:
    """Hand the arguments to TRL's parser, which knows every flag, and run or dry-run."""
    import torch
    from accelerate import PartialState

    from profit_sft.cli.train_flags import names_a_launch, normalized, parse
    from profit_sft.cli.training_bar import TrainingBar
    from profit_sft.train.dry_run import dry_run
    from profit_sft.train.run import check_before_launch, run_training

    quiet_libraries()
    dry = "--dry_run" in map(normalized, context.args)
    if dry and not works_here("train --dry-run"):
        return 0
    if is_launched_here():
        stop_with_parent()  # `launch`, which also tells it to
    environment = dict(os.environ)
    launches = not dry and not is_launched() and names_a_launch(context.args)
    # What only launches leaves the accelerators to what it launches; a dry run can do without.
    on_cpu = launches or (dry and not torch.accelerator.is_available())
    job, only_dry, as_json = parse([*context.args, *(_ON_CPU if on_cpu else ())])
    job.config.disable_tqdm = True
    if launches:
        check_before_launch(job)
        return launch(job.run, context.args, environment)
    if only_dry:
        print_dry_run(dry_run(job), as_json=as_json)
        return 0
    result = run_training(job, callbacks=[TrainingBar()], on_facts=print_facts)
    PartialState().destroy_process_group()  # its threads may abort a rank whose work is done
    if job.config.process_index == 0:  # one rank speaks for all
        print_result(result, as_json=as_json)
    # What was launched has ended well: `launch` knows of the stop.
    return 0 if result.stopped_by is None or is_launched_here() else 130


def is_launched() -> bool:
    """Say whether a launcher started this process, `launch` among them."""
    return "WORLD_SIZE" in os.environ or is_launched_here()


def is_launched_here() -> bool:
    """Say whether `launch` started this process."""
    return _LAUNCHED in os.environ


def launch(run: "RunArguments", arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `accelerate launch` of the same `profit train`, as `run.accelerate_config` says, and return its exit status.

    Launchers pass a signal on to their processes with 30 seconds to live, or not at all. So these are out of the reach
    of the terminal's, and are told by the end of a pipe that they have inherited: at the first SIGINT or SIGTERM, or
    when this process is killed. They save a checkpoint then. A second signal ends them at once.

    Args:
        run: Names the file, which `check_before_launch` has looked at, and perhaps another number of processes.
        arguments: The command line after `profit train`.
        environment: As it was before settings left their marks in it.
    """
    assert run.accelerate_config is not None
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", run.accelerate_config]
    if run.num_processes is not None:
        command += ["--num_processes", str(run.num_processes)]
    command += ["-m", "profit_sft.cli", "train", *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    process = subprocess.Popen(
        command, env={**environment, _LAUNCHED: "1"}, stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    pipe, stopped = process.stdin, False

    def stop(number: int) -> None:
        nonlocal stopped
        if stopped:
            os.killpg(process.pid, signal.SIGTERM)
        stopped = True
        pipe.close()

    with signals_handled(stop):
        status = process.wait()
    return 130 if stopped else int(status != 0)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print what a run has on stderr, a line a fact."""
    messages = console(stderr=True)
    for name, value in facts.items():
        messages.print(f"{name:<11}{value}")


def print_result(result: "RunResult", *, as_json: bool) -> int:
    """Say how the run ended and how to go on; return the exit status."""
    from profit_sft.data.blocks import LISTED_ROWS
    from profit_sft.runs.record import duration, read_run

    messages = console(stderr=True)
    if as_json:
        figures = {"output_dir": str(result.output_dir), "step": result.global_step, "last_log": result.last_log}
        sys.stdout.write(json.dumps(figures) + "\n")
    if result.stopped_by is not None:
        name = signal.Signals(result.stopped_by).name
        resumed = ["profit", "train", "--config", f"{result.output_dir}/config.yaml"]
        resumed += ["--resume_from_checkpoint", "latest"]
        messages.print(
            f"Stopped by {name} after step {result.global_step}; the checkpoint is saved. Go on with"
            + (", under the same launcher" if "WORLD_SIZE" in os.environ and not is_launched_here() else "")
            + ":\n  "
            + shlex.join(resumed)
        )
        return 130
    took = duration(result.train_runtime_seconds)
    messages.print(
        f"Trained {result.global_step} steps in {took}. Model, model card, logs and report.html: {result.output_dir}"
    )
    if result.data["rows_skipped"]:
        messages.print(
            f"{result.data['rows_skipped']} bad rows were left out; {result.output_dir}/data.json lists the first "
            f"{LISTED_ROWS}."
        )
    if not as_json:
        record = read_run(result.output_dir)
        print_before_after(record)
        for what, command in next_commands(record):
            messages.print(f"\n# {what}\n{command}")
    return 0


def print_before_after(record: "RunRecord") -> None:
    """Print the figures a run is judged by, first and last, and what it was warned of."""
    from profit_sft.runs.figures import before_after

    out = console()
    table = Table(box=None, pad_edge=False)
    for title, justify in (("", "left"), ("first log", "right"), ("last log", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]  # one of rich's literals
    for kind, first, last in before_after(record.logs):
        table.add_row(kind.short, kind.text(first), kind.text(last))
    if table.row_count:
        out.print(table)
    for step, text in record.warnings:
        out.print(f"Warned at step {step:,}: {text}")


def next_commands(record: "RunRecord") -> list[tuple[str, str]]:
    """Return three commands to go on with, each with what it shows: answers, the mask, and a run to compare with."""
    import yaml

    settings = yaml.safe_load((record.folder / "config.yaml").read_text(encoding="utf-8"))
    folder = str(record.folder)
    models = ("--model_name_or_path", str(settings["model_name_or_path"]), "--compare_to", folder)
    data = str(settings.get("dataset_name", f"{folder}/config.yaml"))  # the file stands for the mixture it names
    mask = ("inspect", "--dataset_name", data, *models, "--output_file", f"{folder}/mask.html")
    commands = [
        ("what it learned, by problems", ("eval", folder, "--tasks", "gsm8k", "--output_dir", f"{folder}/eval")),
        ("what the mask hid before, and hides now", mask),
    ]
    objective, name = ("profit", "ProFit") if settings["objective"] == "nll" else ("nll", "plain SFT")
    again = ("--config", f"{folder}/config.yaml", "--objective", objective, "--output_dir", f"{folder}-compared")
    commands.append((f"the same by {name}; then: profit report with both folders", ("train", *again)))
    return [(what, shlex.join(["profit", *words])) for what, words in commands]


def print_dry_run(report: "DryRunReport | SettingsReport", *, as_json: bool) -> None:
    """Print the report on stdout, as tables or JSON."""
    from profit_sft.train.dry_run import SettingsReport

    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")
        return
    from profit_sft.mask.labels import print_marked_rows

    out = console(wrap=False)
    out.print("Resolved configuration", style="bold")
    out.print(report.config)
    if isinstance(report, SettingsReport):
        out.print(f"The settings agree: {report.engine}, a step of {report.batch}.")
        if report.memory_gib is not None:
            size = sum(report.memory_gib.values())
            out.print(f"Memory of a device: {size:.2f} GiB, an estimate for rows of max_length.")
        for line in report.not_checked:
            out.print(f"Not checked, {line}")
        return
    rows = [
        *data_facts(report.data),
        ("optimizer steps", f"{report.optimizer_steps:,}"),
        ("parameters, of them trained", f"{report.parameters:,}, {report.trainable_parameters:,}"),
        ("sample", f"{report.sample_rows} rows, {report.sample_label_tokens} label tokens"),
        ("kept share on the sample", f"{report.kept_share:.1%}"),
        ("mean p, plain NLL on the sample", f"{report.mean_p:.3f}, {report.nll:.3f} nats"),
    ]
    rows.append(("engine", report.engine))
    rows += [(f"memory of a device: {name}", f"{size:.2f} GiB") for name, size in report.memory_gib.items() if size]
    rows.append(("memory of a device: sum, an estimate", f"{sum(report.memory_gib.values()):.2f} GiB"))
    table = Table(title="Dry run", show_header=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    print_notes(report.data, out)
    print_marked_rows(report.examples, out)
