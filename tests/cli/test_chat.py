"""`profit chat` and `profit merge`: what one does with a run."""

import copy
import io
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from profit_sft.cli.app import run_app
from profit_sft.models.pretrained import load_model
from tiny import chat_tokenizer, tiny_model


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


def test_bytes_that_are_no_text_are_none_of_a_question(tiny_folder, monkeypatch, capsys):
    typed = io.TextIOWrapper(io.BytesIO(b"What \xff\xfe is\n/exit\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", typed)
    assert run_app(["chat", str(tiny_folder), "--max_new_tokens", "3"]) == 0
    assert "(cut off at 3 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_a_model_s_own_settings_of_several_answers_give_one(tiny_folder, tmp_path, monkeypatch, capsys, settings):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    assert run_app(["chat", str(tmp_path / "model"), "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.count("(cut off at 3 tokens") == 1


def test_a_template_without_a_system_prompt_is_named(tiny_folder, tmp_path, monkeypatch, capsys):
    template = tmp_path / "of_gemma.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(refusal + chat_tokenizer().chat_template)
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    asked = ["chat", str(tiny_folder), "--system_prompt", "be brief", "--chat_template_path", str(template)]
    assert run_app(asked) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "takes no such conversation (System role not supported). Leave out --system_prompt" in said


def test_a_conversation_ends_where_the_model_does(tmp_path, monkeypatch, capsys):
    tokenizer = chat_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 30}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is two?\nWhat is two plus two?\n/clear\nWhat is two?\n"))
    assert run_app(["chat", str(tmp_path), "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    assert out.count("the model takes no more)") == 2
    assert out.count("tokens, and the model takes 30: /clear begins anew)") == 1


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


# What TRL's flags and PEFT's configurations can ask for, each where input and output embeddings are one and where not.
KINDS = {
    "lora": LoraConfig(target_modules="all-linear"),
    "dora": LoraConfig(target_modules="all-linear", use_dora=True),
    "head": LoraConfig(target_modules=["q_proj", "lm_head"]),
    "embeddings": LoraConfig(target_modules=["q_proj", "embed_tokens"]),
    "both": LoraConfig(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "whole head": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "whole embeddings": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "tokens": LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4]),
    "vera": VeraConfig(target_modules=["q_proj"]),
}


def saved_base(folder, *, tied):
    """A base model in `base`, and its tokenizer there and in `run`, where an adapter is to come."""
    tokenizer = chat_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=tied)
    for name in ("base", "run"):
        tokenizer.save_pretrained(folder / name)
    model.save_pretrained(folder / "base")
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_of_any_kind_says_loaded_and_merged_what_was_trained(tmp_path, kind, tied):
    model = saved_base(tmp_path, tied=tied)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        plain = model(ids).logits
        trained = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), copy.deepcopy(KINDS[kind]))
        torch.manual_seed(3)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        trained.save_pretrained(tmp_path / "run")
        wanted = trained.eval()(ids).logits
        assert (wanted - plain).abs().max() > 1e-4
        assert torch.equal(load_model(str(tmp_path / "run"))(ids).logits, wanted)
        assert run_app(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    stays_tied = tied and kind in ("lora", "dora", "tokens", "vera")
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == stays_tied


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


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": [3, 4]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but", "ignore:Adapter 'default'. 2 LoRA tensor")
def test_what_peft_cannot_merge_is_said_and_nothing_is_left(tmp_path, settings, capsys):
    saved_base(tmp_path, tied=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(**settings)).save_pretrained(tmp_path / "run")
    assert run_app(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "new")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the adapter in '{tmp_path / 'run'}' cannot be put into its model for good (" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]
