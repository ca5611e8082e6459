"""The main job on parts that need no hub: SmolLM2-135M-Instruct on generated problems, beside plain SFT.

Trains on problems whose every token is known to be core (equations, final number) or style (wording), once by plain SFT
and once by the objective, and reports held-out accuracy, plain NLL, which of the two kinds the objective keeps, and
answers that changed.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import ModelConfig

from profit_sft.data.generated import SYSTEM_PROMPT, GeneratedProblem, generate_problems, to_row, write_jsonl
from profit_sft.data.prepare import PreparedData, prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.evaluation.generator import Answer
from profit_sft.evaluation.grading import MathJudge, grade_math
from profit_sft.evaluation.statistics import share_interval
from profit_sft.files import check_output_folder, write_text
from profit_sft.mask.page import MaskPage
from profit_sft.mask.report import make_report
from profit_sft.models.embedded import embedded_model_folder
from profit_sft.models.pretrained import EMBEDDED, default_device, end_tokens, load_model
from profit_sft.objectives import Objective
from profit_sft.runs.page import write_run_page
from profit_sft.scores.loop import LabelScores, label_examples, mean_figures, score_labels
from profit_sft.scores.score import write_scores
from profit_sft.scores.settings import ScoreSettings
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.job import TrainJob
from profit_sft.train.run import RunResult, run_training

# A minute and a half of training on two cores, for each of the two; what it reaches is measured in data/generated.py.
TRAIN_ROWS = 240
HELD_OUT_ROWS = 48
LEARNING_RATE = 5e-5
BATCH_SIZE = 8
MAX_NEW_TOKENS = 40  # the longest reference solution has 33
PLAIN_SFT = "nll"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a model stands on the held-out problems. Shares are in [0, 1].

    Attributes:
        accuracy: Share of problems with the right final number, greedy decoding.
        accuracy_interval: Its 95% interval, over problems.
        nll: Plain NLL of the reference solutions, nats a token.
        kept_share: Share of label tokens of non-zero weight under the quickstart's objective.
        kept_share_core: That of core tokens.
        kept_share_style: That of style tokens.
        answers: To every problem, as generated.
        right: Which of them are right.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    nll: float
    kept_share: float
    kept_share_core: float
    kept_share_style: float
    answers: tuple[str, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartReport:
    """What the quickstart measured and where it lies.

    Attributes:
        objective: Which one is compared with plain SFT, with its settings.
        problems: The held-out ones, in the order of every `Standing`'s answers.
        before: The untrained model.
        plain_sft: After plain SFT; None where a signal stopped a run, or where plain SFT is the objective.
        after: After the objective; None where a signal stopped a run.
        run: Of the objective, or the one that was stopped.
        report_file: All figures, as JSON.
        page: The mask before and after; None where a run was stopped.
        comparison: The curves of both runs; None where there are not two.
    """

    objective: str
    problems: tuple[GeneratedProblem, ...]
    before: Standing
    plain_sft: Standing | None
    after: Standing | None
    run: RunResult
    report_file: Path
    page: Path | None
    comparison: Path | None


def run_quickstart(
    output_dir: Path,
    *,
    objective: str = "profit",
    threshold: float | None = None,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    say: Callable[[str], None] = lambda text: None,
    train_rows: int = TRAIN_ROWS,
    held_out_rows: int = HELD_OUT_ROWS,
) -> QuickstartReport:
    """Generate data, look at the mask, train by plain SFT and by the objective, and look again.

    Args:
        output_dir: Its subfolder `data` has the problems, `nll` and one named after the objective the runs.
        objective: Name of the objective.
        threshold: Its threshold, where it has one.
        overwrite: Replace earlier runs.
        callbacks: For the trainers, such as a progress display.
        say: Called with one line of text before each slow step.
        train_rows: Training problems.
        held_out_rows: Held-out problems.

    Raises:
        ConfigurationError: A run's folder is taken, or a setting is wrong.
        DownloadError: The model cannot be fetched.
    """
    check_output_folder(output_dir)
    configs = {PLAIN_SFT: _config(output_dir / PLAIN_SFT, PLAIN_SFT, None)}
    configs[objective] = _config(output_dir / objective, objective, threshold)
    made = configs[objective].make_objective()
    folder = embedded_model_folder(progress=say)
    train_file, test_file = output_dir / "data" / "train.jsonl", output_dir / "data" / "test.jsonl"
    held_out = generate_problems(held_out_rows, seed=1, split="test")
    write_jsonl(generate_problems(train_rows, seed=0, split="train"), train_file, system_prompt=SYSTEM_PROMPT)
    write_jsonl(held_out, test_file, system_prompt=SYSTEM_PROMPT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = prepare_dataset(DataSettings(dataset_name=str(test_file), max_length=None), tokenizer)
    say("measuring the untrained model on held-out problems")
    before, scores_before = measure(str(folder), tokenizer, held_out, data, made)
    standings: dict[str, Standing] = {}
    page = comparison = None
    for name, config in configs.items():
        say(f"training on {train_rows} problems: {'plain SFT' if name == PLAIN_SFT else made}")
        arguments = RunArguments(dataset_name=str(train_file), overwrite_output_dir=overwrite)
        job = TrainJob(arguments, config, ModelConfig(model_name_or_path=str(folder)))
        run = run_training(job, callbacks=list(callbacks), progress=False)
        if run.stopped_by is not None:
            break
        say("measuring the trained model")
        standings[name], scores_after = measure(str(run.output_dir), tokenizer, held_out, data, made)
    else:
        say("drawing the mask before and after")
        page = output_dir / "mask.html"
        scores = {EMBEDDED: scores_before, str(run.output_dir): scores_after}
        write_page(page, scores, data, tokenizer, threshold=threshold)
        if len(configs) == 2:
            comparison = write_run_page([output_dir / name for name in configs], output_dir / "comparison.html")
    found = QuickstartReport(
        objective=str(made),
        problems=tuple(held_out),
        before=before,
        plain_sft=standings.get(PLAIN_SFT) if comparison else None,
        after=standings.get(objective) if page else None,
        run=run,
        report_file=output_dir / "quickstart.json",
        page=page,
        comparison=comparison,
    )
    write_text(found.report_file, json.dumps(as_dict(found), indent=2) + "\n")
    return found


def changed_answers(report: QuickstartReport) -> list[tuple[str, int]]:
    """Return problems that training turned right and wrong, the first of each kind, as `(kind, index)`.

    Where it turned none wrong, one that plain SFT answers right and the objective does not, or one that is still wrong.
    """
    assert report.after is not None
    before, after = report.before.right, report.after.right
    plain = after if report.plain_sft is None else report.plain_sft.right
    kinds = (
        [("turned right", index) for index in range(len(after)) if after[index] and not before[index]],
        [("turned wrong", index) for index in range(len(after)) if before[index] and not after[index]]
        or [("is right by plain SFT alone", index) for index in range(len(after)) if plain[index] and not after[index]]
        or [("is still wrong", index) for index in range(len(after)) if not after[index]],
    )
    return [kind[0] for kind in kinds if kind]


def as_dict(report: QuickstartReport) -> dict[str, Any]:
    """Return the figures of a report as plain values for JSON."""
    standings = {"before": report.before, "plain_sft": report.plain_sft, "after": report.after}
    return {
        "objective": report.objective,
        "questions": [problem.question for problem in report.problems],
        "expected": [problem.final_answer for problem in report.problems],
        **{name: None if standing is None else asdict(standing) for name, standing in standings.items()},
        "train_runtime_seconds": report.run.train_runtime_seconds,
        "steps": report.run.global_step,
        "output_dir": str(report.run.output_dir),
        "page": None if report.page is None else str(report.page),
        "comparison": None if report.comparison is None else str(report.comparison),
    }


def write_page(
    page: Path,
    scores: Mapping[str, Sequence[LabelScores]],
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    threshold: float | None,
) -> None:
    """Write the page that shows the mask on the held-out rows under two models, before and after.

    The scores are stored beside the page, in `scores/before` and `scores/after`; those of an earlier run are replaced.

    Args:
        page: The HTML file.
        scores: By model, a folder or `embedded`: what `measure` returned.
        data: The rows they are of.
        tokenizer: Its tokenizer.
        threshold: Where the page starts; None is 0.1.
    """
    settings = DataSettings(dataset_name=data.report.dataset_name, max_length=None)
    score_sets = []
    for name, (model, found) in zip(("before", "after"), scores.items(), strict=True):
        place = page.parent / "scores" / name
        shutil.rmtree(place, ignore_errors=True)
        job = ScoreSettings(model_name_or_path=model, data=settings, output_dir=place)
        score_sets.append(write_scores(job, data, tokenizer, found))
    report = make_report(score_sets, threshold=0.1 if threshold is None else threshold)
    MaskPage(report).write(page, date.today())


def _config(output_dir: Path, objective: str, threshold: float | None) -> ProFitConfig:
    return ProFitConfig(
        output_dir=str(output_dir),
        objective=objective,
        threshold=threshold,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        max_length=256,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        logging_steps=2,
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )


def measure(
    model_name: str,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[GeneratedProblem],
    data: PreparedData,
    objective: Objective,
) -> tuple[Standing, list[LabelScores]]:
    """Measure a checkpoint on held-out problems.

    Args:
        model_name: Folder of the checkpoint.
        tokenizer: Its tokenizer.
        problems: The problems.
        data: The same problems, prepared.
        objective: Whose mask is looked at; online, under this checkpoint.

    Returns:
        How it stands, and what it thinks of every label token of `data`.
    """
    model = load_model(model_name)
    model.to(default_device())  # type: ignore[arg-type]  # transformers wraps it
    answers = generate_answers(model, tokenizer, problems)
    examples = label_examples(data.dataset[:])
    scores = score_labels(model, examples, objective=objective, likeliest=5)
    with closing(MathJudge()) as judge:  # starts no process unless an answer is a formula
        grades = [
            grade_math(answer, str(problem.final_answer), judge, truncated=answer.truncated)
            for answer, problem in zip(answers, problems, strict=True)
        ]
    means = mean_figures(examples, scores)
    right = tuple(bool(grade.correct) for grade in grades)
    standing = Standing(
        accuracy=sum(right) / len(right),
        accuracy_interval=share_interval(right),
        answers=tuple(str(answer) for answer in answers),
        right=right,
        **{name: means[name] for name in ("nll", "kept_share", "kept_share_core", "kept_share_style")},
    )
    return standing, scores


def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[GeneratedProblem]
) -> list[Answer]:
    """Answer every problem greedily, all in one batch."""
    model.eval()
    prompts = [
        tokenizer.apply_chat_template(
            to_row(problem, system_prompt=SYSTEM_PROMPT)["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        for problem in problems
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(
        model.device
    )
    with torch.no_grad():
        generated: Any = model.generate(  # type: ignore[operator]  # transformers types it as Tensor | Module
            **batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    new_tokens = generated[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    ends = torch.isin(new_tokens, torch.tensor(end_tokens(model, tokenizer.eos_token_id), device=new_tokens.device))
    lengths = [row.index(True) + 1 if True in row else None for row in ends.tolist()]
    return [
        Answer(text.strip(), MAX_NEW_TOKENS if length is None else length, truncated=length is None)
        for text, length in zip(texts, lengths, strict=True)
    ]
