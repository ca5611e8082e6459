"""The typer application: one function a command, and what becomes of their errors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from profit_sft.cli.options import (
    ChatTemplatePath,
    DatasetConfig,
    DatasetFormat,
    DatasetSplit,
    DataToScore,
    MaxLength,
    ModelToScoreWith,
    PromptColumn,
    ResponseColumn,
    ScoresDir,
    SkipBadRows,
    SystemPrompt,
    TrainOn,
)
from profit_sft.cli.ranks import works_here
from profit_sft.errors import ConfigurationError, ProFitError, missing_extra, require_extra

app = typer.Typer(
    name="profit",
    help="Fine-tune language models on the tokens that matter, and see which those are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_TRAIN_HELP = """Fine-tune a causal language model with a token-level objective.

Takes every flag of TRL's `trl sft`, spelled the same, and these:

[bold]--config[/] FILE  YAML with any of the flags; flags on the command line win

[bold]--model_name_or_path[/] NAME  hub name, folder, or `embedded` (SmolLM2-135M-Instruct, which needs no hub)

[bold]--dataset_name[/] NAME  jsonl, json, parquet or csv file, folder, or hub name

[bold]--output_dir[/] FOLDER  the run folder (default: profit-output)

[bold]--objective[/] NAME  nll, profit, dft, eaft, power, focal, asft or rho (default: profit)

[bold]--threshold[/] P  ProFit's threshold, a probability (default: 0.1)

[bold]--threshold_direction[/] WORD  higher, lower, middle or random (default: higher)

[bold]--normalize[/] WORD  divide by all label tokens, or by the kept ones: all or kept (default: all)

[bold]--reference_scores[/] FOLDER  what `profit score` wrote from this data; with profit, a fixed mask

[bold]--skip-bad-rows[/]  count and list rows that cannot be used, instead of stopping at the first

[bold]--accelerate_config[/] FILE  train on several devices, as this file of `accelerate config` says

[bold]--resume_from_checkpoint[/] latest  go on with an interrupted run

[bold]--dry-run[/]  print settings, token counts, kept share on a sample and estimated memory; train nothing

[bold]--help-all[/]  every flag with its default
"""


@app.command(
    "train",
    help=_TRAIN_HELP,
    epilog="Example: profit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name train.jsonl --output_dir run",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Hand the arguments to TRL's parser, which knows every flag."""

    def run() -> int:
        from profit_sft.cli.train import train_command

        return train_command(list(context.args))

    raise typer.Exit(_guarded(run))


