"""`profit data`: the rows as the model reads them, which tokens carry labels, and what was left out."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from profit_sft.cli.options import ChatTemplatePath, GivenData, flag, takes_data_options, wrong_values_are_usage_errors
from profit_sft.cli.progress import quiet_libraries
from profit_sft.errors import ConfigurationError
from profit_sft.terminal import HarmlessConsole, console

if TYPE_CHECKING:
    from profit_sft.mask.labels import MarkedRow

EXAMPLES = 3
_LISTED = 5  # skipped rows named in the terminal
_ENDS = 4  # of the tokens that end turns, those shown
_LEFT_OUT = {"rows_too_long": "longer than max_length", "rows_of_no_weight": "of weight 0"}


@takes_data_options()
def data_command(
    dataset_name: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or hub name.", show_default=False)],
    *,
    model_name_or_path: Annotated[
        str | None, flag("model_name_or_path", "Whose tokenizer and chat template: hub name, folder, embedded.")
    ] = None,
    trust_remote_code: Annotated[bool, flag("trust_remote_code", "Run code that comes with the model.")] = False,
    chat_template_path: ChatTemplatePath = None,
    data: GivenData,
    examples: Annotated[int, flag("examples", "Rows to show.")] = EXAMPLES,
    as_json: Annotated[bool, typer.Option("--json", help="Print report and examples as JSON.")] = False,
) -> int:
    """Show the first rows as `profit train` would train them, with the tokens that carry labels marked."""
    from profit_sft.data.prepare import prepare_dataset
    from profit_sft.data.settings import DataSettings
    from profit_sft.mask.labels import marked_rows, turn_ends
    from profit_sft.models.pretrained import load_tokenizer, require_model

    quiet_libraries()
    if examples < 0:
        raise ConfigurationError(f"examples must be at least 0, got {examples}.")
    require_model({"model_name_or_path": model_name_or_path})
    with wrong_values_are_usage_errors():
        settings = DataSettings(dataset_name=dataset_name, **data)
    tokenizer = load_tokenizer(
        model_name_or_path, trust_remote_code=trust_remote_code, chat_template_path=chat_template_path
    )
    prepared = prepare_dataset(settings, tokenizer, progress=True)
    shown, report = marked_rows(prepared, tokenizer, examples), dataclasses.asdict(prepared.report)
    report["turns_end_in"] = turn_ends(prepared, tokenizer)
    if as_json:
        found = {"report": report, "examples": [dataclasses.asdict(example) for example in shown]}
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    print_data(report, shown, console(wrap=False))
    return 0


def print_data(report: Mapping[str, Any], shown: "list[MarkedRow]", out: HarmlessConsole) -> None:
    """Print what became of the rows, and the first of them with their labels marked.

    Args:
        report: Fields of `DataReport`, and `turns_end_in` as `turn_ends` returns it.
        shown: The rows to show.
        out: Where to.
    """
    from profit_sft.mask.labels import print_marked_rows

    table = Table(title="Data", show_header=False)
    for row in data_facts(report):
        table.add_row(*row)
    out.print(table)
    print_notes(report, out)
    for skipped in report["skipped"][:_LISTED]:
        out.print(f"left out: {skipped['reason']}")
    if report["rows_skipped"] > _LISTED:
        out.print(f"... and {report['rows_skipped'] - _LISTED:,} more")
    print_marked_rows(shown, out)


def print_notes(report: Mapping[str, Any], out: HarmlessConsole) -> None:
    """Print what else there is to know of the data, a line each: sentences are too long for a table."""
    for note in report["notes"]:
        out.print(f"note: {note}")


def data_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of what a table tells of the data; arguments as `print_data`."""
    from profit_sft.mask.terminal import visible

    used, tokens, labels = (max(report[name], 1) for name in ("rows_used", "total_tokens", "label_tokens"))
    ends = report["turns_end_in"]
    turns = max(sum(ends.values()), 1)
    listed = ", ".join(f"{visible(text)} {count / turns:.1%}" for text, count in list(ends.items())[:_ENDS])
    return [
        (
            "rows used / read / skipped",
            f"{report['rows_used']:,} / {report['rows_read']:,} / {report['rows_skipped']:,}",
        ),
        ("format", report["dataset_format"]),
        (
            "tokens, of them label tokens",
            f"{report['total_tokens']:,}, {report['label_tokens']:,} ({labels / tokens:.0%})",
        ),
        (
            "longest row, rows truncated",
            f"{report['longest']:,}, {report['rows_truncated']:,} ({report['rows_truncated'] / used:.1%})",
        ),
        *((f"rows {why}, left out", f"{report[name]:,}") for name, why in _LEFT_OUT.items() if report[name]),
        ("what is learned ends in", listed + (", ..." if len(ends) > _ENDS else "")),
    ]
