"""Starts of chosen strength, fine-tuning on single references, and what is measured afterwards. One thread each."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from task import (
    CHARACTER_CODER,
    IGNORE_INDEX,
    LARGEST_ANSWER,
    TEST_SEED,
    VALIDATION_SEED,
    VOCAB_SIZE,
    Coder,
    Problem,
    Reference,
    draw_problem,
    draw_problems,
    draw_reference,
    last_number,
)
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from profit_sft import apply_profit, make_objective
from profit_sft.models.embedded import embedded_model_folder

BATCH_SIZE = 16
EPOCHS = 2
_LESSON_SEED = 77  # of the problems that tell how strong a start is by now


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many problems a model is measured on: greedily by skill, with 8 samples (the old one), on validation."""

    tested: dict[str, int]
    sampled: int
    validated: int


@dataclass(slots=True)
class Learner:
    """A model, how it reads and writes, what it is measured on, and whether its layers compute in bf16."""

    model: PreTrainedModel
    coder: Coder
    sizes: Sizes
    autocast: bool = False

    def __call__(self, **inputs: Any) -> Any:
        """Return the model's output."""
        with self.precision():
            return self.model(**inputs)

    def precision(self) -> torch.autocast:
        """Return the context in which its layers compute; one around many calls casts the weights once."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)


def new_learner() -> Learner:
    """Return an untrained Llama of 0.8M parameters."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            pad_token_id=CHARACTER_CODER.pad,
            eos_token_id=CHARACTER_CODER.eos,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
    )
    return Learner(model, CHARACTER_CODER, Sizes({"old": 400, "new": 200, "longer": 200}, sampled=100, validated=200))


def smollm2() -> Learner:
    """Return SmolLM2-135M-Instruct, on bare text, without its chat template; measured on fewer problems."""
    folder = embedded_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> tuple[list[int], list[int]]:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], [end - start for start, end in found["offset_mapping"]]

    coder = Coder(encode, tokenizer.decode, pad=tokenizer.pad_token_id, eos=tokenizer.eos_token_id)
    sizes = Sizes({"old": 200, "new": 100}, sampled=0, validated=50)
    return Learner(AutoModelForCausalLM.from_pretrained(folder), coder, sizes, autocast=True)


@dataclass(frozen=True, slots=True)
class Lessons:
    """How a model is taught the old skill, and the learning rates that objectives try on it afterwards.

    `strengths` are shares right, at least, by the name of the start that is kept when they are reached.
    """

    strengths: dict[str, float]
    make: Callable[[], Learner]
    tried_rates: tuple[float, ...]
    batch_size: int
    steps: int
    rate: float
    warmup_steps: int
    look_every: int


