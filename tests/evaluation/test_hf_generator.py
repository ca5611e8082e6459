"""Generation through the harness, against a loop that takes the likeliest token of the plain model."""

import json

import pytest
import torch
from tokenizers import processors

from profit_sft.cli.app import run_app
from profit_sft.cli.score import scoring_settings
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import TEMPLATE_DATE, DataSettings
from profit_sft.data.tokenize import IGNORE_INDEX
from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.generator import Request
from profit_sft.evaluation.hf_generator import HFGenerator
from profit_sft.evaluation.runner import start_generator
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.models.pretrained import load_model, load_tokenizer
from tiny import CHATML, save_tiny_chat_model, write_questions

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


GREEDY = {"until": [], "do_sample": False, "temperature": 0.0}
SAMPLED = {"until": [], "do_sample": True, "temperature": 1.5, "top_p": 0.8, "top_k": 20}


def generator_for(folder, **settings):
    return HFGenerator(EvalSettings(model_name_or_path=folder, tasks=("generated",), output_dir="unused", **settings))


def answers(generator, pairs, limit, arguments):
    """Answer pairs of a prompt and a seed in one batch, and put them back into order."""
    places = sorted(range(len(pairs)), key=lambda place: (-generator.length(pairs[place][0]), pairs[place][0]))
    batch = [
        Request((place, 0), pairs[place][0], {**arguments, "max_gen_toks": limit}, pairs[place][1]) for place in places
    ]
    found = dict(zip(places, generator.answer(batch), strict=True))
    return [found[place] for place in range(len(pairs))]


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
    found = answers(generator_for(folder), [(prompt, 0) for prompt in PROMPTS], 12, GREEDY)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        tokens, truncated, text = likeliest(folder, prompt, 12)
        assert (answer.new_tokens, answer.truncated) == (len(tokens), truncated)
        assert answer == text
    assert {answer.truncated for answer in found} == {True, False}  # or the fixture tests half of it


def test_answers_by_onednn_are_those_of_the_plain_model(folder, onednn_products):
    found = answers(generator_for(folder), [(prompt, 0) for prompt in PROMPTS], 12, GREEDY)
    model = load_model(folder)
    shapes = {tuple(layer.weight.shape) for layer in model.modules() if type(layer) is torch.nn.Linear}
    assert {shape for shape, _ in onednn_products} == shapes  # every one, the head's as well
    onednn_products.clear()
    assert found == [likeliest(folder, prompt, 12)[2] for prompt in PROMPTS]
    assert not onednn_products


def test_a_sample_draws_the_same_alone_and_in_any_batch(folder):
    generator = generator_for(folder)
    pairs = [(prompt, seed) for seed, prompt in enumerate(PROMPTS * 2)]
    together = answers(generator, pairs, 10, SAMPLED)
    assert [answers(generator, [pair], 10, SAMPLED)[0] for pair in pairs] == together
    assert answers(generator, pairs[::-1], 10, SAMPLED) == together[::-1]
    assert together[: len(PROMPTS)] != together[len(PROMPTS) :]  # other seeds, other answers
    longer = answers(generator, pairs, 20, SAMPLED)
    assert all(long.startswith(short) for long, short in zip(longer, together, strict=True))


def test_an_answer_that_ends_at_a_stop_string_is_not_cut_off(folder):
    generator = generator_for(folder)
    whole = answers(generator, [(prompt, 0) for prompt in PROMPTS], 12, GREEDY)
    stop = next(answer for answer in whole if answer.truncated)[4:7]
    found = answers(generator, [(prompt, 0) for prompt in PROMPTS], 12, {**GREEDY, "until": [stop]})
    for answer, before in zip(found, whole, strict=True):
        assert answer == before.split(stop)[0].strip()
        assert answer.truncated == (before.truncated and stop not in before)
        assert answer.new_tokens <= before.new_tokens
    assert found != whole


def test_it_knows_its_window_and_device(folder):
    generator = generator_for(folder)
    assert generator.window == load_model(folder).config.max_position_embeddings
    assert generator_for(folder, engine_args={"max_length": 70}).window == 70
    assert generator.device_name == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    prompt = generator.lm.apply_chat_template([{"role": "user", "content": "two"}])
    assert prompt == "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert generator.length(prompt) == len(load_tokenizer(folder)(prompt)["input_ids"])


def test_an_order_of_rows_nobody_expected_is_noticed(folder):
    with pytest.raises(AssertionError, match="order of rows"):
        generator_for(folder).answer([Request((0, 0), prompt, {**GREEDY, "max_gen_toks": 4}, 0) for prompt in PROMPTS])


def test_arguments_the_harness_does_not_take_are_refused(folder):
    with pytest.raises(ConfigurationError, match="engine_args: the harness's hf model does not take them"):
        generator_for(folder, engine_args={"parallelize": True})


@pytest.mark.parametrize("template", ["its own", "recipes/plain-chat.jinja"])
def test_a_prompt_begins_as_rows_of_training_do(tmp_path, repo_root, template):
    save_tiny_chat_model(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.add_special_tokens({"bos_token": "<pad>"})
    begins = [("<pad>", tokenizer.convert_tokens_to_ids("<pad>"))]
    # Adds BOS wherever it is not told otherwise, as Llama's does.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<pad> $A", special_tokens=begins)
    if template != "its own":
        tokenizer.chat_template = (repo_root / template).read_text()
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("two")["input_ids"][0] == tokenizer.bos_token_id
    question, answer = {"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [question, answer]}))
    settings = DataSettings(dataset_name=str(tmp_path / "rows.jsonl"))
    trained = prepare_dataset(settings, tokenizer, progress=False).dataset[0]
    first = next(place for place, label in enumerate(trained["labels"]) if label != IGNORE_INDEX)

    generator = generator_for(str(tmp_path), greedy=True)
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    generator.lm.rows = [Request((0, 0), prompt, {}, 0)]
    (encoded,) = generator.lm.tok_batch_encode([prompt])[0].tolist()
    assert encoded == trained["input_ids"][:first]
    assert encoded.count(tokenizer.bos_token_id) == (0 if template == "its own" else 1)


DATED = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML


def test_a_chat_is_dated_as_in_the_models_training(tmp_path):
    rows, base, trained = write_questions(tmp_path / "rows.jsonl", 4), tmp_path / "base", tmp_path / "trained"
    save_tiny_chat_model(base)
    (base / "chat_template.jinja").write_text(DATED)
    flags = ["--template_date", "2026-03-05", "--max_steps", "1", "--objective", "nll", "--use_cpu", "True"]
    named = ["--dataset_name", rows, "--model_name_or_path", str(base), "--output_dir", str(trained)]
    assert run_app(["train", *named, *flags]) == 0
    days = {base: TEMPLATE_DATE, trained: "2026-03-05", trained / "checkpoint-1": "2026-03-05"}
    for model, day in days.items():
        generator = start_generator(
            EvalSettings(model_name_or_path=str(model), tasks=("generated",), output_dir="unused")
        )
        prompt = generator.lm.apply_chat_template([{"role": "user", "content": "What is 1+1?"}])
        data = scoring_settings({"dataset_name": rows}, {"model_name_or_path": str(model), "output_dir": tmp_path}).data
        assert data.template_date == day
        tokenizer = load_tokenizer(str(model))
        assert tokenizer.decode(prepare_dataset(data, tokenizer).dataset[1]["input_ids"]).startswith(prompt)
