"""The head is called as a module, whatever is hung on it; what would go past it or change its logits is refused."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from profit_sft import NLL, ProFit, apply_profit, remove_profit
from profit_sft.errors import UnsupportedModelError
from profit_sft.head import label_statistics, selective_head
from profit_sft.head_module import head_linears
from test_head import SIZES, assert_equal, batch, loss_and_gradients, make


def test_the_heads_hooks_run_around_the_loss():
    model, inputs, seen = make("llama"), batch(), []
    expected = loss_and_gradients(apply_profit(make("llama"), ProFit(threshold=0.005)), inputs)
    apply_profit(model, ProFit(threshold=0.005), chunk_size=4)
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(("before", tuple(args[0].shape))))
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(("after", tuple(output.shape))))
    model.lm_head.register_full_backward_hook(lambda module, grads, outputs: seen.append(("backward", ())))
    assert_equal(loss_and_gradients(model, inputs), expected)
    # Once a call, though the loss runs over several chunks.
    assert seen == [("before", (3, 17, 32)), ("after", ()), ("backward", ())]
    assert "forward" not in model.lm_head.__dict__


def test_the_heads_forward_is_its_own_again_after_an_error():
    model, inputs = make("llama"), batch()
    apply_profit(model, NLL())
    inputs["labels"][0, 7] = 999
    with pytest.raises(ValueError, match=r"is 999, outside the vocabulary \[0, 211\)"):
        model(**inputs)
    assert "forward" not in model.lm_head.__dict__
    del inputs["labels"]
    with torch.no_grad():
        assert model(**inputs).logits.shape == (3, 17, 211)


def test_a_head_that_accelerate_moves_between_devices_is_read_where_it_is():
    expected = label_statistics(make("gpt_neox"), **batch())
    model = cpu_offload(make("gpt_neox"), execution_device=torch.device("cpu"))
    assert model.get_output_embeddings().weight.is_meta
    found = label_statistics(model, **batch())
    assert torch.equal(found.log_probs, expected.log_probs)


def test_a_compiled_or_checkpointed_head_is_seen_through():
    inputs = batch()
    expected = loss_and_gradients(apply_profit(make("llama"), NLL()), inputs)
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = make("llama")
    model.set_output_embeddings(checkpoint_wrapper(model.lm_head))
    assert [type(linear) for linear in head_linears(model)] == [nn.Linear]
    apply_profit(model, NLL())
    loss, gradients = loss_and_gradients(model, inputs)
    renamed = {name.replace("_checkpoint_wrapped_module.", ""): gradient for name, gradient in gradients.items()}
    assert_equal((loss, renamed), expected)


def test_a_replaced_forward_of_the_head_is_refused():
    model = make("llama")
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden: own(hidden)
    with pytest.raises(UnsupportedModelError, match="another library replaced the forward of the language-model head"):
        apply_profit(model)
    assert "forward" not in model.__dict__


def tampered(change):
    class Tampered(LlamaForCausalLM):
        def forward(self, input_ids=None, labels=None, **kwargs):
            hidden_states = self.model(input_ids=input_ids).last_hidden_state
            return change(self, hidden_states, super().forward(input_ids=input_ids, **kwargs))

    torch.manual_seed(0)
    return Tampered(AutoConfig.for_model("llama", **SIZES))


def scaled(model, hidden_states, output):
    output.logits = output.logits * 0.95
    return output


def capped(model, hidden_states, output):
    output.logits = 30 * torch.tanh(output.logits / 30)
    return output


def other_hidden_states(model, hidden_states, output):
    output.logits = model.lm_head(0.5 * hidden_states)
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, "logits of Tampered are not its head's product with scale 1.0 and soft cap None"),
        (capped, "logits of Tampered are not its head's product"),
        (other_hidden_states, "Tampered does not hand its backbone's last hidden states to its head as they are"),
    ],
)
def test_a_tail_the_configuration_does_not_tell_is_refused_in_any_dtype(change, message, dtype):
    model = tampered(change).to(dtype)
    with pytest.raises(UnsupportedModelError, match=message):
        apply_profit(model)
    assert {"forward", "accepts_loss_kwargs"}.isdisjoint(model.__dict__)
    assert isinstance(model.lm_head, nn.Linear)
    assert "forward" not in model.model.__dict__


@pytest.mark.parametrize("family", ["bart", "xlm"])
def test_a_family_whose_loss_takes_labels_already_shifted_is_refused(family):
    model = make_other(family)
    with pytest.raises(UnsupportedModelError, match="is not the next-token cross-entropy of its labels"):
        apply_profit(model)


class Around(LlamaForCausalLM):
    """A family whose forward changes what its layers get or what its head gets."""

    def before(self, arguments):
        return arguments

    def after(self, hidden_states):
        return hidden_states

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        arguments = self.before({"input_ids": input_ids, "attention_mask": attention_mask})
        hidden_states = self.after(self.model(**arguments, **kwargs).last_hidden_state)
        logits = self.lm_head(hidden_states)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def scaled_embeddings(model, arguments):
    embeddings = model.model.embed_tokens(arguments["input_ids"])
    return {**arguments, "input_ids": None, "inputs_embeds": 3 * embeddings}


def wide_positions(model, arguments):
    return {**arguments, "position_ids": 2 * torch.arange(arguments["input_ids"].shape[1])[None]}


def places(model, arguments):
    return {**arguments, "position_ids": torch.arange(arguments["input_ids"].shape[1])[None]}


def places_after_padding(model, arguments):
    return {**arguments, "position_ids": (arguments["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def local_mask(model, arguments):
    size = arguments["input_ids"].shape[1]
    return {**arguments, "attention_mask": torch.ones(1, 1, size, size, dtype=torch.bool).tril().triu(-1)}


def dropped_out(model, hidden_states):
    return nn.functional.dropout(hidden_states, 0.2, training=model.training)


def shifted_in_training(model, hidden_states):
    return hidden_states + 0.5 * model.training


@pytest.mark.parametrize("training", [False, True], ids=["as loaded", "in training"])
@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("before", scaled_embeddings, r"what it is given \(input_ids, inputs_embeds\)"),
        ("before", wide_positions, r"what it is given \(position_ids\)"),
        ("before", places_after_padding, r"what it is given \(position_ids\)"),
        ("before", local_mask, r"what it is given \(attention_mask\)"),
        ("after", dropped_out, "does not hand its backbone's last hidden states to its head as they are"),
        ("after", shifted_in_training, "does not hand its backbone's last hidden states to its head as they are"),
    ],
)
def test_what_a_forward_does_before_its_layers_or_in_training_alone_is_refused(place, change, message, training):
    model = type("Changed", (Around,), {place: change})(AutoConfig.for_model("llama", **SIZES)).train(training)
    model.model.layers[0].eval()  # a part that its user keeps so
    modes, state = [module.training for module in model.modules()], torch.random.get_rng_state()
    with pytest.raises(UnsupportedModelError, match=message):
        apply_profit(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_forward_that_says_itself_where_tokens_stand_is_taken():
    torch.manual_seed(0)
    model, inputs = type("Placed", (Around,), {"before": places})(AutoConfig.for_model("llama", **SIZES)), batch()
    expected = loss_and_gradients(model, inputs)
    apply_profit(model, NLL())
    assert_equal(loss_and_gradients(model, inputs), expected)


class Labeled(LlamaModel):
    """Layers that look at the labels: an answer is read otherwise than a prompt."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        embeddings = self.embed_tokens(input_ids)
        if labels is not None:
            embeddings = embeddings * torch.where(labels == -100, 1.0, 2.0)[..., None]
        return super().forward(inputs_embeds=embeddings, **kwargs)


