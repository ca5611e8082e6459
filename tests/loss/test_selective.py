"""Every objective, head and option of the loss against the float64 oracle, with gradients."""

import math
import re

import fake_accelerator
import pytest
import torch
from problems import (
    HEADS,
    OBJECTIVES,
    PLACES,
    THRESHOLD,
    assert_close,
    beside,
    both,
    oracle,
    ours,
    planted_problem,
    selective_loss,
    skip_without_float64,
    tolerance,
)
from torch.nn import functional

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.objectives import DFT, Power, Rho

pytestmark = pytest.mark.parametrize("place", PLACES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_loss_and_gradients_match_the_oracle(place, objective, dtype):
    problem = planted_problem(place, dtype)
    (result, gradients), (loss, exact, values) = both(problem, objective, place=place, chunk_size=place.chunk_size)
    assert_close(gradients, exact, tolerance(dtype, *problem[:2], place))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    label_mask = problem[2] != -100
    assert torch.equal(result.label_mask, label_mask)
    # relative to the weight's size; power and focal amplify the rounding of log p
    assert (result.token_weights[label_mask].double() - values["token_weights"]).abs().max() <= 1e-4 * values[
        "token_weights"
    ].abs().max()
    measured = ~result.log_probs[label_mask].isnan()
    assert (result.log_probs[label_mask][measured].double() - values["log_probs"][measured]).abs().max() <= 2e-5
    assert result.num_labels == label_mask.sum()
    assert result.num_kept == (result.token_weights != 0).sum()
    if values["token_weights"].unique().numel() <= 2:  # a mask
        assert torch.equal(result.token_weights[label_mask].double(), values["token_weights"])
    assert result.dropped_share == 0


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", [ProFit(threshold=THRESHOLD), DFT()], ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("chunks", ["several", "one", "none smaller"])
def test_heads_and_chunk_sizes_match_the_oracle(place, objective, head, chunks, dtype):
    options = HEADS[head]
    chunk_size = {"several": place.chunk_size, "one": place.sizes[0], "none smaller": 4096}[chunks]
    problem = planted_problem(place, dtype, **options)
    (result, gradients), (loss, exact, _) = both(problem, objective, head=options, place=place, chunk_size=chunk_size)
    assert_close(gradients, exact, tolerance(dtype, *problem[:2], place))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.pairs
@pytest.mark.parametrize(
    "options", [{"normalize": "kept"}, {"num_items_in_batch": 1000}, {"num_items_in_batch": torch.tensor(7.0)}], ids=str
)
@pytest.mark.parametrize("objective", [NLL(), ProFit(threshold=THRESHOLD), Power(k=0.5)], ids=str)
def test_normalizers_match_the_oracle(place, objective, options):
    problem = planted_problem(place)
    (result, gradients), (loss, exact, _) = both(problem, objective, place=place, **options)
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2], place))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_normalizing_by_the_kept_tokens_is_as_precise_as_the_inputs(place):
    skip_without_float64(place)
    (result, gradients), (loss, exact, _) = both(
        planted_problem(place, torch.float64), ProFit(threshold=THRESHOLD), place=place, normalize="kept"
    )
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert_close(gradients, exact, 1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_all_statistics_match_the_oracle(place, head):
    options = HEADS[head]
    problem = planted_problem(place, **options)
    objective = ProFit(threshold=THRESHOLD)
    (result, gradients), (_, exact, values) = both(
        problem, objective, head=options, place=place, statistics="ranks", likeliest=4, chunk_size=place.chunk_size
    )
    label_mask = problem[2] != -100
    for name in ("log_probs", "entropy"):
        found = getattr(result, name)
        assert (found[label_mask].double() - values[name]).abs().max() <= 3e-5, name
        assert (found[~label_mask] == 0).all()
    inputs = [None if tensor is None else tensor.double() for tensor in (*problem[:2], problem[3])]
    logits = inputs[0] @ inputs[1].T + (0 if inputs[2] is None else inputs[2])
    assert torch.equal(result.is_top1, (logits.argmax(-1) == problem[2]) & label_mask)
    assert torch.equal(result.top1, torch.where(label_mask, logits.argmax(-1), 0))
    scaled, cap = logits * options.get("logit_scale", 1.0), options.get("final_logit_softcapping")
    likeliest = (scaled if cap is None else cap * (scaled / cap).tanh()).log_softmax(-1).topk(4)
    assert torch.equal(result.likeliest, torch.where(label_mask[:, None], likeliest.indices, 0))
    of_labels = result.likeliest_log_probs[label_mask].double()
    assert (of_labels - likeliest.values[label_mask]).abs().max() <= 3e-5
    assert (result.likeliest_log_probs[~label_mask] == 0).all()
    own = logits.gather(-1, problem[2].clamp(min=0)[:, None])
    assert torch.equal(result.rank, torch.where(label_mask, 1 + (logits > own).sum(-1), 0))
    assert result.rank.max() > 20
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2], place))


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_asking_for_all_statistics_changes_nothing_else(place, objective, dtype):
    problem = planted_problem(place, dtype)
    (result, gradients), (loss, exact, values) = both(
        problem, objective, place=place, statistics="all", chunk_size=place.chunk_size
    )
    assert_close(gradients, exact, tolerance(dtype, *problem[:2], place))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    label_mask = problem[2] != -100
    for name in ("log_probs", "entropy"):
        assert (getattr(result, name)[label_mask].double() - values[name]).abs().max() <= 3e-5, name
    top1 = (problem[0].double() @ problem[1].double().T).argmax(-1) == problem[2]
    assert torch.equal(result.is_top1, top1 & label_mask)
    assert 0.1 < result.is_top1.double().mean() < 0.9
    assert torch.equal(result.token_weights != 0, ours(problem, objective, place=place)[0].token_weights != 0)


