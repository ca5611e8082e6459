"""Starts of chosen strength, fine-tuning on single references, and what is measured afterwards. One thread each."""

import math
from pathlib import Path
from random import Random
from typing import Any

import torch
from task import (
    EOS,
    IGNORE_INDEX,
    LARGEST_ANSWER,
    PAD,
    VOCAB_SIZE,
    Problem,
    Reference,
    batch_of,
    decode,
    draw_problem,
    draw_reference,
    encode,
    last_number,
)
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from profit_sft import apply_profit, make_objective

BATCH_SIZE = 16
EPOCHS = 2
STRENGTHS = {"weak": 0.1, "half": 0.5, "good": 0.8, "strong": 0.97}  # share right, at least
_PRETRAIN_BATCH, _PRETRAIN_STEPS, _PRETRAIN_RATE = 64, 3500, 1e-3
_TEST_SEED, _VALIDATION_SEED = 99, 77


def new_model() -> LlamaForCausalLM:
    """Return an untrained Llama of 0.8M parameters."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
    )


def make_starts(folder: Path, report: Any = print) -> None:
    """Train from scratch on the old skill in the start's own words, and keep the model each time it gets so strong."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: share for name, share in STRENGTHS.items() if not (folder / f"{name}.pt").exists()}
    if not wanted:
        return
    model, random = new_model().train(), Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PRETRAIN_RATE, weight_decay=0.0)
    problems = draw_problems(Random(_VALIDATION_SEED), "old", 200)
    for step in range(1, _PRETRAIN_STEPS + 1):
        rate = _PRETRAIN_RATE * min(1.0, step / 100) * (0.02 + 0.98 * (1 - step / _PRETRAIN_STEPS))
        drawn = [draw_problem(random, "old") for _ in range(_PRETRAIN_BATCH)]
        batch = batch_of([draw_reference(random, problem, wording="own", wrong_share=0) for problem in drawn])
        _step(model, optimizer, batch, rate)
        if step % 25 == 0:
            right = sum(greedy_scores(model, problems)) / len(problems)
            report(f"step {step}: {right:.1%} right")
            for name in [name for name, share in wanted.items() if right >= share]:
                torch.save(model.state_dict(), folder / f"{name}.pt")
                del wanted[name]
            if not wanted:
                return
    if [*wanted] != ["strong"]:
        raise RuntimeError(f"the start never got as strong as {', '.join(wanted)}")
    torch.save(model.state_dict(), folder / "strong.pt")  # as strong as it got; what it can do is measured


def draw_problems(random: Random, skill: str, count: int) -> list[Problem]:
    """Draw problems; some may be alike."""
    return [draw_problem(random, skill) for _ in range(count)]


def training_rows(seed: int, *, wording: str, wrong_share: float, new_skill: bool, rows: int) -> list[Reference]:
    """Draw one reference a problem; with a new skill, half of the problems are of it."""
    random = Random(1000 + seed)
    skills = ["new" if new_skill and index % 2 else "old" for index in range(rows)]
    return [
        draw_reference(random, draw_problem(random, skill), wording=wording, wrong_share=wrong_share)
        for skill in skills
    ]


def _step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], rate: float
) -> torch.Tensor:
    for group in optimizer.param_groups:
        group["lr"] = rate
    output = model(**batch)
    optimizer.zero_grad()
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return output