class HandsLabels(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = Labeled(config)

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden_states = self.model(input_ids, labels, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits = self.lm_head(hidden_states)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


@pytest.mark.parametrize("skip_padding", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_layers_that_are_given_the_labels_get_them(attention, skip_padding):
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES)
    config._attn_implementation = attention
    model, inputs = HandsLabels(config).train(), batch()
    expected = loss_and_gradients(model, inputs)
    without = model(**inputs | {"labels": None}).logits
    assert not torch.allclose(without, model(**inputs).logits, atol=1e-4)
    apply_profit(model, NLL(), skip_padding=skip_padding)
    assert_equal(loss_and_gradients(model, inputs), expected)


def test_an_embedding_that_peft_copies_for_the_head_as_well():
    tied = {"tie_word_embeddings": True}
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    model, inputs = get_peft_model(make("llama", **tied), config), batch()
    expected = loss_and_gradients(model, inputs)
    apply_profit(model, NLL())
    assert_equal(loss_and_gradients(model, inputs), expected)


def make_other(family):
    sizes = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "dropout": 0.0}
    sizes |= {"emb_dim": 32, "n_layers": 1, "n_heads": 4}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=211, is_decoder=True, **sizes))


def test_a_model_without_weights_is_checked_like_any_other():
    with torch.device("meta"):
        fine = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **SIZES, final_logit_softcapping=3.0))
        strange = LlamaForCausalLM(AutoConfig.for_model("llama", **SIZES))
    assert selective_head(apply_profit(fine)).final_logit_softcapping == 3.0
    strange.config.logit_scale = 0.5  # its forward knows nothing of that
    with pytest.raises(UnsupportedModelError, match=r"not its head's product with scale 0\.5"):
        apply_profit(strange)


def test_a_head_of_integers_is_refused():
    model = make("llama")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="head holds torch.int8"):
        apply_profit(model)


def test_replicas_of_data_parallel_are_refused_by_name():
    model = make("llama")
    with pytest.raises(UnsupportedModelError, match=r"nn\.DataParallel copies a model without the forward"):
        apply_profit(nn.DataParallel(model))
    apply_profit(model)
    # What nn.parallel.replicate calls for every module, before it copies anything.
    with pytest.raises(UnsupportedModelError, match="Start one process a GPU"):
        model._replicate_for_data_parallel()
    remove_profit(model)
    model._replicate_for_data_parallel()


def test_the_trained_copy_of_an_inactive_adapter_is_not_read():
    model = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    inputs = batch()
    apply_profit(model, NLL())
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(9.0)
    trained = model(**inputs).loss.item()
    remove_profit(model)
    assert trained == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
    apply_profit(model, NLL())
    with model.disable_adapter():
        plain = model(**inputs).loss.item()
    assert plain != pytest.approx(trained, rel=1e-2)
    remove_profit(model)
    with model.disable_adapter():
        assert plain == pytest.approx(model(**inputs).loss.item(), rel=1e-6)


def test_looking_at_labels_leaves_no_trace_and_a_deep_copy_its_own_guard():
    model, inputs = make("llama"), batch()
    attributes, hooks = set(model.__dict__), len(model.model._forward_pre_hooks)
    label_statistics(model, **inputs)
    assert (set(model.__dict__), len(model.model._forward_pre_hooks)) == (attributes, hooks)
    twin = copy.deepcopy(apply_profit(model, NLL()))
    remove_profit(twin)
    assert len(twin.model._forward_pre_hooks) == hooks
    assert len(model.model._forward_pre_hooks) == hooks + 1
    loss_and_gradients(twin, inputs)
    loss_and_gradients(model, inputs)
