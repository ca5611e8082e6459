"""The mask as one HTML page: what its script needs as plain values, and the page around it."""

import base64
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profit_sft.files import write_text
from profit_sft.mask.figures import KINDS
from profit_sft.mask.report import MaskReport
from profit_sft.mask.texts import TokenTexts
from profit_sft.mask.tokens import cells
from profit_sft.pages.render import render_page
from profit_sft.scores.store import ScoredExample, ScoreManifest

MAX_EXAMPLES = 500
# A label token takes 30 bytes of the page, twice that for two models: with these a page stays below about 20 MB.
_MOST_TOKENS = 400_000
_CAVEAT = (
    "This is the mask at one moment: with an online mask a model never learns what is masked, and on the two small "
    "models measured so far plain fine-tuning scored higher, so read it as what a threshold hides, no more."
)


def write_mask_page(report: MaskReport, path: str | Path, *, examples: int = MAX_EXAMPLES, today: date) -> None:
    """Write the page to `path`, completely or not at all.

    Args:
        report: What to show.
        path: An HTML file.
        examples: How many to show token by token, at most; the figures count all.
        today: For the page's head.
    """
    write_text(path, render_mask_page(report, examples=examples, today=today))


def render_mask_page(report: MaskReport, *, examples: int = MAX_EXAMPLES, today: date) -> str:
    """Return the page; arguments as `write_mask_page`."""
    shown = list(report.examples(examples, most_tokens=_MOST_TOKENS))
    total = report.manifests[0].num_examples
    return render_page(
        "mask.html",
        data=page_data(report, shown),
        styles=("mask.css",),
        scripts=("mask.js", "mask_charts.js", "mask_controls.js"),
        values={
            "title": f"What the mask hides in {Path(report.manifests[0].data['dataset_name']).name}",
            "caveat": _CAVEAT,
            "facts": _facts(report, today),
            "label_tokens": f"{report.figures.total.count:,}",
            "examples_note": f"All {total:,}."
            if len(shown) == total
            else f"{len(shown):,} of {total:,}, evenly spread.",
            "compared": len(report.score_sets) == 2,
            "has_kinds": report.tokens.token_kinds is not None,
            "versions": _versions(report.manifests),
        },
    )


def page_data(report: MaskReport, shown: Sequence[tuple[ScoredExample, ...]]) -> dict[str, Any]:
    """Return what the page's script reads.

    Args:
        report: What to show.
        shown: The examples to show token by token, each under every model.
    """
    figures = report.figures
    groups = {
        name: [group.as_json() for group in getattr(figures, name)]
        for name in ("by_kind", "by_sort", "by_position", "tokens", "words")
    }
    return {
        "thresholds": list(report.thresholds),
        "index": report.index,
        "direction": report.direction,
        "kinds": list(KINDS),
        "figures": {
            "total": figures.total.as_json(),
            **groups,
            "histogram_edges": list(figures.histogram_edges),
            "histogram": figures.histogram.tolist(),
            "density": None if figures.density is None else figures.density.tolist(),
        },
        "examples": _examples(report, shown),
    }


def _examples(report: MaskReport, shown: Sequence[tuple[ScoredExample, ...]]) -> dict[str, Any]:
    """Pack the examples: one list of texts, and arrays of what each token has, all examples one after the other."""
    first = [example[0] for example in shown]
    texts = _TextTable(report.texts)
    return {
        "rows": [example.row for example in first],
        "token_counts": [len(example.input_ids) for example in first],
        "label_counts": [len(example.positions) for example in first],
        "tokens": packed([texts.in_context(example) for example in first], "<u4"),
        "positions": packed([example.positions for example in first], "<u4"),
        "kinds": None if report.tokens.token_kinds is None else packed([_kinds_of(example) for example in first], "u1"),
        "sets": [
            {
                "log_probs": packed([example[model].log_probs for example in shown], "<f4"),
                "entropy": packed([example[model].entropy for example in shown], "<f4"),
                "rank": packed([example[model].rank for example in shown], "<u4"),
                "top1": packed([texts.alone(example[model].top1) for example in shown], "<u4"),
                "cells": packed([cells(example[model].log_probs, report.thresholds) for example in shown], "<u2"),
            }
            for model in range(len(report.score_sets))
        ],
        "texts": texts.texts,
    }


def _kinds_of(example: ScoredExample) -> NDArray[np.int8]:
    assert example.token_kinds is not None  # the store has kinds for all rows or for none
    return example.token_kinds


class _TextTable:
    """Different texts and their indices."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._index: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._index)

    def in_context(self, example: ScoredExample) -> list[int]:
        return [self._index.setdefault(text, len(self._index)) for text in self._texts.in_context(example.input_ids)]

    def alone(self, token_ids: NDArray[np.int32]) -> list[int]:
        self._texts.learn(token_ids)
        return [self._index.setdefault(self._texts.text(int(index)), len(self._index)) for index in token_ids]


def packed(parts: Sequence[Any], dtype: str) -> str:
    """Return arrays one after the other as base64 of their bytes.

    Example:
        >>> packed([[1, 2], [3]], "<u2")
        'AQACAAMA'
    """
    joined = np.concatenate([np.asarray(part) for part in parts]).astype(dtype)
    return base64.b64encode(joined.tobytes()).decode()


def _facts(report: MaskReport, today: date) -> list[tuple[str, str]]:
    first, compared = report.manifests[0], len(report.score_sets) == 2
    sign = "≥" if report.direction == "higher" else "<"
    names = ("Model before", "Model after") if compared else ("Model",)
    facts = [(name, manifest.model_name_or_path) for name, manifest in zip(names, report.manifests, strict=True)]
    return [
        *facts,
        ("Data", first.data["dataset_name"]),
        ("Objective", f"ProFit, keep p {sign} {report.threshold:g}"),
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
