"""A tiny random Llama, a word-level tokenizer and a few rows, for tests where a real model adds nothing."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 64


def tiny_tokenizer():
    words = {f"w{index}": index for index in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1")


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
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