FROM_SCRATCH = Lessons(
    {"weak": 0.1, "half": 0.5, "good": 0.8, "strong": 0.97},
    new_learner,
    (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    batch_size=64,
    steps=3500,
    rate=1e-3,
    warmup_steps=100,
    look_every=25,
)
SMOLLM2 = Lessons(
    {"smollm2": 0.85},
    smollm2,
    (1e-5, 3e-5, 1e-4),
    batch_size=16,
    steps=400,
    rate=1e-4,
    warmup_steps=20,
    look_every=20,
)


def lessons_of(start: str) -> Lessons:
    """Return what a start was taught by."""
    return next(lessons for lessons in (FROM_SCRATCH, SMOLLM2) if start in lessons.strengths)


def make_starts(folder: Path, lessons: Lessons, report: Callable[[str], None]) -> None:
    """Teach the old skill in the start's own words, and keep the model each time it gets so strong."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: share for name, share in lessons.strengths.items() if not (folder / f"{name}.pt").exists()}
    if not wanted:
        return
    learner, random, began = lessons.make(), Random(1), time.perf_counter()
    optimizer = torch.optim.AdamW(learner.model.train().parameters(), lr=lessons.rate, weight_decay=0.0)
    problems = draw_problems(Random(_LESSON_SEED), "old", learner.sizes.validated)
    for step in range(1, lessons.steps + 1):
        rate = lessons.rate * min(1.0, step / lessons.warmup_steps) * (0.02 + 0.98 * (1 - step / lessons.steps))
        drawn = [draw_problem(random, "old") for _ in range(lessons.batch_size)]
        _step(learner, optimizer, [draw_reference(random, one, wording="own", wrong_share=0) for one in drawn], rate)
        if step % lessons.look_every == 0:
            right = sum(greedy_scores(learner, problems)) / len(problems)
            report(
                f"step {step}, {step * lessons.batch_size} rows, {time.perf_counter() - began:.0f} s: {right:.1%} right"
            )
            for name in [name for name, share in wanted.items() if right >= share]:
                torch.save(learner.model.state_dict(), folder / f"{name}.pt")
                del wanted[name]
            if not wanted:
                return
    if [*wanted] != ["strong"]:
        raise RuntimeError(f"the start never got as strong as {', '.join(wanted)}")
    torch.save(learner.model.state_dict(), folder / "strong.pt")  # as strong as it got; what it can do is measured


def training_rows(seed: int, *, wording: str, wrong_share: float, new_skill: bool, rows: int) -> list[Reference]:
    """Draw one reference a problem; with a new skill, half of the problems are of it."""
    random = Random(1000 + seed)
    skills = ["new" if new_skill and index % 2 else "old" for index in range(rows)]
    return [
        draw_reference(random, draw_problem(random, skill), wording=wording, wrong_share=wrong_share)
        for skill in skills
    ]


def _step(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    rows: list[Reference],
    rate: float,
    reference_log_probs: list[Tensor] | None = None,
) -> Any:
    for group in optimizer.param_groups:
        group["lr"] = rate
    batch = learner.coder.batch_of(rows)
    if reference_log_probs is not None:
        batch["reference_log_probs"] = torch.nn.utils.rnn.pad_sequence(reference_log_probs, batch_first=True)
    output = learner(**batch)
    optimizer.zero_grad()
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
    optimizer.step()
    return output


@torch.no_grad()
def scored(learner: Learner, rows: list[Reference]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return of each row its labels, their log p (0 where there is none) and log p of the model's choice, `(S,)`."""
    found = []
    for first in range(0, len(rows), BATCH_SIZE):
        batch = learner.coder.batch_of(rows[first : first + BATCH_SIZE])
        lengths, labels = batch["attention_mask"].sum(1), batch["labels"][:, 1:]
        log_probs = learner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        log_probs = log_probs.float().log_softmax(-1)
        of_labels = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)
        columns = [torch.nn.functional.pad(of, (1, 0)) for of in (of_labels, log_probs.amax(-1))]
        for row, length in enumerate(lengths.tolist()):
            found.append((batch["labels"][row, :length], columns[0][row, :length], columns[1][row, :length]))
    return found


def profile(learner: Learner, rows: list[Reference]) -> dict[str, float]:
    """Return what scoring the data tells before training: shares of label tokens, and nats a token.

    `confidence_where_it_disagrees` is the mean probability of the model's own choice where that is not the label.
    """
    labels, log_probs, own = (torch.cat(column) for column in zip(*scored(learner, rows), strict=True))
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
    start: Learner, rows: list[Reference], objective: str, settings: dict[str, Any], *, rate: float, seed: int
) -> tuple[Learner, float]:
    """Fine-tune a copy of the start; return it with the share of label tokens that had a weight."""
    learner = copy.deepcopy(start)
    made = make_objective(objective, **settings)
    reference = [row[1] for row in scored(start, rows)] if "reference_log_probs" in made.needs else None
    torch.manual_seed(seed)
    apply_profit(learner.model.train(), made)
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=rate, weight_decay=0.0)
    random, steps, kept, labels = Random(seed), EPOCHS * len(rows) // BATCH_SIZE, 0.0, 0
    order: list[int] = []
    for step in range(steps):
        if not order:
            order = random.sample(range(len(rows)), len(rows))
        indices = [order.pop() for _ in range(BATCH_SIZE)]
        scale = min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        drawn = [rows[index] for index in indices]
        of_start = None if reference is None else [reference[index] for index in indices]
        output = _step(learner, optimizer, drawn, rate * scale, of_start)
        kept += output.selective.num_kept.item()
        labels += output.selective.num_labels.item()
    learner.model.eval()
    optimizer.zero_grad()
    return learner, kept / labels


@torch.no_grad()
def greedy_scores(learner: Learner, problems: list[Problem]) -> list[bool]:
    """Return which problems are answered right by greedy decoding."""
    return [right for right, _ in answers(learner, problems, temperature=0.0)]


