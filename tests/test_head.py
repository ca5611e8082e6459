"""The selective head on real architectures with tiny random weights."""

import copy
import functools
import inspect
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from profit_sft import NLL, ProFit, apply_profit, remove_profit
from profit_sft.errors import UnsupportedModelError
from profit_sft.head import label_statistics, selective_head
from profit_sft.objectives import ASFT, DFT
from tiny import EXPERTS, SIZES, tiny_dataset, tiny_model, tiny_tokenizer

FAMILIES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": {**EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    "olmo2": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.3},
    "phi3": {},
    "mistral": {},
    "gpt_neox": {},
    "phi": {},  # its head has a bias
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"dropout": 0.0, "word_embed_proj_dim": 32},  # its forward calls the decoder of its base model
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48},  # its prefix names no attribute
}


def make(family, **overrides):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **overrides})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()


def batch(rows=3, length=17):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, SIZES["vocab_size"], (rows, length), generator=generator)
    labels, attention_mask = input_ids.clone(), torch.ones_like(input_ids)
    labels[:, :5] = -100
    attention_mask[1, 12:] = 0
    labels[1, 12:] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found, expected, bound=5e-6):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= bound * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("num_items", [None, 40, torch.tensor(40)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_at_threshold_zero_loss_and_gradients_are_the_models_own(family, num_items):
    model, inputs = make(family), batch()
    if num_items is not None:
        inputs["num_items_in_batch"] = num_items
    expected = loss_and_gradients(model, inputs)
    apply_profit(model, ProFit(threshold=0.0))
    assert_equal(loss_and_gradients(model, inputs), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_generation_and_removal_leave_the_model_as_it_was(family):
    model, inputs = make(family), batch()
    expected = loss_and_gradients(model, inputs)
    attributes, signature = set(model.__dict__), inspect.signature(model.forward)
    model.eval()
    with torch.no_grad():
        before = model(**inputs)
        prompt = {"input_ids": inputs["input_ids"][:, :4], "attention_mask": inputs["attention_mask"][:, :4]}
        if "output_router_logits" in FAMILIES[family]:  # with them transformers 4 cannot generate
            prompt["output_router_logits"] = False
        tokens = model.generate(**prompt, max_new_tokens=3, do_sample=False)
        apply_profit(model, ProFit(threshold=0.5))
        after = model(**inputs)
        assert torch.equal(model.generate(**prompt, max_new_tokens=3, do_sample=False), tokens)
    assert torch.equal(after.logits, before.logits)
    assert after.loss == before.loss
    assert inspect.signature(model.forward) == signature  # Trainer and generate() read it
    model.train()
    with torch.no_grad():
        assert model(**prompt).logits is not None  # no labels, nothing to select
    remove_profit(model)
    assert set(model.__dict__) == attributes
    assert_equal(loss_and_gradients(model, inputs), expected, bound=0)
    assert remove_profit(model) is model


def test_loss_is_the_masked_one():
    model, inputs = make("llama"), batch()
    with torch.no_grad():
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    own = log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)[labels != -100]
    threshold = own.exp().median().item() * 1.0001
    apply_profit(model, ProFit(threshold=threshold))
    outputs = model(**inputs)
    kept = own.exp() >= threshold
    assert outputs.loss.item() == pytest.approx(-own[kept].sum().item() / len(own), rel=1e-5)
    assert outputs.selective.num_kept == kept.sum()
    assert outputs.logits is None


def test_shifted_labels_are_taken_as_they_are():
    model, inputs = make("llama"), batch()
    apply_profit(model, NLL())
    expected = loss_and_gradients(model, inputs)
    labels = inputs.pop("labels")
    inputs["shift_labels"] = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert_equal(loss_and_gradients(model, inputs), expected)


def test_reference_log_probs_come_with_the_batch_in_the_layout_of_the_labels():
    model, inputs = make("llama"), batch()
    likely = torch.zeros(inputs["labels"].shape)
    likely[:, 8:] = -9.0
    apply_profit(model, ProFit(threshold=0.1, mask_source="reference"))
    selective = model(**inputs, reference_log_probs=likely).selective
    counted = inputs["labels"][:, 1:] != -100
    assert torch.equal(selective.token_weights[:, :-1] != 0, counted & (likely[:, 1:] > -1))
    apply_profit(model, ASFT())
    with pytest.raises(ValueError, match="the objective needs 'reference_log_probs'"):
        model(**inputs)
    model.eval()
    with torch.no_grad():
        assert model(**inputs, reference_log_probs=likely).logits is not None


def test_positional_labels_return_dict_and_logits_to_keep():
    model, inputs = make("llama"), batch()
    apply_profit(model, DFT())
    expected = model(**inputs).loss
    plain = model(**inputs, return_dict=False)
    assert isinstance(plain, tuple)
    assert plain[0] == expected
    assert model(**inputs, logits_to_keep=1).loss == expected
    assert model(**inputs).past_key_values is None
    assert model(**inputs, use_cache=True).past_key_values.get_seq_length() == inputs["input_ids"].shape[1]
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == SIZES["num_hidden_layers"] + 1
    positional = model(inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"])
    assert positional.loss == expected


def test_kept_normalizer_divides_by_the_kept_tokens_of_the_call():
    model, inputs = make("llama"), batch()
    apply_profit(model, ProFit(threshold=1 / 211))
    everything = model(**inputs)
    apply_profit(model, ProFit(threshold=1 / 211), normalize="kept")
    kept = model(**inputs)
    share = kept.selective.num_kept / kept.selective.num_labels
    assert 0.1 < share < 0.9
    assert (kept.loss * share).item() == pytest.approx(everything.loss.item(), rel=1e-5)
    # With num_items_in_batch each call has its part of the step, by its share of the labels.
    half = model(**inputs, num_items_in_batch=2 * int(kept.selective.num_labels))
    assert half.loss.item() == pytest.approx(kept.loss.item() / 2, rel=1e-5)


def test_applying_again_replaces_the_objective_and_removal_still_restores():
    model = make("gemma2")
    apply_profit(model, ProFit(threshold=0.9))
    apply_profit(model, NLL(), chunk_size=7)
    head = selective_head(model)
    assert (head.objective, head.chunk_size, head.final_logit_softcapping) == (NLL(), 7, 3.0)
    remove_profit(model)
    with pytest.raises(ValueError, match="has no selective head; call apply_profit"):
        selective_head(model)


def test_settings_reach_the_loss():
    model, inputs, sizes = make("llama"), batch(), []

    def token_weights(stats):
        sizes.append(len(stats.labels))
        return stats.log_probs.exp()

    objective = SimpleNamespace(
        needs=frozenset({"log_probs"}), elementwise=True, probability_floor=0.0, token_weights=token_weights
    )
    expected = model(**inputs), apply_profit(model, DFT())(**inputs).selective
    apply_profit(model, objective, chunk_size=7, gradient_budget=0.4)
    selective_head(model).statistics = "all"
    found = model(**inputs).selective
    assert 1 < max(sizes) <= 7
    assert sum(sizes) == found.num_labels == expected[1].num_labels
    assert 0.1 < found.dropped_share <= 0.4
    labels = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    assert torch.equal(found.is_top1, expected[0].logits.argmax(-1) == labels)
    assert expected[1].is_top1 is None


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "cohere", "gpt_neox"])
def test_label_statistics_are_those_of_the_logits_in_evaluation_mode(family, installed):
    dropout = {"hidden_dropout": 0.5} if family == "gpt_neox" else {}
    model, inputs = make(family, **dropout), batch()
    model.base_model.layers[0].eval()  # a part with a mode of its own
    model.config.attention_dropout = 0.5
    labels = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    if installed:
        apply_profit(model, DFT())
    found = label_statistics(model, **inputs, statistics="ranks", objective=ProFit(threshold=0.0047))
    assert (model.training, model.base_model.layers[0].training, model.base_model.layers[1].training) == (
        True,
        False,
        True,
    )
    logits = model.eval()(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
    log_probs = logits.float().log_softmax(-1)
    counted = labels != -100
    own = log_probs.gather(-1, labels.clamp(min=0)[..., None])
    assert torch.equal(found.label_mask, counted)
    torch.testing.assert_close(found.log_probs[counted], own[..., 0][counted], atol=2e-5, rtol=1e-5)
    assert torch.equal(found.rank[counted], 1 + (log_probs > own).sum(-1)[counted])
    assert torch.equal(found.top1[counted], log_probs.argmax(-1)[counted])
    assert 0 < found.num_kept < found.num_labels
    assert not found.loss.requires_grad


def test_a_forward_put_there_by_others_is_called_and_restored():
    model, inputs = make("llama"), batch()
    own, calls = model.forward, []

    def counting(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    model.forward = counting
    apply_profit(model, NLL())
    model.eval()
    with torch.no_grad():
        model(**inputs)
    assert calls == [1]
    remove_profit(model)
    assert model.forward is counting


def test_a_forward_on_top_with_our_attributes_is_not_taken_for_ours():
    model, inputs, calls = apply_profit(make("llama"), DFT()), batch(), []
    own = model.forward

    @functools.wraps(own)
    def counting(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    model.forward = counting
    remove_profit(model)
    assert model.forward is counting
    assert_equal(loss_and_gradients(model, inputs), loss_and_gradients(make("llama"), inputs))
    assert calls == [1]


def test_a_head_that_comes_back_on_top_of_another_forward():
    model, inputs = apply_profit(make("llama"), DFT()).eval(), batch()
    own = model.forward
    model.forward = lambda **kwargs: own(**kwargs)
    apply_profit(remove_profit(model), DFT())
    labels = inputs.pop("labels")
    for _ in range(2):
        assert torch.equal(model(**inputs).logits, make("llama").eval()(**inputs).logits)
    with torch.no_grad():
        assert torch.equal(
            model(**inputs, labels=labels).loss, apply_profit(make("llama").eval(), DFT())(**inputs, labels=labels).loss
        )


def test_each_forward_in_a_stack_calls_the_one_that_was_there_before_it():
    model, inputs, calls = make("llama"), batch(), []

    def put_on_top(name):
        below = model.forward

        def counting(**kwargs):
            calls.append(name)
            return below(**kwargs)

        model.forward = counting

    expected = model.eval()(input_ids=inputs["input_ids"]).logits
    put_on_top("lowest")
    apply_profit(model, DFT())
    put_on_top("middle")
    apply_profit(remove_profit(model), DFT())
    put_on_top("highest")
    assert torch.equal(model(input_ids=inputs["input_ids"]).logits, expected)
    assert calls == ["highest", "middle", "lowest"]
    apply_profit(remove_profit(model), DFT())
    remove_profit(model)
    assert torch.equal(model(input_ids=inputs["input_ids"]).logits, expected)
    assert calls == ["highest", "middle", "lowest"] * 2


def test_a_pickled_model_has_no_head_and_takes_one():
    model, inputs = apply_profit(make("llama"), DFT()), batch()
    loaded = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match="has no selective head"):
        selective_head(loaded)
    assert_equal(loss_and_gradients(loaded, inputs), loss_and_gradients(make("llama"), inputs))
    again = apply_profit(pickle.loads(pickle.dumps(model)), DFT())
    assert_equal(loss_and_gradients(again, inputs), loss_and_gradients(model, inputs))
    assert remove_profit(again).forward.__func__ is type(again).forward


def test_a_deep_copy_is_independent_and_a_saved_model_is_plain(tmp_path):
    model, inputs = make("llama"), batch()
    apply_profit(model, DFT())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(**inputs).loss != model(**inputs).loss
    remove_profit(twin)
    assert twin(**inputs).logits is not None
    assert model(**inputs).logits is None
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert "forward" not in loaded.__dict__
    remove_profit(model)
    configs = [{**found.config.to_dict(), "_name_or_path": None} for found in (loaded, model)]
    assert configs[0] == configs[1]
    assert not [key for key in loaded.state_dict() if "profit" in key]
    model.eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


# the name that transformers had before 5.23, which the oldest version we support has
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing():
    model, inputs = make("qwen3"), batch()
    apply_profit(model, DFT())
    expected = loss_and_gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(loss_and_gradients(model, inputs), expected)


def test_autocast_gives_bf16_products_and_an_fp32_loss():
    model, inputs = make("llama"), batch()
    expected = loss_and_gradients(apply_profit(model, NLL()), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected[0], rel=1e-2)


def test_moe_auxiliary_loss_is_added_once_a_call_and_can_be_left_out():
    model, inputs = make("qwen3_moe"), batch()
    apply_profit(model, ProFit(threshold=0.0))
    outputs = model(**inputs)
    plain = model(**inputs, output_router_logits=False)
    assert plain.aux_loss is None
    assert (outputs.loss - plain.loss).item() == pytest.approx(0.1 * outputs.aux_loss.item(), rel=1e-4)


def test_lora_around_it_trains_and_costs_no_head_gradient():
    torch.manual_seed(0)
    inputs = batch()
    model = get_peft_model(make("qwen2"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected = loss_and_gradients(model, inputs)
    apply_profit(model, ProFit(threshold=0.0))
    assert_equal(loss_and_gradients(model, inputs), expected)
    assert all("lora" in name for name in expected[1])
    remove_profit(model)
    assert model(**inputs).logits is not None


def test_an_adapter_on_the_head_is_refused_and_a_trained_copy_is_taken():
    adapter = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(UnsupportedModelError, match=r"carries an adapter .* modules_to_save=\['lm_head'\]"):
        apply_profit(adapter)
    inputs = batch()
    copied = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    expected = loss_and_gradients(copied, inputs)
    assert any("lm_head" in name for name in expected[1])
    apply_profit(copied, ProFit(threshold=0.0))
    assert_equal(loss_and_gradients(copied, inputs), expected)


def test_an_unknown_tail_is_refused_by_name():
    class Tempered(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits / 0.7
            return outputs

    model = Tempered(AutoConfig.for_model("llama", **SIZES))
    with pytest.raises(UnsupportedModelError, match="logits of Tempered are not its head's product with scale 1.0"):
        apply_profit(model)
    assert "forward" not in model.__dict__
    assert "forward" not in model.model.__dict__


def test_what_is_no_causal_language_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="Linear is not a Hugging Face causal language model"):
        apply_profit(nn.Linear(2, 2))
    model = make("llama")
    model.lm_head = nn.Sequential(nn.Linear(32, 211))
    with pytest.raises(UnsupportedModelError, match="head is a torch.Sequential; the selective loss reads a plain"):
        apply_profit(model)
    with pytest.raises(TypeError, match="objective must be an Objective such as ProFit"):
        apply_profit(make("llama"), "profit")
    with pytest.raises(ValueError, match="normalize must be 'all' or 'kept', got 'some'"):
        apply_profit(make("llama"), normalize="some")
    with pytest.raises(ValueError, match=r"gradient_budget must be a share in \[0, 1\), got 2"):
        apply_profit(make("llama"), gradient_budget=2)


def test_the_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    model = make("llama")
    torch.manual_seed(7)
    apply_profit(model)
    assert torch.equal(torch.rand(3), expected)


def plain_trainer(model, folder, **options):
    args = TrainingArguments(
        str(folder),
        max_steps=3,
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        **options,
    )
    collator = DataCollatorForSeq2Seq(tiny_tokenizer())
    return Trainer(model=model, args=args, train_dataset=tiny_dataset(8), data_collator=collator)


@pytest.mark.parametrize("steps", [1, 2])
def test_plain_transformers_trainer_trains_with_it(tmp_path, steps):
    parameters = []
    for name in ("selective", "plain"):
        model = tiny_model()
        if name == "selective":
            apply_profit(model, ProFit(threshold=0.0))
        sizes = {"per_device_train_batch_size": 4 // steps, "gradient_accumulation_steps": steps}
        plain_trainer(model, tmp_path / name, **sizes).train()
        parameters.append(list(model.parameters()))
    # At threshold 0 the selective run is the plain run.
    for found, expected in zip(*parameters, strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("steps", [1, 4])
def test_first_loss_of_a_plain_trainer_is_the_masked_one_of_its_whole_step(tmp_path, steps):
    model, total, labels, kept = tiny_model(), 0.0, 0, 0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    threshold = 1 / model.config.vocab_size
    for row in tiny_dataset(8):  # a step sees all eight, so that their order does not matter
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double().log_softmax(-1)
        targets = torch.tensor(row["labels"][1:])
        own = log_probs[targets != -100].gather(-1, targets[targets != -100][:, None])
        assert ((own.exp() / threshold - 1).abs() > 1e-5).all()
        total -= own[own.exp() >= threshold].sum().item()
        labels, kept = labels + len(own), kept + int((own.exp() >= threshold).sum())
    assert 0.2 < kept / labels < 0.8
    apply_profit(model, ProFit(threshold=threshold))
    sizes = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    trainer = plain_trainer(model, tmp_path, **sizes)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert logged[0] == pytest.approx(total / labels, rel=1e-4)
    assert all((found != old).any() for found, old in zip(model.parameters(), before, strict=True))


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_a_ddp_wrapper_is_seen_through():
    inputs = batch()
    expected = loss_and_gradients(apply_profit(make("llama"), DFT()), inputs)
    model = make("llama")
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert apply_profit(wrapped, DFT()) is wrapped
    assert isinstance(selective_head(wrapped).objective, DFT)
    found = loss_and_gradients(wrapped, inputs)
    assert_equal((found[0], {name.removeprefix("module."): value for name, value in found[1].items()}), expected)
    remove_profit(wrapped)
    assert "forward" not in model.__dict__


def test_a_compiled_wrapper_is_seen_through():
    inputs = batch()
    expected = loss_and_gradients(apply_profit(make("llama"), DFT()), inputs)
    model = make("llama")
    compiled = torch.compile(model, backend="eager")
    apply_profit(compiled, DFT())
    assert_equal(loss_and_gradients(model, inputs), expected)
    assert remove_profit(compiled) is compiled
    assert "forward" not in model.__dict__


def test_a_model_in_bf16_gets_gradients_in_bf16_and_an_fp32_loss():
    model, inputs = make("llama"), batch()
    expected = loss_and_gradients(apply_profit(model, ProFit(threshold=0.0)), inputs)
    found = loss_and_gradients(apply_profit(make("llama").bfloat16(), ProFit(threshold=0.0)), inputs)
    assert found[0] == pytest.approx(expected[0], rel=1e-2)
    for name, gradient in expected[1].items():
        assert found[1][name].dtype == torch.bfloat16
        assert (found[1][name].float() - gradient).norm() <= 0.1 * gradient.norm(), name