@pytest.mark.parametrize("ignore_index", [-1, 0])  # 0 is a token as well, such as a padding token
@pytest.mark.parametrize(
    "objective", [ProFit(threshold=THRESHOLD), ProFit(mask_source="reference"), Rho(keep_share=0.4)], ids=str
)
def test_batches_of_sequences_and_other_ignore_index(place, objective, ignore_index):
    hidden, lm_head_weight, labels, _, reference = planted_problem(place)
    count = len(labels) // 4 * 4
    labels = torch.where(labels == -100, ignore_index, labels)[:count].view(4, -1)
    problem = hidden[:count].view(4, count // 4, -1), lm_head_weight, labels, None, reference[:count]
    (result, gradients), (loss, exact, values) = both(
        problem, objective, place=place, ignore_index=ignore_index, shift=False
    )
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name in ("log_probs", "token_weights", "label_mask"):
        assert getattr(result, name).shape == labels.shape, name
    assert torch.equal(result.token_weights[labels != ignore_index].double(), values["token_weights"])
    assert gradients[0].shape == problem[0].shape
    assert_close(gradients, exact, tolerance(torch.float32, hidden, lm_head_weight, place))


@pytest.mark.parametrize("statistics", ["objective", "all"])
def test_known_weights_replace_the_objective(place, statistics):
    problem = planted_problem(place)
    weights = torch.rand(problem[2].shape, generator=torch.Generator().manual_seed(3))
    weights[::3] = 0
    (result, gradients), (loss, exact, _) = both(
        problem, NLL(), place=place, token_weights=weights, statistics=statistics, chunk_size=place.chunk_size
    )
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2], place))
    unweighted = (problem[2] != -100) & (weights == 0)
    assert bool(result.log_probs[unweighted].isnan().all()) == (statistics == "objective")


