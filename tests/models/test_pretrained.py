import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from profit_sft.cli.app import run_app
from profit_sft.errors import ConfigurationError
from profit_sft.models import fingerprint
from profit_sft.models.checks import first_not_finite
from profit_sft.models.fingerprint import model_fingerprint
from profit_sft.models.pretrained import load_model, load_tokenizer
from tiny import CHATML, save_tiny_chat_model, tiny_model


@pytest.fixture
def folder(tmp_path):
    return save_tiny_chat_model(tmp_path / "model")


def test_fingerprint_follows_weights_and_configuration(folder, tmp_path):
    first = model_fingerprint(folder)
    assert model_fingerprint(save_tiny_chat_model(tmp_path / "copy")) == first
    (tmp_path / "model" / "notes.txt").write_text("no part of the model")
    assert model_fingerprint(folder) == first
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    second = model_fingerprint(folder)
    assert second != first
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_fingerprint(folder) not in (first, second)


def test_a_large_file_is_hashed_again_only_where_it_may_have_changed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PROFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_LARGE", 1)
    read = []
    sha256_of = fingerprint.sha256_of
    monkeypatch.setattr(fingerprint, "sha256_of", lambda files: sha256_of(read.append(files[:]) or files))
    weights = tmp_path / "model" / "model.safetensors"
    first = model_fingerprint(folder)  # written a moment ago: not to be relied on
    monkeypatch.setattr(fingerprint, "_TICK_NS", -(10**12))
    assert [model_fingerprint(folder), model_fingerprint(folder)] == [first, first]
    assert [len(files) for files in read] == [2, 2, 0]
    content, state = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a copy that keeps times may leave it
    assert model_fingerprint(folder) != first
    (kept,) = (tmp_path / "cache" / "sha256").iterdir()
    for damage in ("", "[]", '{"model.safetensors": 3}', "\\0"):
        kept.write_text(damage)
        weights.write_bytes(content)
        assert model_fingerprint(folder) == first


