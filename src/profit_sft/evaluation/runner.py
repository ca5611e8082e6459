"""Run an evaluation: start a generator, have the harness answer and grade what is missing, keep it, and sum it up."""

import dataclasses
import inspect
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, partialmethod
from typing import TYPE_CHECKING, Any

from profit_sft.data.chat_template import date_chats
from profit_sft.data.prepare import tokenizer_fingerprint
from profit_sft.errors import ConfigurationError, brief, require_extra
from profit_sft.evaluation.budgets import accuracy_by_budget, budget_file, budgets_up_to, write_budgets
from profit_sft.evaluation.code_check import confirm_run_unsafe_code
from profit_sft.evaluation.generator import Answer, Generator, ServedGenerator
from profit_sft.evaluation.harness_tasks import (
    fingerprint,
    generation_arguments,
    grades_each_sample,
    grading_fingerprint,
    load_task,
    seed_examples,
)
from profit_sft.evaluation.records import EvalFolder, SampleFile
from profit_sft.evaluation.results import EvalReport, Record, TaskResult, summarize
from profit_sft.evaluation.settings import EvalSettings, resolved
from profit_sft.files import check_output_folder, package_versions, sole_use
from profit_sft.models.fingerprint import model_fingerprint
from profit_sft.models.pretrained import load_tokenizer, pretrained_path

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

_SEEDED_BY_REQUEST = ("vllm",)
_PACKAGES = ("profit-sft", "lm-eval", "math-verify", "torch", "transformers")
_SECRETS = ("auth_token", "header")  # of `engine_args`, which are written down

Progress = Callable[[str, int, int], None]


def evaluate(
    settings: EvalSettings,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda task, done, total: None,
) -> EvalReport:
    """Answer and grade the problems of the settings' tasks.

    Samples are kept as soon as their batch is done. The same call after an interruption goes on without answering
    anything twice; so does a call with more tasks, problems or samples. What is asked for and already there is only
    summed up, without loading the model; but graded again where a task of one's own, or its data, has been edited.

    Args:
        settings: What to evaluate and how.
        say: Called with one line of text before each slow step.
        progress: Called after each batch with the task's name, its samples done, and all of them.

    Returns:
        The figures, which `results.json` in the output folder holds as well.

    Raises:
        ConfigurationError: The folder holds another evaluation, there is no such model or `engine`, or a prompt does
            not fit it.
        DataError: A file is missing or cannot be used.
        DownloadError: Something cannot be fetched.
    """
    started = time.perf_counter()
    require_extra("eval", wanted_by="evaluation")
    check_output_folder(settings.output_dir)
    with quiet_harness(), confirm_run_unsafe_code(settings.confirm_run_unsafe_code):
        by_task = {name: resolved(settings, name) for name in settings.tasks}
        tasks = {name: load_task(name, by_task[name]) for name in settings.tasks}
        jobs = {
            name: {
                "problems": len(task.eval_docs),
                "fingerprint": fingerprint(task),
                "max_new_tokens": task.config.generation_kwargs["max_gen_toks"],
                "generation_kwargs": generation_arguments(task),
            }
            for name, task in tasks.items()
        }
        model = model_fingerprint(settings.model_name_or_path) if loads_model(settings) else None
        with sole_use(settings.output_dir, "evaluation"):
            decoding = by_task[settings.tasks[0]].decoding  # of all tasks, with what a preset sets
            folder = EvalFolder(settings.output_dir, {**_job(settings, model), **decoding}, jobs)
            run = _Run(settings, by_task, folder, say, progress)
            found = EvalReport(
                model_name_or_path=settings.model_name_or_path,
                model_fingerprint=model,
                settings={**_plain_settings(settings), **decoding},
                tasks=tuple(run.task(name, task) for name, task in tasks.items()),
                versions=package_versions(_PACKAGES),
                device=folder.devices(tasks),
                seconds=time.perf_counter() - started,
                output_dir=settings.output_dir,
            )
            folder.write_results(found.as_dict())
    return found


def _job(settings: EvalSettings, model: str | None) -> dict[str, Any]:
    names = ("seed", "dtype", "system_prompt", "apply_chat_template", "engine")
    return {
        "model": settings.model_name_or_path,
        "model_fingerprint": model,
        "tokenizer_fingerprint": None if model is None else _tokenizer_fingerprint(settings.model_name_or_path),
        **{name: getattr(settings, name) for name in names},
        "engine_args": _written_arguments(settings),
    }


def _tokenizer_fingerprint(model_name_or_path: str) -> str | None:
    """Tell tokenizers and chat templates apart, the day that one writes included; None of a slow tokenizer."""
    tokenizer = load_tokenizer(model_name_or_path)
    date_chats(tokenizer, model_name_or_path)
    return tokenizer_fingerprint(tokenizer) if tokenizer.is_fast else None


def _written_arguments(settings: EvalSettings) -> dict[str, Any]:
    return {name: value for name, value in settings.engine_args.items() if name not in _SECRETS}