def test_gradients_agree_with_finite_differences(place):
    skip_without_float64(place)
    # torch's gradcheck calls backward several times, which this loss refuses; so the differences are taken here.
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 6), (11, 6), (11,))]
    # The weights are held fixed: differences would see through a detached weight such as DFT's.
    options = {
        "objective": NLL(),
        "token_weights": torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0]),
        "logit_scale": 0.8,
        "final_logit_softcapping": 3.0,
        "chunk_size": 2,
    }

    def loss():
        labels = torch.tensor([0, 10, 3, -100, 7])
        return selective_loss(place, inputs[0], inputs[1], labels, bias=inputs[2], **options).loss

    for tensor in inputs:
        tensor.requires_grad_()
    gradients = torch.autograd.grad(loss(), inputs)
    step = 1e-6
    with torch.no_grad():
        for tensor, gradient in zip(inputs, gradients, strict=True):
            flat = tensor.view(-1)
            for index in range(flat.numel()):
                value = flat[index].item()
                flat[index] = value + step
                above = loss().item()
                flat[index] = value - step
                below = loss().item()
                flat[index] = value
                assert gradient.view(-1)[index].item() == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_token_weights_carry_no_gradient(place):
    problem = planted_problem(place)
    result, gradients = ours(problem, DFT(), place=place)
    _, fixed = ours(problem, NLL(), place=place, token_weights=result.token_weights)
    assert not result.token_weights.requires_grad
    for found, expected in zip(gradients, fixed, strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


# -- edges ------------------------------------------------------------------------------------------------------


def run(place, hidden, lm_head_weight, labels, objective=None, **options):
    hidden, lm_head_weight = hidden.detach().requires_grad_(), lm_head_weight.detach().requires_grad_()
    objective = objective or ProFit(threshold=THRESHOLD)
    result = selective_loss(place, hidden, lm_head_weight, labels, objective=objective, **options)
    result.loss.backward()
    return result, hidden.grad, lm_head_weight.grad


@pytest.mark.pairs
@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("case", ["no tokens", "all ignored"])
@pytest.mark.parametrize("statistics", ["objective", "all"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_nothing_to_train_is_an_attached_zero(place, case, normalize, statistics, objective):
    tokens = 0 if case == "no tokens" else 5
    labels = torch.full((tokens,), -100)
    options = {"normalize": normalize, "statistics": statistics, **beside(objective, torch.zeros(tokens))}
    result, d_hidden, d_weight = run(place, torch.randn(tokens, 8), torch.randn(3000, 8), labels, objective, **options)
    assert result.loss.item() == 0.0
    assert d_hidden.shape == (tokens, 8)
    assert d_weight.shape == (3000, 8)
    assert (d_hidden == 0).all()
    assert (d_weight == 0).all()
    assert result.num_labels == result.num_kept == 0


@pytest.mark.parametrize("gradient_budget", [0.0, 0.01])
@pytest.mark.parametrize("vocab_size", [50, 5000])  # below and above the size that is screened
def test_all_masked_is_zero_with_a_warning_that_names_threshold_and_largest_p(place, vocab_size, gradient_budget):
    generator = torch.Generator().manual_seed(0)
    hidden, lm_head_weight = torch.randn(9, 8, generator=generator), torch.randn(vocab_size, 8, generator=generator)
    labels = torch.arange(9)
    largest = (hidden @ lm_head_weight.T).softmax(-1)[torch.arange(9), labels].max().item()
    with pytest.warns(
        UserWarning, match=r"ProFit\(threshold=0.99\) gave all 9 label tokens .* largest p seen is"
    ) as seen:
        result, d_hidden, d_weight = run(
            place, hidden, lm_head_weight, labels, ProFit(threshold=0.99), gradient_budget=gradient_budget
        )
    text = next(str(warning.message) for warning in seen if "largest p seen" in str(warning.message))
    named = float(re.search(r"largest p seen is (?:at most )?([\d.]+?)\.? ", text)[1])
    assert named >= largest * 0.99
    assert result.loss.item() == 0.0
    assert (d_hidden == 0).all()
    assert (d_weight == 0).all()


def test_masked_tokens_get_exactly_zero_gradient(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    result, d_hidden, _ = run(place, hidden, lm_head_weight, labels)
    masked = result.token_weights == 0
    assert 0.2 < masked.double().mean() < 0.8
    assert (d_hidden[masked] == 0).all()
    assert (d_hidden[~masked].abs().sum(-1) > 0).all()


def test_none_masked_equals_plain_cross_entropy(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    result, d_hidden, d_weight = run(place, hidden, lm_head_weight, labels, ProFit(threshold=0.0))
    inputs = hidden.double().requires_grad_(), lm_head_weight.double().requires_grad_()
    loss = functional.cross_entropy(inputs[0] @ inputs[1].T, labels)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close(
        (d_hidden, d_weight), torch.autograd.grad(loss, inputs), tolerance(torch.float32, hidden, lm_head_weight, place)
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_nan_is_not_masked_away(place, objective):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    hidden[30, 3] = float("nan")
    labels[30] = 17
    options = {"objective": objective, **beside(objective, torch.zeros(labels.shape))}
    assert selective_loss(place, hidden, lm_head_weight, labels, **options).loss.isnan()
    everywhere = torch.full_like(hidden, float("nan"))  # and no warning that nothing was kept
    assert selective_loss(place, everywhere, lm_head_weight, labels, **options).loss.isnan()


def test_a_padded_vocabulary_does_not_spoil_the_statistics(place):
    hidden, lm_head_weight, labels, bias, _ = planted_problem(place, bias=True)
    bias[7:9] = -float("inf")
    labels[(labels == 7) | (labels == 8)] = -100
    result = selective_loss(place, hidden, lm_head_weight, labels, bias=bias, objective=NLL(), statistics="all")
    assert result.loss.isfinite()
    assert result.entropy.isfinite().all()


def test_a_step_without_labels_divides_zero_by_one(place):
    result, d_hidden, _ = run(
        place, torch.randn(3, 8), torch.randn(30, 8), torch.full((3,), -100), NLL(), num_items_in_batch=torch.tensor(0)
    )
    assert result.loss.item() == 0.0
    assert (d_hidden == 0).all()


def test_one_token(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    result, d_hidden, _ = run(place, hidden[20:21], lm_head_weight, labels[20:21], NLL())
    expected = functional.cross_entropy((hidden[20:21].double() @ lm_head_weight.double().T), labels[20:21])
    assert result.loss.item() == pytest.approx(expected.item(), abs=5e-6)
    assert d_hidden.abs().sum() > 0


def test_probability_equal_to_the_threshold_is_kept(place):
    # Two tokens in the vocabulary with equal logits: p is 1/2 to the last bit.
    result, _, _ = run(place, torch.ones(1, 4), torch.ones(2, 4), torch.tensor([1]), ProFit(threshold=0.5))
    assert result.num_kept == 1


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_any_memory_layout_gives_the_same(place, layout):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    if layout == "transposed":
        other, expected = hidden.T.contiguous().T, hidden
    elif layout == "expanded":
        other = hidden[30].expand(len(hidden), -1)
        expected = other.contiguous()
    else:
        other, expected = torch.stack([hidden, hidden], dim=1)[:, 1], hidden
    found = run(place, other, lm_head_weight.T.contiguous().T, labels, NLL())
    wanted = run(place, expected, lm_head_weight, labels, NLL())
    assert found[0].loss.item() == pytest.approx(wanted[0].loss.item(), rel=1e-6)
    assert (found[1] - wanted[1]).norm() <= 1e-6 * wanted[1].norm()
    assert (found[2] - wanted[2]).norm() <= 1e-6 * wanted[2].norm()


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(place, frozen):
    hidden, lm_head_weight, labels, bias, _ = planted_problem(place, bias=True)
    inputs = {"hidden": hidden, "weight": lm_head_weight, "bias": bias}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name != frozen)
    options = {"objective": ProFit(threshold=THRESHOLD)}
    loss = selective_loss(place, hidden, lm_head_weight, labels, bias=bias, **options).loss
    loss.backward()
    assert [name for name, tensor in inputs.items() if tensor.grad is None] == [frozen]
    problem = hidden, lm_head_weight, labels, bias, torch.zeros(len(labels))
    result, gradients = ours(problem, place=place, **options)
    assert loss.item() == pytest.approx(result.loss.item(), rel=1e-6)
    for (name, tensor), expected in zip(inputs.items(), gradients, strict=True):
        if name != frozen:
            assert (tensor.grad - expected).norm() <= 1e-6 * expected.norm(), name


def test_tied_head_accumulates_both_gradients(place):
    skip_without_float64(place)
    _, lm_head_weight, labels, _, _ = planted_problem(place)
    input_ids = labels.clamp(min=0).roll(1)
    gradients = []
    for selective in (True, False):
        tied = lm_head_weight.double().requires_grad_()
        hidden = 5 * functional.embedding(input_ids, tied)
        if selective:
            loss = selective_loss(place, hidden, tied, labels, objective=NLL()).loss
        else:
            loss = functional.cross_entropy(hidden @ tied.T, labels)
        gradients.append(torch.autograd.grad(loss, tied)[0])
    assert (gradients[0] - gradients[1]).norm() <= 1e-9 * gradients[1].norm()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_values_are_computed(place, mode):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    with mode():
        result = selective_loss(
            place, hidden.clone(), lm_head_weight.clone(), labels, objective=NLL(), statistics="all"
        )
    assert not result.loss.requires_grad
    assert result.loss.item() == pytest.approx(
        functional.cross_entropy(hidden @ lm_head_weight.T, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("objective", [NLL(), ProFit(threshold=THRESHOLD)], ids=str)
@pytest.mark.parametrize("head", ["plain", "all"])
def test_autocast_rounds_the_operands_as_a_linear_layer_would(place, head, objective):
    if not torch.amp.is_autocast_available(place.device.type):
        pytest.skip(f"no autocast for {place.device.type}")
    problem = planted_problem(place, **HEADS[head])
    hidden, lm_head_weight, labels, bias, reference = problem
    with torch.autocast(place.device.type, dtype=torch.bfloat16):
        result, gradients = ours(problem, objective, head=HEADS[head], place=place)
    rounded = [None if tensor is None else tensor.bfloat16().float() for tensor in (hidden, lm_head_weight, bias)]
    loss, exact, values = oracle((*rounded[:2], labels, rounded[2], reference), objective, head=HEADS[head])
    assert (values["log_probs"] - math.log(THRESHOLD)).abs().min() > 1e-5  # rounding the inputs moved no p onto it
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert_close(gradients, exact, tolerance(torch.bfloat16, hidden, lm_head_weight, place))


def test_autocast_leaves_float64_alone(place):
    skip_without_float64(place)
    problem = planted_problem(place, torch.float64)
    with torch.autocast(place.device.type, dtype=torch.bfloat16):
        (result, gradients), (loss, exact, _) = both(problem, NLL(), place=place)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert_close(gradients, exact, 1e-12)


# dynamo looks at .grad of what it resumes with
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_inside_a_compiled_function(place):
    if place.device == fake_accelerator.DEVICE:
        pytest.skip("dynamo takes the fake device's tensors for its own")
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)

    @torch.compile(backend="eager")
    def step(states):
        result = selective_loss(place, states * 1.0, lm_head_weight, labels, objective=ProFit(threshold=THRESHOLD))
        return result.loss * 3.0

    states = hidden.clone().requires_grad_()
    step(states).backward()
    _, expected, _ = run(place, hidden, lm_head_weight, labels)
    assert (states.grad - 3.0 * expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize(
    ("change", "factor"), [(lambda loss: -2.5 * loss, -2.5), (lambda loss: loss.expand(3).sum(), 3.0)]
)
def test_upstream_gradient_is_applied(place, normalize, change, factor):
    problem = planted_problem(place, bias=True)
    options = {"objective": ProFit(threshold=THRESHOLD), "normalize": normalize}
    _, once = ours(problem, place=place, **options)
    inputs = [tensor.clone().requires_grad_() for tensor in (problem[0], problem[1], problem[3])]
    result = selective_loss(place, *inputs[:2], problem[2], bias=inputs[2], **options)
    change(result.loss).backward()
    for tensor, expected in zip(inputs, once, strict=True):
        assert (tensor.grad - factor * expected).norm() <= 1e-6 * expected.norm()


def test_second_derivatives_are_refused_by_name(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    hidden.requires_grad_()
    result = selective_loss(place, hidden, lm_head_weight, labels, objective=NLL())
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(result.loss, hidden, create_graph=True)


def test_a_second_backward_is_refused_by_name(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    hidden.requires_grad_()
    result = selective_loss(place, hidden, lm_head_weight, labels, objective=NLL())
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed over in an earlier backward"):
        result.loss.backward()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_order_of_tokens_does_not_matter(place, objective):
    hidden, lm_head_weight, labels, _, reference = planted_problem(place)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    options = {"objective": objective, "chunk_size": place.chunk_size}
    found = run(place, hidden[order], lm_head_weight, labels[order], **beside(objective, reference[order]), **options)
    wanted = run(place, hidden, lm_head_weight, labels, **beside(objective, reference), **options)
    change = (found[0].token_weights - wanted[0].token_weights[order]).abs().max()
    assert change <= 1e-4 * wanted[0].token_weights.abs().max()  # exactly 0 for masks, as p is off their thresholds
    bound = tolerance(torch.float32, hidden, lm_head_weight, place)
    assert (found[1] - wanted[1][order]).norm() <= bound * wanted[1].norm()
    assert (found[2] - wanted[2]).norm() <= bound * wanted[2].norm()


def test_micro_batches_sum_to_the_whole_batch(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    count = int((labels != -100).sum())
    whole = run(place, hidden, lm_head_weight, labels)
    parts = [
        run(place, hidden[part], lm_head_weight, labels[part], num_items_in_batch=count)
        for part in (slice(0, 15), slice(15, count // 2), slice(count // 2, None))
    ]
    assert sum(part[0].loss.item() for part in parts) == pytest.approx(whole[0].loss.item(), rel=1e-6)
    assert (sum(part[2] for part in parts) - whole[2]).norm() <= 1e-6 * whole[2].norm()
    assert (torch.cat([part[1] for part in parts]) - whole[1]).norm() <= 1e-6 * whole[1].norm()


def test_no_buffer_of_all_logits_is_made(place):
    from torch.utils._python_dispatch import TorchDispatchMode

    hidden, lm_head_weight, labels, _, _ = planted_problem(place)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, (tuple, list)) else [made]:
                # Triton's interpreter looks at the bytes of what the kernels are given.
                if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.uint8:
                    self.elements = max(self.elements, tensor.numel())
            return made

    hidden.requires_grad_()
    lm_head_weight.requires_grad_()
    with Largest() as largest:
        for objective in OBJECTIVES:
            selective_loss(
                place,
                hidden,
                lm_head_weight,
                labels,
                objective=objective,
                **beside(objective, torch.zeros(labels.shape)),
                chunk_size=place.chunk_size,
                statistics="all",
            ).loss.backward()
    assert largest.elements == lm_head_weight.numel()  # dW, and less than half of N x V


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(4)}, TypeError, r"labels must be int64, got torch.float32. Call labels.long\(\)."),
        ({"labels": torch.tensor([0, 9, 1, 99])}, ValueError, r"labels\[1\] is 9, outside the vocabulary \[0, 9\)"),
        (
            {"labels": torch.tensor([[0, 1], [-5, 1]]), "hidden_states": torch.zeros(2, 2, 3)},
            ValueError,
            r"labels\[\(1, 0\)\] is -5",
        ),
        (
            {"labels": torch.zeros(3, dtype=torch.long)},
            ValueError,
            r"hidden_states \(4, 3\) and labels \(3,\) do not line up",
        ),
        (
            {"lm_head_weight": torch.zeros(9, 2)},
            ValueError,
            r"lm_head_weight must be \(V, 3\) to match hidden_states, got \(9, 2\)",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must be \(9,\), one per row of lm_head_weight, got \(3,\)"),
        ({"token_weights": torch.zeros(3)}, ValueError, r"weights must have the shape of labels \(4,\), got \(3,\)"),
        ({"reference_log_probs": torch.zeros(3)}, ValueError, "reference_log_probs must have the shape of labels"),
        ({"normalize": "mean"}, ValueError, "normalize must be 'all' or 'kept', got 'mean'"),
        (
            {"normalize": "kept", "num_items_in_batch": 4},
            ValueError,
            "normalize='kept' counts the kept tokens of this call itself",
        ),
        ({"statistics": "some"}, ValueError, "statistics must be 'objective', 'all' or 'ranks', got 'some'"),
        ({"backend": "cuda"}, ValueError, "backend must be .* got 'cuda'"),
        (
            {"final_logit_softcapping": 0.0},
            ValueError,
            "final_logit_softcapping must be positive, or None for no cap, got 0.0",
        ),
        (
            {"num_items_in_batch": -3},
            ValueError,
            "num_items_in_batch must be the number of label tokens of the step, got -3",
        ),
        ({"objective": "profit"}, TypeError, "objective must be an Objective such as .*, got 'profit'"),
        (
            {"hidden_states": torch.zeros(4, 3, dtype=torch.long)},
            TypeError,
            "hidden_states must be floating point, got torch.int64",
        ),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1 token, got 0"),
        ({"gradient_budget": 1.0}, ValueError, r"gradient_budget must be a share in \[0, 1\), got 1.0"),
        ({"objective": Rho()}, ValueError, "the objective needs 'reference_log_probs', which was not given"),
    ],
)
def test_wrong_input_is_refused_with_the_value(place, change, error, message):
    arguments = {
        "hidden_states": torch.zeros(4, 3),
        "lm_head_weight": torch.zeros(9, 3),
        "labels": torch.tensor([0, 1, 2, 8]),
        "objective": NLL(),
        "backend": place.backend,
        **change,
    }
    arguments = {
        name: value.to(place.device) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
    }
    with pytest.raises(error, match=message):
        selective_linear_cross_entropy(**arguments)
