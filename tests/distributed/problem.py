"""Tiny models, one global batch that is hard on engines, and what one process with dense logits makes of it.

The batch has rows of unequal length and label count, about half of the label tokens kept, two rows of which every
token is masked, and on request more of these and rows without any label. Nothing here imports profit_sft.
"""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 512
LENGTHS = (24, 15, 31, 6, 12, 9, 19, 8)
ROWS = range(len(LENGTHS))
MASKED = (4, 5)  # in the plain loops one whole micro-batch of the second rank
PROMPT = 2  # tokens at the start of a row that have no label
LEARNING_RATE = 1e-3
# The optimizer's eps. AdamW's first step is gradient / (|gradient| + eps): far below the gradients eps would hide their
# scale, and turn a zero's rounding into a whole step; far above it would make the steps as small as a parameter's own
# rounding. With this one a gradient twice as large moves every parameter by over 2e-5 of its norm; with 1e-5 or 1.0
# some move by 1e-6 or less.
EPSILON = 3e-3
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}


def tiny_causal_lm(family, *, tied=False):
    """Make the same model in every process. OPT's final norm lies one level deeper than accelerate looks for it."""
    torch.manual_seed(0)
    if family == "opt":
        sizes = {**_SIZES, "word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.0}
        model = OPTForCausalLM(OPTConfig(**sizes, tie_word_embeddings=tied))
    else:
        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        }[family]
        model = model_class(config_class(**_SIZES, **_GROUPED, tie_word_embeddings=tied))
    with torch.no_grad():  # so that probabilities differ by orders of magnitude
        model.get_output_embeddings().weight.mul_(15.0)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # not zero, so that an error is measured against more than one step
                parameter.normal_(std=0.05)
    return model.train()


def with_adapters(model, lora):
    """Put the same random adapters on the model in every process: all layers get a gradient at the first step."""
    from peft import get_peft_model

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a trained copy of a tied head, which is what is asked for
        return get_peft_model(model, lora_config(lora))


def lora_config(modules_to_save):
    from peft import LoraConfig

    return LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        init_lora_weights=False,
        lora_dropout=0.0,
        modules_to_save=list(modules_to_save) or None,
        task_type="CAUSAL_LM",
    )


@dataclass(frozen=True)
class Problem:
    """Rows and labels by row, the rows that have to keep no token, and the probability from which a token is kept."""

    input_ids: list[Tensor]
    labels: list[Tensor]
    masked: frozenset[int]
    threshold: float

    def labeled(self, rows):
        return any((self.labels[row] != -100).any() for row in rows)

    @property
    def num_items(self):
        return sum(int((labels[1:] != -100).sum()) for labels in self.labels)

    def batch(self, rows):
        """Pad the rows to one batch, with an attention mask."""
        longest = max(len(self.input_ids[row]) for row in rows)
        shape = (len(rows), longest)
        batch = {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
        }
        for index, row in enumerate(rows):
            size = len(self.input_ids[row])
            batch["input_ids"][index, :size] = self.input_ids[row]
            batch["attention_mask"][index, :size] = 1
            batch["labels"][index, :size] = self.labels[row]
        return batch


@torch.no_grad()
def make_problem(model, *, masked=(), unlabeled=()):
    """Draw the rows, place the threshold, mask some rows whole, and take the labels of others."""
    generator = torch.Generator().manual_seed(7)
    input_ids = [torch.randint(3, VOCAB, (length,), generator=generator) for length in LENGTHS]
    labels = [torch.cat([torch.full((PROMPT,), -100), row[PROMPT:]]) for row in input_ids]
    model.eval()
    problem = Problem(input_ids, labels, frozenset(masked), 0.0)
    log_probs, counted = token_log_probs(model, problem.batch([row for row in ROWS if row not in MASKED]))
    for row in {*MASKED, *masked}:  # what the model finds least likely
        worst = model(input_ids=input_ids[row][None]).logits[0].argmin(-1)
        labels[row] = torch.cat([labels[row][:PROMPT], worst[PROMPT - 1 : -1]])
    model.train()
    values = log_probs[counted].sort().values
    middle = values[int(0.4 * len(values)) : int(0.6 * len(values))]
    gap = int(middle.diff().argmax())  # the widest, so that rounding cannot flip a token
    threshold = float((middle[gap : gap + 2].mean()).exp())
    for row in unlabeled:
        labels[row] = torch.full_like(labels[row], -100)
    return Problem(input_ids, labels, frozenset(masked), threshold)


def token_log_probs(model, batch):
    """Return log p of each label from dense fp32 logits, `(B, S - 1)`, and where there is a label."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    output = model(**inputs, use_cache=False, output_hidden_states=True)
    logits = output.logits[:, :-1]
    if logits.dtype != torch.float32:  # as rounded they are half an eps of the largest off, and so is the gradient
        hidden_states = output.hidden_states[-1][:, :-1].to(logits.dtype)
        lm_head_weight = model.get_output_embeddings().weight.to(logits.dtype)
        with torch.autocast("cpu", enabled=False):
            logits = hidden_states.float() @ lm_head_weight.float().T
    labels = batch["labels"][:, 1:]
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return log_probs, labels != -100


@dataclass(frozen=True)
class Reference:
    """One step of one process: the loss, its gradients by plain name, and the share of label tokens that is kept."""

    loss: float
    gradients: dict[str, Tensor]
    kept_share: float


def reference_step(model, problem, *, normalize="all", micro_batches=None):
    """Take the gradient of the whole global batch by plain autograd, in the model's dtype.

    Args:
        model: Of one process, in training mode. Its gradients are replaced.
        problem: The global batch.
        normalize: `"all"` or `"kept"`.
        micro_batches: Rows by micro-batch, or None for each row by itself. In fp32 they do not matter; a 16-bit model
            rounds each one's gradient.
    """
    losses, kept_tokens, sums = [], 0, {}
    for rows in micro_batches or [[row] for row in ROWS]:
        model.zero_grad()
        log_probs, counted = token_log_probs(model, problem.batch(rows))
        kept = counted & (log_probs.detach() >= torch.tensor(problem.threshold).log())
        assert not any(kept[index].any() for index, row in enumerate(rows) if row in problem.masked)
        kept_tokens += int(kept.sum())
        loss = -(log_probs * kept).sum() / problem.num_items
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad.float()
    share = kept_tokens / problem.num_items
    factor = 1.0 / share if normalize == "kept" and share else 1.0
    gradients = {plain_name(name): gradient * factor for name, gradient in sums.items()}
    return Reference(sum(losses) * factor, gradients, share)


def after_adamw(model, gradients, *, weight_decay):
    """Return the parameters, by plain name, after AdamW's first step on the given gradients."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(plain_name(name))
    adamw(model, weight_decay=weight_decay).step()
    return {plain_name(name): parameter.detach() for name, parameter in model.named_parameters()}


def adamw(model, *, weight_decay):
    """Make the optimizer as transformers' Trainer does, which lets neither norms nor biases decay."""
    decaying, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (others if "norm" in name or name.endswith("bias") else decaying).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=LEARNING_RATE, eps=EPSILON)


@torch.no_grad()
def evaluation_loss(model, problem, groups):
    """Return the mean over the groups of rows of each one's plain NLL per label."""
    model.eval()
    losses = []
    for rows in groups:
        log_probs, counted = token_log_probs(model, problem.batch(rows))
        losses.append(-log_probs[counted].mean().item())
    model.train()
    return sum(losses) / len(losses)


_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def plain_name(name):
    """Drop what engines, compilers and PEFT put into a parameter's name."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    return name.removeprefix("module.").removeprefix("base_model.model.")
