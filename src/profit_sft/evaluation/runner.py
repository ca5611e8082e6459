"""Run an evaluation: generate what is missing, grade it, keep it, and sum it up."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from profit_sft.errors import ConfigurationError, require_extra
from profit_sft.evaluation.engine import Generated, Request
from profit_sft.evaluation.math_judge import MathJudge
from profit_sft.evaluation.records import EvalFolder, SampleFile, sole_use
from profit_sft.evaluation.results import EvalReport, Record, TaskResult, summarize
from profit_sft.evaluation.sampling import sample_seed
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.evaluation.tasks import EvalTask, load_task
from profit_sft.files import check_output_folder, package_versions
from profit_sft.models.pretrained import model_fingerprint

if TYPE_CHECKING:
    from profit_sft.evaluation.hf_engine import HFEngine

_PACKAGES = ("profit-sft", "lm-eval", "math-verify", "torch", "transformers")

Progress = Callable[[str, int, int], None]


def evaluate(
    settings: EvalSettings,
    *,
    report: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda task, done, total: None,
) -> EvalReport:
    """Answer and grade the problems of the settings' tasks.

    Samples are kept as soon as their batch is done. The same call after an interruption goes on without answering
    anything twice; so does a call with more tasks, problems or samples. What is asked for and already there is only
    summed up, without loading the model.

    Args:
        settings: What to evaluate and how.
        report: Called with one line of text before each slow step.
        progress: Called after each batch with the task's name, its samples done, and all of them.

    Returns:
        The figures, which `results.json` in the output folder holds as well.

    Raises:
        ConfigurationError: The folder holds another evaluation, the model does not exist, or a prompt does not fit it.
        DataError: A file is missing or has a bad row.
        DownloadError: Something cannot be fetched.
    """
    started = time.perf_counter()
    require_extra("eval", wanted_by="evaluation")
    check_output_folder(settings.output_dir)
    with _quiet_harness(), MathJudge() as judge:
        tasks = [load_task(name, settings, judge, report=report) for name in settings.tasks]
        fingerprint = model_fingerprint(settings.model_name_or_path)
        jobs = {task.name: _task_job(task, settings) for task in tasks}
        with sole_use(settings.output_dir):
            folder = EvalFolder(settings.output_dir, _job(settings, fingerprint), jobs)
            folder.start()
            run = _Run(settings, folder, report, progress)
            found = EvalReport(
                model_name_or_path=settings.model_name_or_path,
                model_fingerprint=fingerprint,
                settings=_plain_settings(settings),
                tasks=tuple(run.task(task) for task in tasks),
                versions=package_versions(_PACKAGES),
                device=run.device_name,
                seconds=time.perf_counter() - started,
                output_dir=settings.output_dir,
            )
            folder.write_results(found.as_dict())
    return found


def _job(settings: EvalSettings, fingerprint: str) -> dict[str, Any]:
    names = ("seed", "dtype", "system_prompt", "apply_chat_template")
    return {
        "model": settings.model_name_or_path,
        "model_fingerprint": fingerprint,
        **settings.decoding,
        **{name: getattr(settings, name) for name in names},
    }


def _task_job(task: EvalTask, settings: EvalSettings) -> dict[str, Any]:
    return {
        "problems": len(task.problems),
        "fingerprint": task.fingerprint(),
        "max_new_tokens": settings.max_new_tokens or task.max_new_tokens,
    }


def _plain_settings(settings: EvalSettings) -> dict[str, Any]:
    plain = dataclasses.asdict(settings)
    plain.update(output_dir=str(settings.output_dir), samples=settings.samples_per_problem)
    plain.update(data_dir=None if settings.data_dir is None else str(settings.data_dir), tasks=list(settings.tasks))
    return plain


class _Run:
    """One call of `evaluate`; it loads the model when the first sample is missing."""

    def __init__(
        self, settings: EvalSettings, folder: EvalFolder, report: Callable[[str], None], progress: Progress
    ) -> None:
        self._settings, self._folder = settings, folder
        self._report, self._progress = report, progress
        self._engine: HFEngine | None = None

    @property
    def device_name(self) -> str:
        return "not used" if self._engine is None else self._engine.device_name

    def task(self, task: EvalTask) -> TaskResult:
        settings = self._settings
        problems = min(len(task.problems), settings.limit or len(task.problems))
        wanted = [(problem, sample) for problem in range(problems) for sample in range(settings.samples_per_problem)]
        samples = self._folder.samples(task.name)
        missing = [key for key in wanted if key not in samples]
        if missing:
            self._generate(task, samples, missing, len(wanted))
            samples.sort()
        records = samples.select(problems, settings.samples_per_problem)
        found = summarize(task.name, records, max_new_tokens=self._folder.noted(task.name, "lowered_max_new_tokens"))
        if found.not_judged:
            self._report(
                f"{task.name}: {found.not_judged} of {len(records)} answers are not judged, since comparing them "
                "came to no end; they count as neither right nor wrong"
            )
        return found

    def _generate(self, task: EvalTask, samples: SampleFile, missing: Sequence[tuple[int, int]], wanted: int) -> None:
        engine = self._loaded_engine()
        prompts = self._prompts(task, engine)
        lengths = engine.count_tokens(prompts)
        max_new_tokens = self._max_new_tokens(task, engine, max(lengths))
        self._folder.note(task.name, lowered_max_new_tokens=max_new_tokens)
        self._report(f"{task.name}: {len(missing)} answers to generate, {wanted - len(missing)} are there")
        # Longest first: a batch that does not fit into memory shows at once, and rows of one length need no padding.
        queue = sorted(missing, key=lambda key: (-lengths[key[0]], key))
        for start in range(0, len(queue), self._settings.batch_size):
            batch = queue[start : start + self._settings.batch_size]
            began = time.perf_counter()
            seeds = [sample_seed(self._settings.seed, task.name, *key) for key in batch]
            requests = [Request(prompts[key[0]], seed) for key, seed in zip(batch, seeds, strict=True)]
            answers = engine.generate(requests, max_new_tokens)
            records = [_record(task, key, prompts[key[0]], answer) for key, answer in zip(batch, answers, strict=True)]
            seconds = (time.perf_counter() - began) / len(batch)
            samples.add({**record, "seconds": round(seconds, 4)} for record in records)
            self._progress(task.name, wanted - len(missing) + start + len(batch), wanted)

    def _loaded_engine(self) -> "HFEngine":
        if self._engine is None:
            self._report(f"loading {self._settings.model_name_or_path}")
            from profit_sft.evaluation.hf_engine import HFEngine  # takes seconds, and sums need no model

            self._engine = HFEngine(self._settings)
            if self._settings.apply_chat_template and not self._engine.has_chat_template:
                raise ConfigurationError(
                    f"the tokenizer of '{self._settings.model_name_or_path}' has no chat template. Evaluate a model "
                    "that has one, or leave templates out with --no_chat_template (apply_chat_template=False)."
                )
        return self._engine

    def _prompts(self, task: EvalTask, engine: "HFEngine") -> list[str]:
        harness_task = task.harness_task()
        system = self._settings.system_prompt if self._settings.system_prompt is not None else task.system_prompt
        chat = self._settings.apply_chat_template
        return [
            harness_task.fewshot_context(
                {"problem": index},
                0,
                system_instruction=system,
                apply_chat_template=chat,
                fewshot_as_multiturn=True,
                chat_template=engine.apply_chat_template if chat else None,
            )
            for index in range(len(task.problems))
        ]

    def _max_new_tokens(self, task: EvalTask, engine: "HFEngine", longest_prompt: int) -> int:
        wanted, room = self._settings.max_new_tokens or task.max_new_tokens, engine.window - longest_prompt
        if room < 1:
            raise ConfigurationError(
                f"{task.name}: its longest prompt has {longest_prompt} tokens, the model's window {engine.window}. "
                "Leave out the task or use a model with a longer window."
            )
        if room < wanted:
            self._report(
                f"{task.name}: max_new_tokens is {room} instead of {wanted}, what the model's "
                f"window of {engine.window} tokens leaves to the longest prompt"
            )
        return min(room, wanted)


def _record(task: EvalTask, key: tuple[int, int], prompt: str, answer: Generated) -> Record:
    problem = task.problems[key[0]]
    grade = task.grade(problem, answer.text, answer.truncated)
    return {
        "task": task.name,
        "problem": key[0],
        "sample": key[1],
        "prompt": prompt,
        "answer": answer.text,
        "expected": task.expected(problem),
        "correct": grade.correct,
        "truncated": answer.truncated,
        "extracted": grade.extracted,
        "rule": grade.rule,
        "new_tokens": answer.new_tokens,
        **grade.details,
    }


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep the harness's remarks on how it was called off the terminal; its errors stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
