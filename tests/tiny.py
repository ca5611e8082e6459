"""Tiny random models, tokenizers and rows, for tests where a real model adds nothing."""

import json

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 64
# Of a model of any family, as its configuration takes them.
SIZES = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As reasoning models' templates do: what the assistant thought is dropped from all turns but the last.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if loop.last else message.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer():
    words = {f"w{index}": index for index in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1")


def tiny_model(seed: int = 0, *, vocab_size: int = VOCAB_SIZE, tie_word_embeddings: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=tie_word_embeddings,
    )
    return LlamaForCausalLM(config)


def tiny_dataset(rows: int = 8, *, seed: int = 1) -> Dataset:
    """Rows of unequal length whose first two tokens carry no label."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(rows):
        length = int(torch.randint(4, 14, (1,), generator=generator))
        input_ids = torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist()
        examples.append({"input_ids": input_ids, "labels": [-100, -100, *input_ids[2:]]})
    return Dataset.from_list(examples)


def chat_tokenizer():
    """A byte-level tokenizer, fast as real ones are, with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["What is two plus two? It is four.", "user assistant system"], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = CHATML
    return made


def save_tiny_chat_model(folder) -> str:
    """Write a tiny chat model and its tokenizer, as a user's checkpoint would lie there."""
    tokenizer = chat_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_questions(path, count: int, *, ragged: bool = False) -> str:
    """Write rows of a question and an answer; ragged ones have answers of one to four sentences."""
    lines = [{"question": f"What is {n}+1?", "answer": f"It is {n + 1}."} for n in range(count)]
    for n, line in enumerate(lines if ragged else ()):
        line["answer"] = f"{line['answer']} " * (1 + n % 4)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)
