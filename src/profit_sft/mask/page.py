"""The mask as one HTML page: a file, or what a notebook shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from html import escape
from pathlib import Path

from profit_sft.files import write_text
from profit_sft.mask.page_data import bytes_of_an_example, page_data
from profit_sft.mask.report import MaskReport
from profit_sft.pages.render import render_page
from profit_sft.scores.store import ScoredExample, ScoreManifest

MAX_EXAMPLES = 500
_MOST_BYTES = 40_000_000  # of a page's examples: 5,000 rows of GSM8K take 27 MB, with five alternatives a token
_NOTEBOOK_EXAMPLES = 50
_CAVEAT = (
    "This is the mask at one moment: with an online mask a model never learns what is masked, and on the two small "
    "models measured so far plain fine-tuning scored higher, so read it as what a threshold hides, no more."
)


@dataclass(frozen=True)
class MaskPage:
    """A report as a page, drawn where it is the last line of a notebook's cell.

    Attributes:
        report: What to show.
        examples: How many to show token by token, at most; the figures count all.

    Example:
        `MaskPage(make_report([load_scores("scored")]))`
    """

    report: MaskReport
    examples: int = MAX_EXAMPLES

    @cached_property
    def shown(self) -> list[tuple[int, tuple[ScoredExample, ...]]]:
        """The examples that are shown: the place of each in the data, and it under every model."""
        most = max(1, int(_MOST_BYTES / bytes_of_an_example(self.report)))
        return list(self.report.examples(min(self.examples, most)))

    @property
    def shortage(self) -> str | None:
        """Why fewer examples are shown than were asked for and are there, in words, or None."""
        wanted = min(self.examples, self.report.manifests[0].num_examples)
        if len(self.shown) == wanted:
            return None
        return (
            f"{len(self.shown):,} examples are shown of the {wanted:,} asked for: a page holds about "
            f"{_MOST_BYTES // 10**6} MB of them."
        )

    def html(self, today: date) -> str:
        """Return the page.

        Args:
            today: For the page's end.
        """
        report, total = self.report, self.report.manifests[0].num_examples
        spread = f"{len(self.shown):,} of {total:,} examples, evenly spread. {self.shortage or ''}"
        return render_page(
            "mask.html",
            data=page_data(report, self.shown),
            styles=("mask.css",),
            scripts=("mask.js", "mask_examples.js", "mask_charts.js", "mask_tables.js", "mask_copy.js", "mask_controls.js"),
            values={
                "title": f"What the mask hides in {Path(report.manifests[0].data['dataset_name']).name}",
                "caveat": _CAVEAT,
                "facts": _facts(report, today),
                "label_tokens": f"{report.figures.total.count:,}",
                "examples_note": f"All {total:,} examples." if len(self.shown) == total else spread.strip(),
                "compared": len(report.score_sets) == 2,
                "has_kinds": report.tokens.token_kinds is not None,
                "objective": None if report.objective is None else repr(report.objective),
                "versions": _versions(report.manifests),
            },
        )

    def write(self, path: str | Path, today: date) -> None:
        """Write the page to `path`, completely or not at all."""
        write_text(path, self.html(today))

    def _repr_html_(self) -> str:
        page = MaskPage(self.report, min(self.examples, _NOTEBOOK_EXAMPLES)).html(date.today())
        return f'<iframe srcdoc="{escape(page)}" title="The mask" style="width:100%;height:720px;border:0"></iframe>'


def write_mask_page(report: MaskReport, path: str | Path, *, examples: int = MAX_EXAMPLES, today: date) -> None:
    """Write `MaskPage(report, examples)` to an HTML file.

    Args:
        report: What to show.
        path: The file.
        examples: How many to show token by token, at most; the figures count all.
        today: For the page's end.
    """
    MaskPage(report, examples).write(path, today)


def _facts(report: MaskReport, today: date) -> list[tuple[str, str]]:
    first, compared = report.manifests[0], len(report.score_sets) == 2
    names = ("Model before", "Model after") if compared else ("Model",)
    facts = [(name, manifest.model_name_or_path) for name, manifest in zip(names, report.manifests, strict=True)]
    return [
        *facts,
        ("Data", first.data["dataset_name"]),
        ("Objective", report.rule if report.objective is not None else f"ProFit, keep {report.rule}"),
        ("Examples", f"{first.num_examples:,}"),
        ("Label tokens", f"{first.num_label_tokens:,}"),
        ("Mean NLL", " → ".join(f"{manifest.mean_nll:.3f}" for manifest in report.manifests) + " nats"),
        ("Date", today.isoformat()),
    ]


def _versions(manifests: Sequence[ScoreManifest]) -> str:
    """Say what scored, in one line."""
    told = []
    for manifest in manifests:
        versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items() if number)
        told.append(f"{manifest.dtype}, engine {manifest.engine}, {versions}")
    return "Scored in " + "; then in ".join(dict.fromkeys(told)) + "."