def _plain_settings(settings: EvalSettings) -> dict[str, Any]:
    plain = {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings)}
    plain.update(output_dir=str(settings.output_dir), samples=settings.samples_per_problem)
    folders = {"data_dir": settings.data_dir, "task_dir": settings.task_dir}
    plain.update({name: None if folder is None else str(folder) for name, folder in folders.items()})
    plain.update(tasks=list(settings.tasks), engine_args=_written_arguments(settings))
    return plain


class _Run:
    """One call of `evaluate`; it starts the generator when the first sample is missing."""

    def __init__(
        self,
        settings: EvalSettings,
        by_task: Mapping[str, EvalSettings],
        folder: EvalFolder,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._settings, self._by_task, self._folder = settings, by_task, folder
        self._say, self._progress = say, progress
        self._generator: Generator | None = None

    def task(self, name: str, task: "ConfigurableTask") -> TaskResult:
        settings = self._by_task[name]
        wanted = (min(len(task.eval_docs), settings.limit or len(task.eval_docs)), settings.samples_per_problem)
        samples = self._folder.samples(name)
        grading = grading_fingerprint(name, task, settings)
        anew = self._folder.noted(name, "grading") != grading
        if anew or not samples.is_complete(*wanted):
            samples.grade(self._answer(name, task, samples), anew=anew)
            self._folder.start(name, grading=grading)
        records = samples.select(*wanted)
        found = summarize(name, records, max_new_tokens=self._folder.noted(name, "lowered_max_new_tokens"))
        found = self._with_budgets(found, task, records)
        if found.not_judged:
            self._say(
                f"{name}: {found.not_judged} of {len(records)} answers are not judged, since comparing them "
                "came to no end; they count as neither right nor wrong"
            )
        return found

    def _with_budgets(self, found: TaskResult, task: "ConfigurableTask", records: Sequence[Record]) -> TaskResult:
        """Add accuracy by token budget, where lengths are known and the task grades each sample by itself."""
        one = len(budgets_up_to(found.max_new_tokens)) == 1
        if one or found.mean_new_tokens is None or not grades_each_sample(task) or not loads_model(self._settings):
            return found
        tokenizer = load_tokenizer(self._settings.model_name_or_path)
        grade = partial(_grade_cut_off, task)
        table = accuracy_by_budget(records, tokenizer, grade, max_new_tokens=found.max_new_tokens)
        write_budgets(budget_file(self._settings.output_dir, found.task), table)
        return dataclasses.replace(found, by_budget=table.rows, inexact_cut_share=table.inexact_cut_share)

    def _answer(self, name: str, task: "ConfigurableTask", samples: SampleFile) -> dict[tuple[int, int], Record]:
        """Have the harness ask and grade, which takes from the records what they hold; return the grades."""
        # Not simple_evaluate, which does the same and spends five seconds on a list of the machine's libraries.
        from lm_eval.evaluator import evaluate as evaluate_by_harness

        from profit_sft.evaluation.kept_answers import KeptAnswers

        settings = self._settings
        if self._generator is None:
            self._say(f"loading {settings.model_name_or_path}")
            self._generator = start_generator(settings)
        prompts = {
            "system_instruction": settings.system_prompt,
            "apply_chat_template": settings.apply_chat_template,
            "fewshot_as_multiturn": True,
        }
        lowered = self._max_new_tokens(name, task, self._generator, prompts)
        task.set_config("generation_kwargs", {"max_gen_toks": lowered}, update=True)
        devices = sorted({*(self._folder.noted(name, "devices") or ()), self._generator.device_name})
        answers = KeptAnswers(
            self._generator,
            name,
            samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            started=partial(self._folder.start, name, lowered_max_new_tokens=lowered, devices=devices),
            say=self._say,
            progress=self._progress,
        )
        task.aggregation = _no_aggregation  # sums of ours follow from the samples; some metrics' own need more packages
        tasks = {"tasks": {task.task_name: task}}
        found = evaluate_by_harness(
            answers, tasks, limit=settings.limit, bootstrap_iters=0, confirm_run_unsafe_code=True, **prompts
        )
        return _grades(name, found["samples"][task.task_name])

    def _max_new_tokens(
        self, name: str, task: "ConfigurableTask", generator: Generator, prompts: dict[str, Any]
    ) -> int:
        """Return the limit of an answer to any problem of the task, so that it does not depend on `limit`."""
        wanted = int(task.config.generation_kwargs["max_gen_toks"])
        if generator.window is None:
            return wanted
        task.build_all_requests(**prompts, chat_template=generator.lm.apply_chat_template)
        seed_examples(task)
        longest = max(generator.length(request.args[0]) for request in task.instances)
        room = generator.window - longest
        if room < 1:
            raise ConfigurationError(
                f"{name}: its longest prompt has {longest} tokens, the model's window {generator.window}. "
                "Leave out the task or use a model with a longer window."
            )
        if room < wanted:
            self._say(
                f"{name}: max_new_tokens is {room} instead of {wanted}, what the model's "
                f"window of {generator.window} tokens leaves to the longest prompt"
            )
        return min(room, wanted)


def _grade_cut_off(task: "ConfigurableTask", problem: int, text: str) -> bool | None:
    """Grade a text that was cut off as an answer to a problem."""
    found = task.process_results(task.eval_docs[problem], [[Answer(text, truncated=True)]])
    grade: Record = next(iter(found.values()))[0]
    correct: bool | None = grade["correct"]
    return correct


def _no_aggregation() -> Mapping[str, Callable[[Sequence[Any]], float]]:
    return defaultdict(lambda: lambda grades: math.nan)


def _grades(name: str, problems: Sequence[Record]) -> dict[tuple[int, int], Record]:
    """Return the grade of each sample of what the harness found: our tasks' list of them, or 0 or 1 of one sample.

    Raises:
        ConfigurationError: The first metric of the task says something else, such as a share of words.
    """
    grades = {}
    for problem in problems:
        if problem["filter"] != problems[0]["filter"]:
            continue  # another way to read the same answers
        found = problem[problem["metrics"][0]]
        if not isinstance(found, list) or not all(isinstance(grade, Mapping) for grade in found):
            if found not in (0, 1):
                raise ConfigurationError(
                    f"{name}: {problem['metrics'][0]} of problem {problem['doc_id']} is {found!r}, but an answer is "
                    "right (1) or wrong (0). Put such a metric first in the task file, or have its process_results "
                    "say that; the answers are kept."
                )
            text = str(problem["filtered_resps"][0])
            found = [{"correct": bool(found), "extracted": text, "rule": "task" if text.strip() else None}]
        for sample, grade in enumerate(found):
            grades[problem["doc_id"], sample] = {"expected": str(problem["target"]), **grade}
    return grades


def harness_model(settings: EvalSettings) -> Any:
    """Return the harness's class of the model that `engine` names.

    Raises:
        ConfigurationError: There is none of that name, or a library it needs is not installed.
    """
    from lm_eval.api.registry import get_model

    try:
        return get_model(settings.engine)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"engine: '{settings.engine}' cannot be used ({brief(str(error), 1000).rstrip('.')}). Install what it "
            "needs, or leave it out for hf."
        ) from None