@torch.no_grad()
def answers(learner: Learner, problems: list[Problem], *, temperature: float) -> list[tuple[bool, int]]:
    """Return of each problem whether its answer is right, and the answer's length in characters."""
    training = learner.model.training
    learner.model.eval()
    generator = torch.Generator().manual_seed(TEST_SEED)
    by_length: dict[int, list[int]] = {}
    for index, problem in enumerate(problems):
        by_length.setdefault(len(learner.coder.encode(problem.prompt)[0]), []).append(index)
    found: list[tuple[bool, int]] = [(False, 0)] * len(problems)
    with learner.precision():  # or every token would cast every weight anew
        for indices in by_length.values():
            current = torch.tensor([learner.coder.encode(problems[index].prompt)[0] for index in indices])
            cache, open_rows = DynamicCache(), torch.arange(len(indices))  # rows whose answers have not ended
            said = torch.full((len(indices), LARGEST_ANSWER), learner.coder.eos)
            for place in range(LARGEST_ANSWER):
                logits = learner(input_ids=current, past_key_values=cache, use_cache=True).logits[:, -1].float()
                if temperature == 0:
                    token = logits.argmax(-1)
                else:
                    token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
                said[open_rows, place] = token
                going_on = (token != learner.coder.eos).nonzero()[:, 0]
                if len(going_on) == 0:
                    break
                if len(going_on) < len(open_rows):
                    cache.batch_select_indices(going_on)
                    open_rows, token = open_rows[going_on], token[going_on]
                current = token[:, None]
            for index, ids in zip(indices, said.tolist(), strict=True):
                text = learner.coder.answer_of(ids)
                found[index] = (last_number(text) == problems[index].answer, len(text))
    learner.model.train(training)
    return found


def validate(learner: Learner, skills: Sequence[str]) -> dict[str, float]:
    """Return the share right on validation problems of each skill, and the mean of these."""
    random = Random(VALIDATION_SEED)
    count = learner.sizes.validated
    shares = {skill: sum(greedy_scores(learner, draw_problems(random, skill, count))) / count for skill in skills}
    return {"validation": sum(shares.values()) / len(shares)} | {
        f"validation_{skill}": share for skill, share in shares.items()
    }


def out_of_reach(learner: Learner, skill: str) -> float:
    """Return the share of a skill's problems of which none of 8 samples at 0.7 is right."""
    count = learner.sizes.validated // 2
    problems = draw_problems(Random(TEST_SEED), skill, count)
    graded = answers(learner, [problem for problem in problems for _ in range(8)], temperature=0.7)
    return sum(not any(right for right, _ in graded[8 * index : 8 * index + 8]) for index in range(count)) / count


def measure(learner: Learner, *, wording: str) -> dict[str, Any]:
    """Measure a model on problems of its own, the same for all; right answers as text of 0 and 1, a problem a digit."""
    random = Random(TEST_SEED)
    found: dict[str, Any] = {}
    for skill, count in learner.sizes.tested.items():
        problems = draw_problems(random, skill, count)
        graded = answers(learner, problems, temperature=0.0)
        found[f"greedy_{skill}"] = "".join(str(int(right)) for right, _ in graded)
        if skill == "old":
            found["length"] = sum(length for _, length in graded) / count
        if skill == "old" and (sampled := learner.sizes.sampled):
            repeated = [problem for problem in problems[:sampled] for _ in range(8)]
            graded = answers(learner, repeated, temperature=0.7)
            rights = [right for right, _ in graded]
            found["sampled_old"] = [sum(rights[8 * index : 8 * index + 8]) / 8 for index in range(sampled)]
    references = [
        draw_reference(random, draw_problem(random, "old"), wording=wording, wrong_share=0) for _ in range(200)
    ]
    found |= _nll_by_kind(learner, references)
    return found


def _nll_by_kind(learner: Learner, references: list[Reference]) -> dict[str, float]:
    sums = {"core": [0.0, 0], "style": [0.0, 0]}
    for reference, (labels, log_probs, _) in zip(references, scored(learner, references), strict=True):
        place, widths = 0, learner.coder.encode(reference.answer)[1]
        for width, log_prob in zip(widths, log_probs[labels != IGNORE_INDEX].tolist(), strict=False):  # but the end
            entry = sums["core" if any(reference.is_core[place : place + width]) else "style"]
            entry[0] -= log_prob
            entry[1] += 1
            place += width
    return {f"nll_{kind}": total / count for kind, (total, count) in sums.items()}
