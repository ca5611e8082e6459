"""A training step that would leave the selective loss is served right or raises; it is never silently another loss."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from profit_sft import NLL, ProFit, apply_profit, remove_profit
from profit_sft.errors import LossBypassedError, UnsupportedModelError
from profit_sft.head import head_counts, label_statistics
from profit_sft.objectives import DFT
from test_head import assert_equal, batch, loss_and_gradients, make, plain_trainer
from tiny import tiny_dataset, tiny_model


def without_labels(model, inputs):
    return model(input_ids=inputs["input_ids"])


def with_trls_fused_head(model, inputs):
    return model(**inputs, fused_lm_head=True)


def past_the_forward(model, inputs):
    hidden_states = model.model(input_ids=inputs["input_ids"]).last_hidden_state
    return hidden_states @ model.lm_head.weight.T


def through_a_forward_put_on_top(model, inputs):
    # As TRL's does: the backbone and the head's matrix, past whatever lies below.
    def fused(**kwargs):
        return past_the_forward(model, kwargs)

    model.forward = fused
    return model(**inputs)


BYPASSES = {
    without_labels: "called in training mode without labels",
    with_trls_fused_head: "fused_lm_head=True",
    past_the_forward: "layers ran outside of the forward",
    through_a_forward_put_on_top: "layers ran outside of the forward",
}


@pytest.mark.parametrize("bypass", BYPASSES)
def test_a_step_past_the_selective_loss_raises_and_names_the_way_in(bypass):
    model = apply_profit(make("llama"), DFT())
    with pytest.raises(LossBypassedError, match=f"{BYPASSES[bypass]}.*ProFitTrainer and ProFitConfig"):
        bypass(model, batch())
    remove_profit(model)
    if bypass is not with_trls_fused_head:  # the model's own forward knows no such argument
        assert bypass(model, batch()) is not None


@pytest.mark.parametrize("bypass", BYPASSES)
def test_looking_is_not_training(bypass):
    model = apply_profit(make("llama"), DFT())
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert bypass(model, batch()) is not None
    assert head_counts(model).calls == 0


def test_generation_in_training_mode_works():
    model = apply_profit(make("llama"), DFT())
    assert model.generate(batch()["input_ids"][:, :4], max_new_tokens=2, do_sample=False).shape == (3, 6)


@pytest.mark.parametrize("option", [{"label_smoothing_factor": 0.1}, {"compute_loss_func": 1}], ids=str)
def test_a_trainer_that_takes_the_labels_away_is_stopped_in_its_first_step(tmp_path, option):
    model = apply_profit(tiny_model(), ProFit(threshold=0.01))
    trainer = plain_trainer(model, tmp_path, **{k: v for k, v in option.items() if k != "compute_loss_func"})
    if "compute_loss_func" in option:
        trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch: outputs.logits.mean()
    with pytest.raises(LossBypassedError, match="without labels"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_labels_in_evaluation_mode_with_gradients_warn_once_and_name_train():
    model, inputs = make("llama").eval(), batch()
    expected = model(**inputs).loss
    apply_profit(model, ProFit(threshold=0.9))
    with pytest.warns(UserWarning, match=r"plain NLL, not the selective loss. Call model.train\(\)"):
        assert model(**inputs).loss == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)
        with torch.no_grad():
            model(**inputs)


@pytest.mark.parametrize(
    "keep", [6, torch.arange(11, 17), torch.arange(17) > 10, (torch.arange(17) > 10)[None]], ids=str
)
def test_labels_cut_as_the_logits_would_be_give_the_models_own_loss(keep):
    inputs = batch()
    inputs["labels"][:, :12] = -100
    kept = slice(-keep, None) if isinstance(keep, int) else keep.squeeze()
    cut = {**inputs, "labels": inputs["labels"][:, kept], "logits_to_keep": keep}
    own = {**cut, "logits_to_keep": keep.squeeze() if isinstance(keep, torch.Tensor) else keep}
    expected = loss_and_gradients(make("llama"), own)
    model = apply_profit(make("llama"), ProFit(threshold=0.0))
    assert_equal(loss_and_gradients(model, cut), expected)
    # Labels of all positions need no cut.
    assert_equal(
        loss_and_gradients(model, {**inputs, "logits_to_keep": keep}), loss_and_gradients(make("llama"), inputs)
    )
    with pytest.raises(ValueError, match=r"labels \(3, 4\) go neither with all 17 positions nor with the 6"):
        model(**{**cut, "labels": inputs["labels"][:, :4]})


def test_one_position_that_is_kept_is_one():
    inputs = batch()
    labels = inputs.pop("labels")
    model = apply_profit(make("llama"), ProFit(threshold=0.0))
    whole = model(**inputs, shift_labels=labels.roll(-1, 1)).selective.log_probs[:, 7:8]
    kept = model(**inputs, shift_labels=labels[:, 8:9], logits_to_keep=torch.tensor([7])).selective.log_probs
    assert torch.allclose(kept, whole, atol=1e-5)


def test_reference_log_probs_are_cut_with_the_labels():
    inputs, likely = batch(), torch.zeros(3, 17)
    likely[:, 13:] = -9.0
    model = apply_profit(make("llama"), ProFit(threshold=0.1, mask_source="reference"))
    whole = model(**inputs, reference_log_probs=likely).selective
    cut = {**inputs, "labels": inputs["labels"][:, -8:], "logits_to_keep": 8, "reference_log_probs": likely[:, -8:]}
    assert torch.equal(model(**cut).selective.token_weights, whole.token_weights[:, -8:])


@pytest.fixture
def bf16_accelerator():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield Accelerator(mixed_precision="bf16", cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_installing_after_prepare_is_refused_where_it_would_lose_autocast(bf16_accelerator):
    seen = []
    before = apply_profit(make("llama"), ProFit(threshold=0.0))
    before.lm_head.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    before = bf16_accelerator.prepare(before)
    before(**batch()).loss.backward()
    assert seen == [True]
    apply_profit(before, DFT())  # another objective is no new installation
    before(**batch()).loss.backward()
    assert seen == [True, True]
    after = bf16_accelerator.prepare(make("llama"))
    with pytest.raises(
        UnsupportedModelError, match=r"wrapped the model's forward in autocast already.*before accelerator"
    ):
        apply_profit(after)


def test_per_token_values_for_trl_survive_accelerates_conversion(bf16_accelerator):
    model = bf16_accelerator.prepare(apply_profit(make("llama").eval(), ProFit(threshold=0.9)))
    with torch.no_grad():
        found = model(**batch(), fused_lm_head=True)
    assert found.log_probs.sum() == found.selective.log_probs.sum()
    assert found["label_mask"].sum() == found.selective.num_labels


def test_removal_under_a_forward_put_on_top_leaves_that_one_and_the_models_own(bf16_accelerator):
    expected = make("llama")(**batch()).loss
    model = bf16_accelerator.prepare(apply_profit(make("llama"), ProFit(threshold=0.9)))
    on_top = model.forward
    remove_profit(model)
    assert model.forward == on_top
    assert model(**batch()).loss.item() == pytest.approx(expected.item(), rel=1e-2)
    assert model(input_ids=batch()["input_ids"]).logits is not None
    with pytest.raises(ValueError, match="has no selective head"):
        head_counts(model)
    remove_profit(model)


@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("num_items", [0, torch.tensor(0)], ids=str)
def test_a_step_without_labels_has_zero_loss_and_gradients(normalize, num_items):
    model, inputs = make("llama"), batch()
    inputs["labels"][:] = -100
    apply_profit(model, ProFit(threshold=0.1), normalize=normalize)
    loss, gradients = loss_and_gradients(model, {**inputs, "num_items_in_batch": num_items})
    assert loss == 0.0
    assert all((gradient == 0).all() for gradient in gradients.values())


@pytest.mark.parametrize("steps", [1, 4])
def test_a_family_that_refuses_num_items_is_not_averaged_over_micro_batches(tmp_path, steps):
    class Refusing(type(tiny_model())):
        accepts_loss_kwargs = False

    model = tiny_model()
    model.__class__ = Refusing
    before = [parameter.detach().clone() for parameter in model.parameters()]
    apply_profit(model, ProFit(threshold=0.0))
    sizes = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    trainer = plain_trainer(model, tmp_path, **sizes)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    total, count = 0.0, 0
    plain = tiny_model().eval()
    with torch.no_grad():
        for parameter, start in zip(plain.parameters(), before, strict=True):
            parameter.copy_(start)
        for row in tiny_dataset(8):
            labels = torch.tensor([row["labels"]])
            number = int((labels[:, 1:] != -100).sum())
            total += plain(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item() * number
            count += number
    assert logged == pytest.approx(total / count, rel=1e-4)
    remove_profit(model)
    assert model.accepts_loss_kwargs is False


def test_all_statistics_at_every_call_where_they_are_asked_for():
    inputs = batch()
    expected = label_statistics(make("llama"), **inputs)
    model = apply_profit(make("llama"), ProFit(threshold=0.005), statistics="all")
    for _ in range(2):
        model(**inputs)
    labels, kept, nll = head_counts(model).take("cpu").tolist()
    assert labels == 2 * expected.num_labels
    assert 0 < kept < labels
    assert nll == pytest.approx(-2 * expected.log_probs.sum().item(), rel=1e-5)
    assert head_counts(model).take("cpu").tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="statistics must be 'objective', 'all' or 'ranks', got 'some'"):
        apply_profit(model, statistics="some")


def test_evaluation_by_trls_fused_head_is_plain_nll_through_the_heads_module():
    model, inputs, calls = make("llama"), batch(), []
    with torch.no_grad():
        expected = model.eval()(**inputs)
    apply_profit(model, ProFit(threshold=0.9), normalize="kept")
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = model(**inputs, fused_lm_head=True)
    assert calls == [1]
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    log_probs = expected.logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    own = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    torch.testing.assert_close(found.log_probs[:, :-1], own, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.label_mask[:, :-1], labels != -100)
    entropy = torch.special.entr(log_probs.exp()).sum(-1) * (labels != -100)
    torch.testing.assert_close(found.entropy[:, :-1], entropy, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.is_top1[:, :-1], (log_probs.argmax(-1) == labels) & (labels != -100))


def test_what_trl_reads_of_the_output_is_refused_to_it_alone():
    output = apply_profit(make("llama"), NLL())(**batch())
    assert output.logits is None
    reader = {"__name__": "trl.trainer.sft_trainer", "output": output}
    for name in ("logits", "num_valid_tokens"):
        with pytest.raises(LossBypassedError, match=f"reads '{name}' of the output, which is never formed"):
            exec(f"output.{name}", reader)
    exec("assert output.loss.requires_grad", reader)
