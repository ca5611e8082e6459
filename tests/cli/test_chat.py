"""`profit chat` and `profit merge`: what one does with a run."""

import io
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from profit_sft.cli.app import run_app


def greedy(model, tokenizer, messages, most):
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    new = model.generate(**batch, max_new_tokens=most, do_sample=False)[0, batch["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_each_answer_is_to_the_whole_conversation(tiny_folder, monkeypatch, capsys):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    messages = [{"role": "system", "content": "be brief"}]
    wanted = []
    for question in ("What is two?", "It is four."):
        messages.append({"role": "user", "content": question})
        wanted.append(greedy(model, tokenizer, messages, 12))
        messages.append({"role": "assistant", "content": wanted[-1]})
    anew = greedy(model, tokenizer, [messages[0], messages[3]], 12)
    assert anew != wanted[1], "the conversation makes a difference"
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("What is two?\n\nIt is four.\n/clear\nIt is four.\n/exit\nnot asked\n")
    )
    asked = ["chat", str(tiny_folder), "--system_prompt", "be brief", "--max_new_tokens", "12", "--temperature", "0"]
    assert run_app(asked) == 0
    out = capsys.readouterr().out
    from profit_sft.terminal import harmless

    answers = [harmless(text) for text in (*wanted, anew)]
    places = [out.find(text) for text in answers]
    assert -1 not in places
    assert "not asked" not in out
    assert out.count("(cut off at 12 tokens") == 3
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max_new_tokens", "0"], "max_new_tokens must be 1 or more, got 0"),
        (["--temperature", "-1"], "temperature must be 0 or more, got -1.0"),
        (["--temperature", "nan"], "temperature must be 0 or more, got nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_folder, options, said, capsys):
    assert run_app(["chat", str(tiny_folder), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_model_without_a_chat_template_is_not_talked_to(tiny_folder, tmp_path, capsys):
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    assert run_app(["chat", str(tmp_path)]) == 2
    assert "has no chat template" in capsys.readouterr().err


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """A run folder with an adapter that changes what the base says, trained to another end token."""
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "lora")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_a_merged_adapter_is_a_whole_model_that_says_the_same(tiny_folder, adapter, tmp_path):
    merged = tmp_path / "merged"
    assert run_app(["merge", str(adapter), "--out", str(merged)]) == 0
    ids = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        plain = base(ids).logits
        wanted = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not (merged / "adapter_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template
    assert tokenizer.eos_token_id in json.loads((merged / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "merged"]


def test_what_cannot_be_merged_is_said_and_nothing_is_left(tiny_folder, adapter, tmp_path, capsys):
    there = tmp_path / "there"
    there.mkdir()
    for run, out, said in (
        (tiny_folder, tmp_path / "new", "holds no adapter"),
        (tmp_path / "nowhere", tmp_path / "new", "holds no adapter"),
        (adapter, there, "is there already"),
    ):
        assert run_app(["merge", str(run), "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    assert run_app(["merge", str(adapter), "--out", str(tmp_path / "new")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "there"]