def test_fingerprint_of_an_adapter_follows_its_base(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folder}))
    first = model_fingerprint(str(adapter))
    tiny_model(seed=1, vocab_size=320).save_pretrained(folder)
    assert model_fingerprint(str(adapter)) != first


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_fingerprint_of_a_hub_model_is_its_commit(tmp_path, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--model"

    def fetch(commit):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / name).write_text("{}")

    fetch("a" * 40)
    first = model_fingerprint("org/model")
    fetch("b" * 40)
    second = model_fingerprint("org/model")
    assert second != first
    assert model_fingerprint("org/model", revision="a" * 40) == first


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"holds no model \(no config.json or adapter_config.json\)"):
        model_fingerprint(str(tmp_path))
    with pytest.raises(ConfigurationError, match="'org/absent' is neither a folder nor a model of the hub"):
        model_fingerprint("org/absent")
    with pytest.raises(ConfigurationError, match="no causal language model could be loaded from"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no tokenizer could be loaded from '.*' \((?!no folder)"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"'absent' \(no folder here has that name, and on the hub: "):
        load_tokenizer("absent")


ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "text that doubles": "{% set s = namespace(x='xx') %}{% for a in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    "one large text": "{{ 'x' * 99999999999 }}",
    "a wide number": "{{ '%99999999999d' % 1 }}",
    "much text": "{% for a in range(99999) %}{{ messages[0].content * 9 }}{% endfor %}",
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_template_without_end_is_refused_by_name(kind, folder, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text(ENDLESS[kind])
    with pytest.raises(ConfigurationError, match=r"chat_template_path: the template of '.*t\.jinja' comes to no end"):
        load_tokenizer(folder, chat_template_path=str(file))


def test_a_model_with_an_endless_template_is_refused_and_one_that_refuses_chats_is_not(folder, tmp_path):
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(ENDLESS["much text"])
    with pytest.raises(ConfigurationError, match="chat template of '.*' comes to no end"):
        load_tokenizer(folder)
    template.write_text("{{ raise_exception('no chats') }}")
    assert load_tokenizer(folder).chat_template.startswith("{{ raise")  # of each row it will be told


@pytest.mark.parametrize("name", ["/absent", "./absent", "../absent", "~/absent", "runs/study/absent"])
def test_a_path_without_a_folder_does_not_ask_the_hub(name):
    with pytest.raises(ConfigurationError, match="there is no folder '.*absent'"):
        load_model(name)


def test_the_chat_template_comes_from_a_file_or_from_another_model(folder, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    assert load_tokenizer(folder, chat_template_path=str(template)).chat_template == "{{ messages[0].content }}"
    assert load_tokenizer(folder, chat_template_path=folder).chat_template == CHATML
    plain = tmp_path / "plain"
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    with pytest.raises(ConfigurationError, match="the tokenizer of '.*plain' has no chat template"):
        load_tokenizer(folder, chat_template_path=str(plain))


def test_a_model_comes_in_evaluation_mode_and_the_dtype_asked_for(folder):
    model = load_model(folder, dtype="bfloat16")
    assert not model.training
    assert str(model.dtype) == "torch.bfloat16"


def without(weights):
    return {name: value for name, value in weights.items() if "layers.1" not in name}


def besides(weights):
    return {**weights, "model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}


def not_a_number(weights):
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    return weights


def rewritten(folder, change):
    file = Path(folder) / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


LACKING = [
    (
        without,
        r"without model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight and 7 more. What is",
    ),
    (besides, r"with model.layers.2.mlp.up_proj.weight. What is missing would be random"),
]


@pytest.mark.parametrize(("change", "message"), LACKING)
def test_files_that_hold_other_weights_are_refused_unless_that_is_meant(folder, change, message):
    with pytest.raises(ConfigurationError, match=f"hold other weights than its config.json asks for: {message}"):
        load_model(rewritten(folder, change))
    load_model(folder, allow_missing_weights=True)


def test_an_adapter_and_the_model_it_is_for_are_whole_too(folder, tmp_path):
    adapter = str(tmp_path / "adapter")
    lora = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    trained.save_pretrained(adapter)
    input_ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(load_model(adapter)(input_ids).logits, trained.eval()(input_ids).logits)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if "layers.0" not in name}, file, {"format": "pt"})
    with pytest.raises(
        ConfigurationError, match="the files of '.*adapter' hold other weights .* without model.layers.0"
    ):
        load_model(adapter)
    save_file(whole, file, {"format": "pt"})
    rewritten(folder, without)
    with pytest.raises(ConfigurationError, match="the files of '.*model' hold other weights .* without model.layers.1"):
        load_model(adapter)


def test_weights_that_are_no_numbers_are_refused(folder):
    for allow in (False, True):
        with pytest.raises(ConfigurationError, match=r"model.layers.0.mlp.up_proj.weight is not finite \(NaN or inf"):
            load_model(rewritten(folder, not_a_number), allow_missing_weights=allow)


@pytest.mark.parametrize(("change", "message"), [*LACKING, (not_a_number, "up_proj.weight is not finite")])
@pytest.mark.parametrize("command", ["train", "score", "eval"])
def test_every_command_refuses_them_in_one_line(folder, tmp_path, capsys, command, change, message):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "2+2?", "answer": "4."}\n' * 2)
    out = str(tmp_path / "out")
    flags = {
        "train": [
            "--model_name_or_path",
            folder,
            "--dataset_name",
            str(rows),
            "--output_dir",
            out,
            "--use_cpu",
            "True",
        ],
        "score": [str(rows), "--model", folder, "--out", out],
        "eval": [folder, "--tasks", "generated", "--limit", "1", "--max_new_tokens", "2", "--output_dir", out],
    }[command]
    flags += ["--objective", "nll", "--max_steps", "1", "--use_cpu", "True"] if command == "train" else []
    rewritten(folder, change)
    assert run_app([command, *flags]) == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert re.search(message, error)
    assert not (tmp_path / "out").exists() or command == "eval"
    if change is not not_a_number:
        assert run_app([command, *flags, "--allow_missing_weights"]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_not_finite_where_one_number_is_not_but_not_where_their_sum_overflows(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)).to(dtype)
    first, second = model.parameters()
    with torch.no_grad():
        first.fill_(torch.finfo(dtype).max)
        assert first_not_finite(model) is None
        for bad in (math.nan, math.inf, -math.inf):
            second[1, 2] = bad
            assert first_not_finite(model) == "1.weight"
        second[3, 3] = math.inf  # which cancels to NaN with the other
        assert first_not_finite(model) == "1.weight"
