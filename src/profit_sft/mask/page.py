"""The mask as one HTML page: a file, or what a notebook shows."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profit_sft.files import write_text
from profit_sft.mask.figures import KINDS
from profit_sft.mask.report import MaskReport, kept_share
from profit_sft.mask.texts import ROLES, TokenTexts, stretches
from profit_sft.mask.tokens import floors
from profit_sft.pages.render import render_page
from profit_sft.scores.store import ScoredExample, ScoreManifest

MAX_EXAMPLES = 500
_MOST_BYTES = 40_000_000  # of a page's examples: 5,000 rows of GSM8K take 27 MB, with five alternatives a token
_NOTEBOOK_EXAMPLES = 50
_SCRIPTS = tuple(f"mask{part}.js" for part in ("", "_examples", "_charts", "_tables", "_copy", "_controls"))
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
            scripts=_SCRIPTS,
            values={
                "title": f"What the mask hides in {Path(report.manifests[0].data['dataset_name']).name}",
                "summary": _summary(report),
                "caveat": _CAVEAT,
                "facts": _facts(report, today),
                "label_tokens": f"{report.figures.total.count:,}",
                "examples_note": f"All {total:,} examples." if len(self.shown) == total else spread.strip(),
                "compared": len(report.score_sets) == 2,
                "has_kinds": report.tokens.token_kinds is not None,
                "objective": None if report.objective is None else report.rule,
                "versions": _versions(report.manifests),
            },
        )

    def write(self, path: str | Path, today: date) -> None:
        """Write the page to `path`, completely or not at all."""
        write_text(path, self.html(today))

    def _repr_html_(self) -> str:
        page = MaskPage(self.report, min(self.examples, _NOTEBOOK_EXAMPLES)).html(date.today())
        return f'<iframe srcdoc="{escape(page)}" title="The mask" style="width:100%;height:720px;border:0"></iframe>'


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


def _summary(report: MaskReport) -> str:
    """Say in a sentence what the page's script says, where no script runs."""
    total, models = report.figures.total, range(len(report.score_sets))
    if report.objective is None:
        said = " → ".join(f"{kept_share(report, total, model):.1%}" for model in models)
        said += f" of {total.count:,} label tokens kept, {report.rule}"
    else:
        said = f"{report.rule}: mean weight " + " → ".join(f"{value:.3f}" for value in total.mean_weight)
    return f"{said}. Mean NLL " + " → ".join(f"{manifest.mean_nll:.3f}" for manifest in report.manifests) + " nats."


def _versions(manifests: Sequence[ScoreManifest]) -> str:
    """Say what scored, in one line."""
    told = []
    for manifest in manifests:
        versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items() if number)
        told.append(f"{manifest.dtype}, {versions}")
    return "Scored in " + "; then in ".join(dict.fromkeys(told)) + "."


_ROLES = (*dict.fromkeys(ROLES.values()), "prompt", "answer")
_UNKNOWN = 65535  # of milli-nats


def bytes_of_an_example(report: MaskReport) -> float:
    """Return how many bytes of a page an example takes, on average: 4/3 of what is packed."""
    tokens, labels = report.tokens.lengths.mean(), report.tokens.token_ids.size / len(report.tokens.lengths)
    a_label = sum(8 + 4 * max(1, manifest.likeliest) for manifest in report.manifests)
    if report.token_weights is not None:
        a_label += 4 * len(report.manifests)
    return float(4 / 3 * (2 * tokens + a_label * labels))


def page_data(report: MaskReport, shown: Sequence[tuple[int, tuple[ScoredExample, ...]]]) -> dict[str, Any]:
    """Return what the page's script reads.

    Args:
        report: What to show.
        shown: The examples to show token by token: the place of each in the data, and it under every model.
    """
    figures = report.figures
    groups = {
        name: [group.as_json() for group in getattr(figures, name)]
        for name in ("by_kind", "by_sort", "by_position", "tokens", "words")
    }
    return {
        "thresholds": list(report.thresholds),
        "floors": packed(floors(report.thresholds), "<f4"),
        "index": report.index,
        "upper": report.upper,
        "direction": report.direction,
        "objective": None if report.objective is None else report.rule,
        "kinds": list(KINDS),
        "mean_nll": [manifest.mean_nll for manifest in report.manifests],
        "top1_share": list(report.top1_shares),
        "figures": {
            "total": figures.total.as_json(),
            **groups,
            "histogram_edges": list(figures.histogram_edges),
            "histogram": figures.histogram.tolist(),
            "density": None if figures.density is None else figures.density.tolist(),
            "weight_edges": list(figures.weight_edges),
            "weight_histogram": None if figures.weight_histogram is None else figures.weight_histogram.tolist(),
        },
        "examples": _examples(report, shown),
    }