@torch.no_grad()
def log_probs_of(model: LlamaForCausalLM, rows: list[Reference]) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, their log p under the model (0 where there is none), and log p of its own choice, `(B, S)`."""
    batch = batch_of(rows)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    labels, log_probs = batch["labels"][:, 1:], logits.log_softmax(-1)
    found = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)
    return batch["labels"], *(torch.nn.functional.pad(of, (1, 0)) for of in (found, log_probs.amax(-1)))


def profile(model: LlamaForCausalLM, rows: list[Reference]) -> dict[str, float]:
    """Return what scoring the data tells before training: shares of label tokens, and nats a token.

    `confidence_where_it_disagrees` is the mean probability of the model's own choice where that is not the label.
    """
    labels, log_probs, own = log_probs_of(model, rows)
    is_label = labels != IGNORE_INDEX
    log_probs, own = log_probs[is_label], own[is_label]
    disagrees = log_probs < own - 1e-6
    return {
        "nll": -log_probs.mean().item(),
        "below_0.1": (log_probs < math.log(0.1)).float().mean().item(),
        "disagrees": disagrees.float().mean().item(),
        "confidence_where_it_disagrees": own[disagrees].exp().mean().item(),
    }


def fine_tune(
    start: dict[str, Tensor], rows: list[Reference], objective: str, settings: dict[str, Any], *, rate: float, seed: int
) -> tuple[LlamaForCausalLM, float]:
    """Fine-tune a copy of the start; return it with the share of label tokens that had a weight."""
    model = new_model()
    model.load_state_dict(start)
    made = make_objective(objective, **settings)
    reference = log_probs_of(model.eval(), rows)[1] if "reference_log_probs" in made.needs else None
    torch.manual_seed(seed)
    apply_profit(model.train(), made)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    random, steps, kept, labels = Random(seed), EPOCHS * len(rows) // BATCH_SIZE, 0.0, 0
    order: list[int] = []
    for step in range(steps):
        if not order:
            order = random.sample(range(len(rows)), len(rows))
        indices = [order.pop() for _ in range(BATCH_SIZE)]
        batch = batch_of([rows[index] for index in indices])
        if reference is not None:
            batch["reference_log_probs"] = reference[indices, : batch["labels"].shape[1]]
        warm = min(1.0, (step + 1) / (0.1 * steps))
        output = _step(model, optimizer, batch, rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps)))
        kept += output.selective.num_kept.item()
        labels += output.selective.num_labels.item()
    return model.eval(), kept / labels


@torch.no_grad()
def greedy_scores(model: LlamaForCausalLM, problems: list[Problem]) -> list[bool]:
    """Return which problems are answered right by greedy decoding."""
    return [right for right, _ in answers(model, problems, temperature=0.0)]


@torch.no_grad()
def answers(model: LlamaForCausalLM, problems: list[Problem], *, temperature: float) -> list[tuple[bool, int]]:
    """Return of each problem whether its answer is right, and the answer's length in characters."""
    training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(_TEST_SEED)
    by_length: dict[int, list[int]] = {}
    for index, problem in enumerate(problems):
        by_length.setdefault(len(problem.prompt), []).append(index)
    found: list[tuple[bool, int]] = [(False, 0)] * len(problems)
    for indices in by_length.values():
        current = torch.tensor([encode(problems[index].prompt) for index in indices])
        cache, open_rows = DynamicCache(), torch.arange(len(indices))  # rows whose answers have not ended
        said = torch.full((len(indices), LARGEST_ANSWER), EOS)
        for place in range(LARGEST_ANSWER):
            logits = model(input_ids=current, past_key_values=cache, use_cache=True).logits[:, -1].float()
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            said[open_rows, place] = token
            going_on = (token != EOS).nonzero()[:, 0]
            if len(going_on) == 0:
                break
            if len(going_on) < len(open_rows):
                cache.batch_select_indices(going_on)
                open_rows, token = open_rows[going_on], token[going_on]
            current = token[:, None]
        for index, ids in zip(indices, said.tolist(), strict=True):
            text = decode(ids)
            found[index] = (last_number(text) == problems[index].answer, len(text))
    model.train(training)
    return found


def validate(model: LlamaForCausalLM, *, new_skill: bool) -> dict[str, float]:
    """Return the share right on validation problems of the skills in the training data, and the mean of these."""
    random = Random(_VALIDATION_SEED + 1)
    skills = ("old", "new") if new_skill else ("old",)
    shares = {skill: sum(greedy_scores(model, draw_problems(random, skill, 200))) / 200 for skill in skills}
    return {"validation": sum(shares.values()) / len(shares)} | {
        f"validation_{skill}": share for skill, share in shares.items()
    }


def measure(model: LlamaForCausalLM, *, wording: str) -> dict[str, Any]:
    """Measure a model on problems of its own, the same for all; right answers as text of 0 and 1, a problem a digit."""
    random = Random(_TEST_SEED)
    found: dict[str, Any] = {}
    for skill, count in (("old", 400), ("new", 200), ("longer", 200)):
        problems = draw_problems(random, skill, count)
        graded = answers(model, problems, temperature=0.0)
        found[f"greedy_{skill}"] = "".join(str(int(right)) for right, _ in graded)
        if skill == "old":
            found["length"] = sum(length for _, length in graded) / count
            repeated = [problem for problem in problems[:100] for _ in range(8)]
            graded = answers(model, repeated, temperature=0.7)
            rights = [right for right, _ in graded]
            found["sampled_old"] = [sum(rights[8 * index : 8 * index + 8]) / 8 for index in range(100)]
    references = [
        draw_reference(random, draw_problem(random, "old"), wording=wording, wrong_share=0) for _ in range(200)
    ]
    found |= _nll_by_kind(model, references)
    return found


def _nll_by_kind(model: LlamaForCausalLM, references: list[Reference]) -> dict[str, float]:
    _, log_probs, _ = log_probs_of(model.eval(), references)
    sums = {"core": [0.0, 0], "style": [0.0, 0]}
    for row, reference in enumerate(references):
        first = len(reference.prompt)
        for place, core in enumerate(reference.is_core):
            entry = sums["core" if core else "style"]
            entry[0] -= log_probs[row, first + place].item()
            entry[1] += 1
    return {f"nll_{kind}": total / count for kind, (total, count) in sums.items()}
