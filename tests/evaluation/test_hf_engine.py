"""Generation through the harness, against a loop that takes the likeliest token of the plain model."""

import json

import pytest
import torch

from profit_sft.evaluation.engine import Request
from profit_sft.evaluation.hf_engine import HFEngine
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.models.pretrained import load_model, load_tokenizer
from tiny import save_tiny_chat_model

PROMPTS = ["What is two plus two? It is", "four", "What is two plus", "It is four. It is four. It is", "two is"]
END_TOKENS = [51, 197]  # the model, random but seeded, comes to them at different places or not at all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_chat_model(folder)
    # What chat models bring along, and would change the answers if it were not set aside.
    configured = {"eos_token_id": END_TOKENS, "do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(configured))
    return str(folder)


def engine_for(folder, **settings):
    return HFEngine(EvalSettings(model_name_or_path=folder, tasks=("generated",), output_dir="unused", **settings))


def likeliest(folder, prompt, limit):
    """Return the tokens greedy decoding gives, by whole forwards without padding or cache."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    ends = {*END_TOKENS, tokenizer.eos_token_id}
    new = []
    with torch.no_grad():
        while len(new) < limit and (not new or new[-1] not in ends):
            new.append(int(model(input_ids=ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
    return new, new[-1] not in ends, tokenizer.decode(new, skip_special_tokens=True).strip()


def test_a_batch_of_prompts_of_all_lengths_is_answered_in_order(folder):
    answers = engine_for(folder, greedy=True).generate([Request(prompt, 0) for prompt in PROMPTS], 12)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens, truncated, text = likeliest(folder, prompt, 12)
        assert (answer.new_tokens, answer.truncated) == (len(tokens), truncated)
        assert answer.text == text
    assert {answer.truncated for answer in answers} == {True, False}  # or the fixture tests half of it


def test_a_sample_draws_the_same_alone_and_in_any_batch(folder):
    engine = engine_for(folder, temperature=1.5)
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS * 2)]
    together = engine.generate(requests, 10)
    assert [engine.generate([request], 10)[0] for request in requests] == together
    assert engine.generate(requests[::-1], 10) == together[::-1]
    assert together[: len(PROMPTS)] != together[len(PROMPTS) :]  # other seeds, other answers
    longer = engine.generate(requests, 20)
    assert all(long.text.startswith(short.text) for long, short in zip(longer, together, strict=True))


def test_it_knows_its_window_device_and_template(folder):
    engine = engine_for(folder)
    assert engine.window == load_model(folder).config.max_position_embeddings
    assert engine.has_chat_template
    assert engine.device_name == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    prompt = engine.apply_chat_template([{"role": "user", "content": "two"}])
    assert prompt == "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert engine.count_tokens([prompt]) == [len(load_tokenizer(folder)(prompt)["input_ids"])]


def test_an_order_of_rows_nobody_expected_is_noticed(folder):
    engine = engine_for(folder)
    engine.rows = [Request("two", 0), Request("four", 1)]
    with pytest.raises(AssertionError, match="order of rows"):
        engine.tok_batch_encode(["four", "two"])