@app.command(
    "score",
    epilog="Example: profit score train.jsonl --model Qwen/Qwen3-0.6B --out scored",
)
def score(
    dataset_name: Annotated[str, typer.Argument(metavar="DATA", help="jsonl, json, parquet or csv file, or hub name.")],
    output_dir: Annotated[
        Path, typer.Option("--out", "--output_dir", "--output-dir", help="Where the scores go; a second run goes on.")
    ],
    model_name_or_path: Annotated[
        str | None,
        typer.Option(
            "--model", "--model_name_or_path", "--model-name-or-path", help="Frozen model: hub name, folder, embedded."
        ),
    ] = None,
    model_revision: Annotated[
        str | None, typer.Option("--model_revision", "--model-revision", help="Branch, tag or commit of a hub model.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16, float16, or auto: the checkpoint's own. Logits: fp32.")
    ] = "float32",
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--max_batch_tokens", "--max-batch-tokens", help="Tokens of a batch (default: 2048 on CPU, else 16384)."
        ),
    ] = None,
    shard_rows: Annotated[int, typer.Option("--shard_rows", "--shard-rows", help="Rows in a shard.")] = 256,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    dataset_format: DatasetFormat = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_prompt: SystemPrompt = None,
    chat_template_path: ChatTemplatePath = None,
    max_length: MaxLength = None,
    train_on: TrainOn = None,
    skip_bad_rows: SkipBadRows = False,
    max_samples: Annotated[
        int | None, typer.Option("--max_samples", "--max-samples", help="Use only the first N rows.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compute log p, entropy, likeliest token and rank of every label token under a frozen model, once."""
    data = {
        "dataset_name": dataset_name,
        "dataset_config": dataset_config,
        "dataset_split": dataset_split,
        "dataset_format": dataset_format,
        "prompt_column": prompt_column,
        "response_column": response_column,
        "system_prompt": system_prompt,
        "max_length": max_length,
        "train_on": train_on,
        "skip_bad_rows": skip_bad_rows,
        "max_samples": max_samples,
    }
    options = {
        "output_dir": output_dir,
        "model_name_or_path": model_name_or_path,
        "model_revision": model_revision,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "max_batch_tokens": max_batch_tokens,
        "shard_rows": shard_rows,
        "chat_template_path": chat_template_path,
    }

    def run() -> int:
        from profit_sft.cli.score import score_command

        return score_command(
            _given(data),
            _given(options),
            as_json=as_json,
        )

    raise typer.Exit(_guarded(run))


@app.command(
    "inspect",
    epilog="Example: profit inspect --dataset_name train.jsonl --model_name_or_path runs/x/checkpoint-10 "
    "--compare_to runs/x/checkpoint-30",
)
def inspect(
    scores: Annotated[
        Path | None, typer.Argument(metavar="SCORES", help="A folder `profit score` wrote.", show_default=False)
    ] = None,
    second_scores: Annotated[
        Path | None,
        typer.Argument(metavar="SCORES2", help="Another, of the same data, to compare with.", show_default=False),
    ] = None,
    dataset_name: DataToScore = None,
    model_name_or_path: ModelToScoreWith = None,
    compare_to: Annotated[
        str | None,
        typer.Option("--compare_to", "--compare-to", help="A second model or checkpoint: how the mask moved."),
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the models (default: float32).")] = None,
    max_samples: Annotated[
        int | None, typer.Option("--max_samples", "--max-samples", help="Rows to score (default: 500).")
    ] = None,
    max_length: MaxLength = None,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    dataset_format: DatasetFormat = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_prompt: SystemPrompt = None,
    chat_template_path: ChatTemplatePath = None,
    train_on: TrainOn = None,
    skip_bad_rows: SkipBadRows = False,
    scores_dir: ScoresDir = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Where the page starts, a probability.")] = 0.1,
    threshold_direction: Annotated[
        str,
        typer.Option("--threshold_direction", "--threshold-direction", help="Keep p higher or lower than it."),
    ] = "higher",
    examples: Annotated[
        int | None, typer.Option("--examples", help="Examples token by token (default: 500; 3 with --plain).")
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output_file", "--output-file", "--output", help="The page (default: mask.html by the scores)."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Print to the terminal in place of a page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON in place of a page.")] = False,
) -> None:
    """Show which tokens a threshold masks: a page with every token shaded, or how the mask moved between two models."""
    data = {
        "dataset_name": dataset_name,
        "max_samples": max_samples,
        "max_length": max_length,
        "dataset_config": dataset_config,
        "dataset_split": dataset_split,
        "dataset_format": dataset_format,
        "prompt_column": prompt_column,
        "response_column": response_column,
        "system_prompt": system_prompt,
        "train_on": train_on,
        "skip_bad_rows": skip_bad_rows or None,
    }
    scoring = {"model_name_or_path": model_name_or_path, "dtype": dtype, "chat_template_path": chat_template_path}

    def run() -> int:
        from profit_sft.cli.inspect import inspect_command

        return inspect_command(
            {
                "scores": tuple(folder for folder in (scores, second_scores) if folder is not None),
                "data": _given(data),
                "scoring": _given(scoring),
                "compare_to": compare_to,
                "scores_dir": scores_dir,
                "output_file": output_file,
                "threshold": threshold,
                "threshold_direction": threshold_direction,
                "examples": examples,
                "plain": plain,
                "as_json": as_json,
            }
        )

    raise typer.Exit(_guarded(run, one_process="inspect"))


@app.command(
    "quickstart",
    epilog="Example: profit quickstart --output_dir runs/quickstart",
)
def quickstart(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where everything goes.")] = Path("runs/quickstart"),
    objective: Annotated[str, typer.Option("--objective", help="Token objective.")] = "profit",
    threshold: Annotated[float | None, typer.Option("--threshold", help="ProFit's threshold, a probability.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite_output_dir", help="Replace an earlier run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train the embedded SmolLM2-135M-Instruct on generated problems: about five minutes on two cores, no hub."""

    def run() -> int:
        from profit_sft.cli.quickstart import quickstart_command

        return quickstart_command(
            output_dir, objective=objective, threshold=threshold, overwrite=overwrite, as_json=as_json
        )

    raise typer.Exit(_guarded(run, one_process="quickstart"))


@app.command(
    "eval",
    epilog="Example: profit eval runs/first --tasks gsm8k,math500 --output_dir runs/first/eval",
)
def evaluate(
    model_name_or_path: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub name, folder (a LoRA adapter, too), or embedded.")
    ],
    tasks: Annotated[
        str, typer.Option("--tasks", help="Of gsm8k, math500, aime24, ifeval, gpqa_diamond, generated, with commas.")
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output_dir", "--output-dir", help="Answers and figures; an unfinished one is gone on with."),
    ] = Path("eval-output"),
    data_dir: Annotated[
        Path | None,
        typer.Option("--data_dir", "--data-dir", help="Folder with gsm8k_test.jsonl, ... (default: from the hub)."),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token each time, one sample.")] = False,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Samples a problem (default: 8, the paper's; 1 if greedy).")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Logits are divided by it.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top_p", "--top-p", help="Nucleus, a probability; 1: all tokens.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top_k", "--top-k", help="Likeliest tokens kept; 0: all.")] = 20,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max_new_tokens", "--max-new-tokens", help="Tokens of the longest answer (default: 8192; generated: 128)."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", help="Answers generated together.")] = 16,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N problems of each task.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling and of gpqa_diamond's order of choices.")] = 0,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16, float16, or auto: the checkpoint's own.")
    ] = "auto",
    system_prompt: Annotated[
        str | None, typer.Option("--system_prompt", "--system-prompt", help="System message before every problem.")
    ] = None,
    no_chat_template: Annotated[
        bool, typer.Option("--no_chat_template", "--no-chat-template", help="Plain prompts, for a base model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Answer benchmarks with a model; the paper's five, its decoding, and a standard error over problems."""

    def run() -> int:
        require_extra("eval", wanted_by="profit eval")  # it brings all of it, so it is the one to name
        from profit_sft.cli.eval import eval_command

        return eval_command(
            {
                "model_name_or_path": model_name_or_path,
                "tasks": tuple(name.strip() for name in tasks.split(",") if name.strip()),
                "output_dir": output_dir,
                "data_dir": data_dir,
                "greedy": greedy,
                "samples": samples,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "max_new_tokens": max_new_tokens,
                "batch_size": batch_size,
                "limit": limit,
                "seed": seed,
                "dtype": dtype,
                "system_prompt": system_prompt,
                "apply_chat_template": not no_chat_template,
            },
            as_json=as_json,
        )

    raise typer.Exit(_guarded(run, one_process="eval"))


@app.command(
    "study",
    epilog="Example: profit study recipes/studies/one-to-many.yaml --output_dir runs/one-to-many --dry-run",
)
def study(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.YAML", help="The study; see docs/how-to/study.md.")],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", "--output-dir", help="The study's folder (default: runs/studies/NAME)."),
    ] = None,
    cells: Annotated[str | None, typer.Option("--cells", help="Run only cells matching this pattern: 'nll-*'.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Cells at a time in this process.")] = 1,
    model_name_or_path: Annotated[
        str | None,
        typer.Option("--model_name_or_path", "--model-name-or-path", help="In place of the study's models."),
    ] = None,
    dataset_name: Annotated[
        str | None, typer.Option("--dataset_name", "--dataset-name", help="In place of the study's training data.")
    ] = None,
    only_dry: Annotated[
        bool, typer.Option("--dry-run", "--dry_run", help="List cells, tokens and estimated cost; run nothing.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report_only", "--report-only", help="Write the report of what is finished; run nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train and measure the cells of a study, and compare them. Interrupted, it goes on where it was."""

    def run() -> int:
        from profit_sft.cli.study import StudyOptions, study_command

        return study_command(
            StudyOptions(
                study_file=study_file,
                output_dir=output_dir,
                cells=cells,
                jobs=jobs,
                model_name_or_path=model_name_or_path,
                dataset_name=dataset_name,
                only_dry=only_dry,
                report_only=report_only,
                as_json=as_json,
            )
        )

    raise typer.Exit(_guarded(run, one_process="study"))


@app.command(
    "advise",
    epilog="Example: profit advise --dataset_name train.jsonl --model_name_or_path Qwen/Qwen3-0.6B --threshold 0.1",
)
def advise(
    scores: Annotated[Path | None, typer.Argument(metavar="SCORES", help="A folder `profit score` wrote.")] = None,
    dataset_name: DataToScore = None,
    model_name_or_path: ModelToScoreWith = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of that model (default: float32).")] = None,
    max_samples: Annotated[
        int | None, typer.Option("--max_samples", "--max-samples", help="Rows to look at (default: 200).")
    ] = None,
    max_length: MaxLength = None,
    dataset_config: DatasetConfig = None,
    dataset_split: DatasetSplit = None,
    dataset_format: DatasetFormat = None,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    system_prompt: SystemPrompt = None,
    chat_template_path: ChatTemplatePath = None,
    train_on: TrainOn = None,
    skip_bad_rows: SkipBadRows = False,
    scores_dir: ScoresDir = None,
    threshold: Annotated[float, typer.Option("--threshold", help="The threshold to judge, a probability.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say what a threshold would keep of a data set under a model, what it would cost, and what to beware of."""
    data = {
        "max_samples": max_samples,
        "max_length": max_length,
        "dataset_config": dataset_config,
        "dataset_split": dataset_split,
        "dataset_format": dataset_format,
        "prompt_column": prompt_column,
        "response_column": response_column,
        "system_prompt": system_prompt,
        "train_on": train_on,
        "skip_bad_rows": skip_bad_rows or None,
    }
    model = {
        "model_name_or_path": model_name_or_path,
        "dtype": dtype,
        "chat_template_path": chat_template_path,
        "output_dir": scores_dir,
    }

    def run() -> int:
        from profit_sft.cli.advise import advise_command

        return advise_command(
            scores,
            dataset_name,
            data=_given(data),
            model=_given(model),
            threshold=threshold,
            as_json=as_json,
        )

    raise typer.Exit(_guarded(run, one_process="advise"))


def _version_callback(wanted: bool) -> None:
    if wanted:
        from profit_sft import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version_callback, is_eager=True)] = False,
) -> None:
    pass


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given, so that the library's defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def _guarded(command: Callable[[], int], *, one_process: str | None = None) -> int:
    """Run a command; turn what a user can mend into one message and an exit status.

    Args:
        command: Returns the exit status.
        one_process: The name of a command that knows nothing of ranks; it runs on the first.
    """
    if one_process is not None and not works_here(one_process):
        return 0
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def report(message: object) -> None:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(message), markup=False)

    try:
        try:
            return command()
        except ModuleNotFoundError as error:
            raise missing_extra(error.name, wanted_by="this command") or error from error
    except KeyboardInterrupt:
        report("interrupted")
        return 130
    except ConfigurationError as error:
        report(error)
        return 2
    except ProFitError as error:
        report(error)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        report(f"'{error.filename}': {error.strerror}")
        return 1


def run_app(arguments: Sequence[str]) -> int:
    """Run `profit` with these arguments and return its exit status.

    Args:
        arguments: The command line after the program's name.

    Returns:
        0 done, 1 failed, 2 usage, 130 interrupted.
    """
    try:
        app(args=list(arguments), prog_name="profit")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0
