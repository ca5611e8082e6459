"""The page of a run while it goes on: `report.html`, written anew at each log, and the files it is made of."""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.errors import ProFitError
from profit_sft.files import package_versions, write_text
from profit_sft.mask.texts import TokenTexts
from profit_sft.runs.page import write_run_page
from profit_sft.runs.record import ABOUT_FILE, PACKAGES, ROWS_FILE, as_json, read_rows
from profit_sft.train.callbacks import tell_trackers
from profit_sft.train.collapse_probe import ProbeRow

_TIME_SHARE = 20  # a page that took a second to write is not written again for twenty


class RunPage(TrainerCallback):
    """Write `report.html` into the output folder at each log, at each checkpoint and at the end.

    Beside it lie `run.json` (facts, command, start) and `rows.json` (the probe's first rows, token by token, at the
    start and at the last measurement), from which and from metrics.jsonl `profit report` makes the page again. Where a
    page takes longer than 5% of the time between two logs, logs are skipped. A page that cannot be written is warned
    of, once, and does not end the training.

    Args:
        rows: Returns what the probe saw last, None where there is no probe.
        callbacks: Returns the trainer's callbacks, trackers among them.

    Attributes:
        facts: What the run is, by name, in words; whoever knows more than the trainer puts it there.
    """

    def __init__(
        self,
        rows: Callable[[], Sequence[ProbeRow] | None] = lambda: None,
        callbacks: Callable[[], Iterable[TrainerCallback]] = tuple,
    ) -> None:
        self.facts: dict[str, str] = {}
        self._rows = rows
        self._callbacks = callbacks
        self._about: dict[str, Any] | None = None
        self._starts: dict[int, Any] | None = None  # rows as they were at the start, by number
        self._shown_rows: Sequence[ProbeRow] | None = None
        self._due = 0.0
        self._failed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note when and where this session starts."""
        self._about, self._due, self._failed = None, 0.0, False
        self._starts = self._shown_rows = None
        if state.is_world_process_zero:
            self._about = {"started": time.time(), "start_step": state.global_step, "max_steps": state.max_steps}
            for name, value in trainer_facts(args, kwargs.get("model")).items():
                self.facts.setdefault(name, value)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the page, if the last one was not too dear."""
        if self._about is not None and time.monotonic() >= self._due:
            self._write(args, state, kwargs.get("processing_class"))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the page with the new checkpoint."""
        if self._about is not None:
            self._write(args, state, kwargs.get("processing_class"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the page with all there is."""
        if self._about is not None:
            self._write(args, state, kwargs.get("processing_class"))

    def _write(self, args: TrainingArguments, state: TrainerState, tokenizer: Any) -> None:
        before = time.monotonic()
        folder = Path(str(args.output_dir))
        try:
            self._write_about(folder, args)
            self._write_rows(folder, state, tokenizer)
            write_run_page([folder])
        except Exception as error:  # whatever it is, the training is worth more than its page
            if not self._failed:
                self._failed = True
                warnings.warn(f"the page of the run cannot be written to '{folder}': {error}", stacklevel=2)
        self._due = time.monotonic() + _TIME_SHARE * (time.monotonic() - before)

    def _write_about(self, folder: Path, args: TrainingArguments) -> None:
        assert self._about is not None
        if "facts" in self._about:
            return
        versions = {name: number for name, number in package_versions(PACKAGES).items() if number}
        self._about |= {"facts": self.facts, "command": _command(), "versions": versions}
        write_text(folder / ABOUT_FILE, json.dumps(self._about, indent=2) + "\n")
        tell_trackers(args, self.facts, callbacks=self._callbacks())

    def _write_rows(self, folder: Path, state: TrainerState, tokenizer: Any) -> None:
        seen = self._rows()
        if not seen or seen is self._shown_rows or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        path = folder / ROWS_FILE
        if self._starts is None:  # a resumed run has its start in the file
            self._starts = _stored_rows(folder) if state.global_step else {}
        texts = TokenTexts(tokenizer)
        rows = []
        for row in seen:
            shown = {"row": row.row, "tokens": texts.in_context(row.input_ids), "now": row.as_json()}
            start = self._starts.get(row.row)
            if start is None or start["tokens"] != shown["tokens"]:
                start = self._starts[row.row] = {**shown, "start": shown["now"]}
            rows.append({**shown, "start": start["start"]})
        write_text(path, json.dumps(as_json({"step": state.global_step, "rows": rows}), allow_nan=False) + "\n")
        self._shown_rows = seen


def _stored_rows(folder: Path) -> dict[int, Any]:
    """Return the rows of `rows.json` by number; none where it cannot be read."""
    with suppress(ProFitError):
        stored = read_rows(folder)
        return {} if stored is None else {row.row: row.model_dump() for row in stored.rows}
    return {}


def trainer_facts(args: TrainingArguments, model: Any) -> dict[str, str]:
    """Return what any trainer knows of a run: model, objective, batch, device and output folder."""
    facts = {"model": str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)}
    make_objective = getattr(args, "make_objective", None)
    if make_objective is not None:
        facts["objective"] = str(make_objective())
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    facts["batch"] = f"{rows} rows"
    facts["device"] = str(args.device) if args.world_size == 1 else f"{args.device}, {args.world_size} ranks"
    facts["output"] = str(args.output_dir)
    return facts


def _command() -> list[str]:
    program = Path(sys.argv[0])
    return ["profit" if program.stem == "__main__" else program.name, *sys.argv[1:]]
