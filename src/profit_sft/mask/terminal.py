"""The mask in a terminal: `profit inspect --plain`. Masked tokens are struck through, or in ⟨ ⟩ where that is lost."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from profit_sft.mask.figures import Group
from profit_sft.mask.report import SUMMARY_THRESHOLDS, MaskReport, kept_share, masked_most
from profit_sft.scores.store import ScoredExample
from profit_sft.terminal import harmless

PLAIN_EXAMPLES = 3
_BANDS = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_SHADES = ("#e4effb", "#c5ddf6", "#a4caf1", "#82b6ec", "#5fa1e6")  # by p, black text on each
_LISTED = 12
_BAR_WIDTH = 40
_PROMPT_CHARACTERS = 300


def print_report(report: MaskReport, out: Console, *, examples: int = PLAIN_EXAMPLES) -> None:
    """Print the figures and a few examples.

    Args:
        report: What to show.
        out: Where to.
        examples: How many to show token by token.
    """
    out.print(_head(report))
    out.print(_kept_table(report))
    out.print(_histogram(report))
    if report.objective is None:
        if len(report.score_sets) == 2:
            out.print(_movement(report))
        for title, groups in (("tokens", report.figures.tokens), ("words", report.figures.words)):
            out.print(_masked_table(report, title, masked_most(report, groups)[:_LISTED]))
    for place, example in report.examples(examples):
        out.print(_example(report, place, example, brackets=not out.is_terminal))


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return a text whose white space shows, and in which no character can steer the terminal.

    Args:
        text: Any text.
        lines: Leave spaces, and break lines after the sign for a line's end.

    Example:
        >>> visible(" a\n\x1b[2J"), visible(" a\nb", lines=True)
        ('␣a↵␛[2J', ' a↵\nb')
    """
    signs = {"\n": "↵\n" if lines else "↵", "\t": "⇥", " ": " " if lines else "␣"}
    return harmless("".join(signs.get(character, character) for character in text))


def _names(report: MaskReport) -> tuple[str, ...]:
    return ("before", "after") if len(report.score_sets) == 2 else ("",)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _arrow(values: Iterator[str]) -> str:
    return " → ".join(values)


def _head(report: MaskReport) -> RenderableType:
    first = report.manifests[0]
    table = Table(title="The mask", show_header=False)
    for name, manifest in zip(_names(report), report.manifests, strict=True):
        table.add_row(f"model {name}".strip(), Text(f"{manifest.model_name_or_path}, NLL {manifest.mean_nll:.3f} nats"))
    table.add_row("data", Text(str(first.data["dataset_name"])))
    table.add_row("examples, label tokens", f"{first.num_examples:,}, {first.num_label_tokens:,}")
    if report.objective is None:
        table.add_row("kept", report.rule)
        table.add_row("kept share", _kept(report, report.figures.total))
    else:
        total = report.figures.total
        table.add_row("objective", Text(report.rule))
        table.add_row("mean weight", _arrow(f"{value:.3f}" for value in total.mean_weight))
        table.add_row("weight not 0", _arrow(_share(count / total.count) for count in total.weighted))
    table.add_row("label is likeliest", _arrow(_share(share) for share in report.top1_shares))
    return table


def _kept(report: MaskReport, group: Group, index: int | None = None) -> str:
    return _arrow(_share(kept_share(report, group, model, index)) for model in range(len(report.score_sets)))


def _kept_table(report: MaskReport) -> RenderableType:
    groups = [report.figures.total, *(group for group in report.figures.by_kind if group.kind != "none")]
    table = Table(title="Kept share by threshold")
    table.add_column("threshold", justify="right")
    for group in groups:
        table.add_column(group.label, justify="right")
    for threshold in sorted({*SUMMARY_THRESHOLDS, report.threshold}):
        index = report.thresholds.index(threshold)
        style = "bold" if threshold == report.threshold else ""
        table.add_row(f"{threshold:g}", *(_kept(report, group, index) for group in groups), style=style)
    return table


