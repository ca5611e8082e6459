"""The main job on parts that need no hub: SmolLM2-135M-Instruct on generated problems, before and after.

Trains on problems whose every token is known to be core (equations, final number) or style (wording), and reports
held-out accuracy, plain NLL, and which of the two kinds the objective keeps.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import ModelConfig

from profit_sft.data import TOKEN_KINDS, DataSettings, PreparedData, prepare_dataset
from profit_sft.data.generated import (
    SYSTEM_PROMPT,
    GeneratedProblem,
    generate_problems,
    to_row,
    write_jsonl,
)
from profit_sft.evaluation.engine import Answer
from profit_sft.evaluation.grading import grade_math
from profit_sft.evaluation.math_judge import MathJudge
from profit_sft.files import write_text
from profit_sft.mask.page import write_mask_page
from profit_sft.mask.report import make_report
from profit_sft.models.embedded import embedded_model_folder
from profit_sft.models.pretrained import EMBEDDED, end_tokens, load_model
from profit_sft.objectives import Objective
from profit_sft.scores.engine import LabelExample, LabelScores, label_examples, score_labels
from profit_sft.scores.score import ScoreSettings, write_scores
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.run import RunResult, run_training

# About two minutes of training on two cores; what it reaches is measured in data/generated.py.
TRAIN_ROWS = 240
HELD_OUT_ROWS = 48
LEARNING_RATE = 5e-5
BATCH_SIZE = 8
MAX_NEW_TOKENS = 40  # the longest reference solution has 33


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a model stands on the held-out problems. Shares are in [0, 1].

    Attributes:
        accuracy: Share of problems with the right final number, greedy decoding.
        nll: Plain NLL of the reference solutions, nats a token.
        kept_share: Share of label tokens of non-zero weight under the run's objective.
        kept_share_core: That of core tokens.
        kept_share_style: That of style tokens.
        examples: The first few answers, as generated.
    """

    accuracy: float
    nll: float
    kept_share: float
    kept_share_core: float
    kept_share_style: float
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartReport:
    """What the quickstart measured and where it lies; `after` and `page` are None where the run was stopped."""

    objective: str
    before: Standing
    after: Standing | None
    run: RunResult
    train_file: Path
    test_file: Path
    report_file: Path
    page: Path | None


def run_quickstart(
    output_dir: Path,
    *,
    objective: str = "profit",
    threshold: float | None = None,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    report: Callable[[str], None] = lambda text: None,
    train_rows: int = TRAIN_ROWS,
    held_out_rows: int = HELD_OUT_ROWS,
) -> QuickstartReport:
    """Generate data, look at the mask, train, and look again.

    Args:
        output_dir: The run folder; data goes to its subfolder `data`.
        objective: Name of the objective.
        threshold: Its threshold, where it has one.
        overwrite: Replace an earlier run.
        callbacks: For the trainer, such as a progress display.
        report: Called with one line of text before each slow step.
        train_rows: Training problems.
        held_out_rows: Held-out problems.

    Raises:
        ConfigurationError: The output folder is taken, or a setting is wrong.
        DownloadError: The model cannot be fetched.
    """
    folder = embedded_model_folder(progress=report)
    train_file, test_file = output_dir / "data" / "train.jsonl", output_dir / "data" / "test.jsonl"
    config = _config(output_dir, objective, threshold)
    held_out = generate_problems(held_out_rows, seed=1, split="test")
    train = generate_problems(train_rows, seed=0, split="train")
    write_jsonl(train, train_file, system_prompt=SYSTEM_PROMPT)
    write_jsonl(held_out, test_file, system_prompt=SYSTEM_PROMPT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = prepare_dataset(DataSettings(dataset_name=str(test_file), max_length=None), tokenizer)
    report("measuring the untrained model on held-out problems")
    before, scores_before = measure(str(folder), tokenizer, held_out, data, config.make_objective())
    report(f"training on {train_rows} problems")
    run = run_training(
        RunArguments(dataset_name=str(train_file), overwrite_output_dir=overwrite),
        config,
        ModelConfig(model_name_or_path=str(folder)),
        callbacks=list(callbacks),
        progress=False,
    )
    after = page = None
    if run.stopped_by is None:
        report("measuring the trained model")
        after, scores_after = measure(str(output_dir), tokenizer, held_out, data, config.make_objective())
        report("drawing the mask before and after")
        page = output_dir / "mask.html"
        scores = {EMBEDDED: scores_before, str(output_dir): scores_after}
        write_page(page, scores, data, tokenizer, threshold=threshold)
    found = QuickstartReport(
        objective=str(config.make_objective()),
        before=before,
        after=after,
        run=run,
        train_file=train_file,
        test_file=test_file,
        report_file=output_dir / "quickstart.json",
        page=page,
    )
    write_text(found.report_file, json.dumps(as_dict(found), indent=2) + "\n")
    return found


def as_dict(report: QuickstartReport) -> dict[str, Any]:
    """Return the figures of a report as plain values for JSON."""
    from dataclasses import asdict

    return {
        "objective": report.objective,
        "before": asdict(report.before),
        "after": None if report.after is None else asdict(report.after),
        "train_runtime_seconds": report.run.train_runtime_seconds,
        "steps": report.run.global_step,
        "output_dir": str(report.run.output_dir),
        "page": None if report.page is None else str(report.page),
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
    write_mask_page(report, page, today=date.today())


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
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]  # transformers wraps it
    answers = generate_answers(model, tokenizer, problems)
    examples = label_examples(data.dataset[:])
    scores = score_labels(model, examples, objective=objective, likeliest=5)
    with MathJudge() as judge:  # starts no process unless an answer is a formula
        right = [
            grade_math(answer, str(problem.final_answer), judge, truncated=answer.truncated).correct
            for answer, problem in zip(answers, problems, strict=True)
        ]
    judged = [grade for grade in right if grade is not None]
    standing = Standing(
        accuracy=sum(judged) / max(1, len(judged)),
        examples=tuple(str(answer) for answer in answers[:3]),
        **_mask_by_kind(examples, scores),
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


def _mask_by_kind(examples: Sequence[LabelExample], scores: Sequence[LabelScores]) -> dict[str, float]:
    """Return plain NLL, and the kept share of all, core and style tokens."""
    kept = np.concatenate([found.token_weights for found in scores]) != 0
    kinds = np.concatenate([example.token_kinds for example in examples if example.token_kinds is not None])
    log_probs = np.concatenate([found.log_probs for found in scores])
    return {
        "nll": -float(log_probs.mean(dtype=np.float64)),
        "kept_share": float(kept.mean()),
        **{f"kept_share_{kind}": float(kept[kinds == TOKEN_KINDS[kind]].mean()) for kind in ("core", "style")},
    }
