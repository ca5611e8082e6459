"""The end that is trained is the end that is heeded: in the tokenizer, the saved model, and by an evaluation."""

import json

import pytest
from datasets import Dataset

from profit_sft import ProFitConfig, ProFitTrainer
from profit_sft.cli.app import run_app
from profit_sft.models.pretrained import end_tokens, load_model, load_tokenizer
from profit_sft.train.end_token import trained_end
from tiny import chat_tokenizer, tiny_model


def base_tokenizer(eos="<pad>"):
    """As base models have it: the template ends turns with a token that is not EOS."""
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = eos
    return tokenizer


@pytest.mark.parametrize(
    ("labels", "end"),
    [
        ([[-100, 5, 6, 9], [-100, 7, 9]], 9),
        ([[-100, 5, 9, -100, -100, 6, 9, -100]], 9),  # two turns
        ([[-100, 5, 9], [-100, 7, 9], [-100, 7, 8]], 9),  # one was cut
        ([[-100, 5, 9], [-100, 7, 8]], None),
        ([[-100, -100]], None),
        ([], None),
    ],
)
def test_the_end_is_what_most_stretches_of_labels_end_in(labels, end):
    assert trained_end([{"labels": row} for row in labels]) == end


def made_trainer(folder, tokenizer, *, configured=2, **settings):
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = configured
    config = ProFitConfig(
        str(folder),
        use_cpu=True,
        report_to=[],
        max_steps=1,
        threshold=0.0,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **settings,
    )
    messages = [
        {"role": "user", "content": "What is two plus two?"},
        {"role": "assistant", "content": "It is four."},
    ]
    rows = Dataset.from_list([{"messages": messages}] * 4)
    return ProFitTrainer(model, config, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("eos", "configured", "expected"),
    [
        ("<pad>", 2, "<|im_end|>"),  # a base model
        ("<|im_end|>", 2, "<|im_end|>"),  # they agree
        ("<pad>", [2, 1], "<pad>"),  # the model stops there, whatever its tokenizer says: Gemma
    ],
)
def test_a_saved_model_stops_at_the_end_that_it_was_trained_on(tmp_path, eos, configured, expected):
    tokenizer = base_tokenizer(eos)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end == 1
    run = made_trainer(tmp_path, tokenizer, configured=configured)
    assert run.trained_end == "<|im_end|>"
    run.train()
    run.save_model(str(tmp_path))
    saved = load_tokenizer(str(tmp_path))
    assert saved.eos_token == expected
    generation = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert end in (generation if isinstance(generation, list) else [generation])
    assert end in end_tokens(load_model(str(tmp_path)), saved.eos_token_id)


def test_an_adapter_takes_the_end_along_in_its_tokenizer(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    tokenizer = base_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    data = tmp_path / "train.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"What is {n}?", "answer": "It is four."}) + "\n" for n in range(4))
    )
    flags = ["--use_peft", "--max_steps", "1", "--use_cpu", "True", "--threshold", "0"]
    named = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(run)]
    assert run_app(["train", *named, *flags]) == 0
    assert load_tokenizer(str(run)).eos_token == "<|im_end|>"


def test_an_end_that_was_asked_for_and_is_not_the_trained_one_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"answers end in '<\|im_end\|>', and eos_token is '<pad>'.*Set eos_token to"):
        run = made_trainer(tmp_path, base_tokenizer("<|im_start|>"), eos_token="<pad>")
    assert run.trained_end is None


def test_an_end_outside_the_vocabulary_is_refused(tmp_path, capsys):
    base_tokenizer().save_pretrained(tmp_path)
    tiny_model(vocab_size=300).save_pretrained(tmp_path)
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "2+2?", "answer": "4"}\n')
    named = ["--model_name_or_path", str(tmp_path), "--dataset_name", str(data), "--output_dir", str(tmp_path / "run")]
    assert run_app(["train", *named, "--eos_token", "<end>", "--use_cpu", "True"]) == 2
    assert "eos_token: '<end>' is not in the vocabulary" in capsys.readouterr().err