def _histogram(report: MaskReport) -> RenderableType:
    total = report.figures.total
    table = Table(title="Tokens by probability")
    table.add_column("p from", justify="right")
    table.add_column("to", justify="right")
    for name in _names(report):
        table.add_column(name or "tokens", justify="right")
    table.add_column("")
    indices = [int(np.searchsorted(report.thresholds, band)) for band in _BANDS]
    for start, end, low, high in zip(indices, [*indices[1:-1], None], _BANDS, _BANDS[1:], strict=False):
        counts = [level.at_least(start) - (0 if end is None else level.at_least(end)) for level in total.levels]
        shares = [count / total.count for count in counts]
        bar = "█" * round(_BAR_WIDTH * shares[-1])
        table.add_row(f"{low:g}", f"{high:g}", *map(_share, shares), bar)
    return table


def _movement(report: MaskReport) -> RenderableType:
    total = report.figures.total
    moved = total.moved(report.index, report.direction)
    table = Table(title="How the mask moved")
    table.add_column("")
    table.add_column("kept after", justify="right")
    table.add_column("masked after", justify="right")
    for state in ("kept", "masked"):
        counts = (moved[f"{state}_kept"], moved[f"{state}_masked"])
        table.add_row(f"{state} before", *(f"{count:,} ({_share(count / total.count)})" for count in counts))
    return table


def _masked_table(report: MaskReport, what: str, groups: list[Group]) -> RenderableType:
    last = len(report.score_sets) - 1
    table = Table(title=f"Most masked {what}{' after' if last else ''}")
    has_kinds = report.tokens.token_kinds is not None
    for name in (what[:-1], "sort", *(("kind",) if has_kinds else ())):
        table.add_column(name)
    for name in ("tokens", "masked", "share", "mean p"):
        table.add_column(name, justify="right")
    for group in groups:
        masked = group.count - group.kept(report.index, report.direction, last, upper=report.upper)
        table.add_row(
            Text(visible(group.label)),
            group.sort,
            *((group.kind,) if has_kinds else ()),
            f"{group.count:,}",
            f"{masked:,}",
            _share(masked / group.count),
            _arrow(f"{p:.3g}" for p in group.mean_p),
        )
    return table


def _example(report: MaskReport, place: int, example: tuple[ScoredExample, ...], *, brackets: bool) -> RenderableType:
    title = f"row {example[0].row}"
    parts = []
    for model, (name, scored) in enumerate(zip(_names(report), example, strict=True)):
        parts += [Text(name, style="bold")] if name else []
        weights = report.weights_of(place, scored, model)
        parts.append(_heat_map(report, scored, weights, brackets=brackets))
    return Panel(Stack(*parts), title=title, title_align="left")


def _heat_map(report: MaskReport, example: ScoredExample, weights: NDArray[np.float32], *, brackets: bool) -> Text:
    """Return the example's text, the end of its prompt included, with what is masked marked."""
    texts = report.texts.in_context(example.input_ids)
    first = int(example.positions[0])
    prompt = "".join(texts[:first])
    shades = np.exp(example.log_probs) if report.objective is None else np.clip(weights, 0.0, 1.0)
    state = {int(position): index for index, position in enumerate(example.positions)}
    found = Text()
    if len(prompt) > _PROMPT_CHARACTERS:
        prompt = f"… {prompt[-_PROMPT_CHARACTERS:]}"
    found.append(visible(prompt, lines=True), style="dim")
    masked_before = False
    for position in range(first, len(texts)):
        index = state.get(position)
        masked = index is not None and weights[index] == 0
        if brackets and masked != masked_before:
            found.append("⟨" if masked else "⟩")
        masked_before = masked
        style = "dim" if index is None else "dim strike" if masked else _shade(float(shades[index]))
        found.append(visible(texts[position], lines=True), style=style)
    if brackets and masked_before:
        found.append("⟩")
    return found


def _shade(share: float) -> str:
    place = min(int(len(_SHADES) * share), len(_SHADES) - 1)
    return f"black on {_SHADES[place]}"