def loads_model(settings: EvalSettings) -> bool:
    """Say whether what `engine` names loads the model itself; otherwise its name is one that a server knows."""
    return "pretrained" in inspect.signature(harness_model(settings).__init__).parameters


def start_generator(settings: EvalSettings) -> Generator:
    """Load the model, or get ready to ask its server.

    Raises:
        ConfigurationError: There is no such model, `engine` does not take `engine_args`, or prompts cannot be put
            the way that is asked for.
    """
    if settings.engine == "hf":
        from profit_sft.evaluation.hf_generator import HFGenerator  # takes seconds, and a server needs none of it

        generator: Generator = HFGenerator(settings)
    else:
        generator = _harness_generator(settings)
    if settings.apply_chat_template and getattr(generator.tokenizer, "chat_template", "") is None:
        raise ConfigurationError(
            f"the tokenizer of '{settings.model_name_or_path}' has no chat template. Evaluate a model that has one, or "
            "leave templates out with --no_chat_template (apply_chat_template=False)."
        )
    date_chats(generator.tokenizer, settings.model_name_or_path)
    return generator


def _harness_generator(settings: EvalSettings) -> Generator:
    from lm_eval.models.api_models import TemplateAPI
    from lm_eval.models.openai_completions import LocalChatCompletion

    made_by = harness_model(settings)
    served = issubclass(made_by, TemplateAPI)
    if issubclass(made_by, LocalChatCompletion) and not settings.apply_chat_template:
        raise ConfigurationError(
            f"engine {settings.engine} sends messages, which the server puts into the model's chat template. Leave out "
            "--no_chat_template, or take local-completions, which sends texts."
        )
    if loads_model(settings):
        arguments: dict[str, Any] = {"pretrained": pretrained_path(settings.model_name_or_path)}
        arguments |= {} if settings.dtype == "auto" else {"dtype": settings.dtype}
    else:
        arguments = {"model": settings.model_name_or_path}
    try:
        # Served, a batch is that many requests at the same time.
        lm = made_by(**{**arguments, "batch_size": 1 if served else settings.batch_size, **settings.engine_args})
    except (TypeError, ValueError, OSError, ImportError, AssertionError) as error:
        raise ConfigurationError(f"engine {settings.engine} cannot be started: {error}") from None
    if served:
        return ServedGenerator(lm)
    return Generator(lm, seeded=settings.engine in _SEEDED_BY_REQUEST)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep bars, and the harness's remarks on how it was called, off the terminal; its errors stay."""
    from tqdm import tqdm

    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    loud = tqdm.__init__
    try:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it says of a bad file is raised as well
        tqdm.__init__ = partialmethod(loud, disable=True)
        yield
    finally:
        tqdm.__init__ = loud
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