def _examples(report: MaskReport, shown: Sequence[tuple[int, tuple[ScoredExample, ...]]]) -> dict[str, Any]:
    """Pack the examples: one list of texts, and arrays of what each token has, all examples one after the other."""
    first = [example[0] for _, example in shown]
    table = _TextTable(report.texts)
    texts_of_tokens, turns = [], []
    for example in first:
        pieces = report.texts.in_context(example.input_ids)
        special = [report.texts.is_special(token) for token in example.input_ids.tolist()]
        texts_of_tokens.append(table.of(pieces))
        turns.append(
            [
                (_ROLES.index(found.role), found.start, found.end - found.start, found.labeled)
                for found in stretches(pieces, special, example.positions.tolist())
            ]
        )
    where = np.isin(report.tokens.examples, [index for index, _ in shown])
    weights = report.token_weights
    sets: list[dict[str, Any]] = []
    for model in range(len(report.score_sets)):
        scored = [example[model] for _, example in shown]
        kept = scored[0].likeliest is not None
        likeliest = [example.top1[:, None] if example.likeliest is None else example.likeliest for example in scored]
        sets.append(
            {
                "log_probs": packed([example.log_probs for example in scored], "<f4"),
                "entropy": _packed_millinats([example.entropy for example in scored]),
                "rank": _packed_counts([example.rank for example in scored]),
                "likeliest": _packed_counts([table.of(table.alone(ids.reshape(-1))) for ids in likeliest]),
                "likeliest_log_probs": _packed_millinats(
                    [np.reshape(example.likeliest_log_probs, -1) for example in scored]  # type: ignore[arg-type]  # kept
                )
                if kept
                else None,
                "alternatives": likeliest[0].shape[1],
                "weights": None if weights is None else packed([weights[model, where]], "<f4"),
            }
        )
    return {
        "rows": [example.row for example in first],
        "token_counts": [len(example.input_ids) for example in first],
        "label_counts": [len(example.positions) for example in first],
        "tokens": _packed_counts(texts_of_tokens),
        "roles": _ROLES,
        "stretch_counts": [len(found) for found in turns],
        "stretches": _packed_counts([np.reshape(found, -1) for found in turns]),
        "kinds": None
        if report.tokens.token_kinds is None
        else packed([example.token_kinds for example in first], "u1"),  # of all rows or of none
        "sets": sets,
        "texts": table.texts,
    }


class _TextTable:
    """Different texts and their indices."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._index: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._index)

    def of(self, texts: Sequence[str]) -> list[int]:
        return [self._index.setdefault(text, len(self._index)) for text in texts]

    def alone(self, token_ids: NDArray[np.int32]) -> list[str]:
        self._texts.learn(token_ids)
        return [self._texts.text(index) for index in token_ids.tolist()]


def packed(parts: Sequence[Any], dtype: str) -> str:
    """Return arrays one after the other as base64 of their bytes.

    Example:
        >>> packed([[1, 2], [3]], "<u2")
        'AQACAAMA'
    """
    joined = np.concatenate([np.atleast_1d(np.asarray(part)) for part in parts]).astype(dtype)
    return base64.b64encode(joined.tobytes()).decode()


def _packed_counts(parts: Sequence[ArrayLike]) -> str:
    """Pack whole numbers of at least 0 in as few bytes as hold them all; the script tells by the length."""
    most = max((int(np.max(part, initial=0)) for part in parts), default=0)
    return packed(parts, "u1" if most < 2**8 else "<u2" if most < 2**16 else "<u4")


def _packed_millinats(parts: Sequence[NDArray[np.floating]]) -> str:
    """Pack nats, or log-probabilities without their sign, to three decimals in two bytes."""
    with np.errstate(invalid="ignore"):
        scaled = [np.round(1000 * np.abs(np.asarray(part, np.float64))) for part in parts]
    return packed([np.where(np.isfinite(part), np.minimum(part, _UNKNOWN - 1), _UNKNOWN) for part in scaled], "<u2")
