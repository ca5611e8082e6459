"""Each objective's weights, against numbers worked out here or against automatic differentiation."""

import dataclasses
import math
import sys

import pytest
import torch

from profit_sft.objectives import (
    ASFT,
    DEFT,
    DFT,
    EAFT,
    NLL,
    OBJECTIVES,
    PSFT,
    STM,
    Focal,
    Given,
    HighEntropy,
    Objective,
    Power,
    ProFit,
    Rho,
    TokenStats,
    TrSFT,
    make_objective,
)

PROBS = torch.tensor([0.001, 0.05, 0.1, 0.3, 0.6, 0.95])
REFERENCE = torch.tensor([0.2, 0.05, 0.01, 0.9, 0.5, 0.99])
COLLISION = torch.tensor([0.9, 0.5, 0.0625, 0.25, 0.5, 0.91])
ENTROPY = torch.tensor([0.5, 2.0, 4.0, 2.0, 1.0, 0.1])
GIVEN = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 1.0])
TOPK_ENTROPY = torch.tensor([0.0, 0.5, 1.0, 2.0, math.log(20), 2.9])


def stats(probs=PROBS, **values):
    return TokenStats(
        labels=torch.arange(len(probs)),
        log_probs=probs.log(),
        entropy=ENTROPY[: len(probs)],
        collision=COLLISION[: len(probs)],
        token_weights=GIVEN[: len(probs)],
        topk_entropy=TOPK_ENTROPY[: len(probs)],
        reference_log_probs=REFERENCE[: len(probs)].log(),
        **values,
    )


WEIGHTS = [
    (NLL(), [1, 1, 1, 1, 1, 1]),
    (ProFit(), [0, 0, 1, 1, 1, 1]),
    (ProFit(threshold=0.3), [0, 0, 0, 1, 1, 1]),
    (ProFit(threshold=0.0), [1, 1, 1, 1, 1, 1]),
    (ProFit(threshold=0.1, direction="lower"), [1, 1, 1, 0, 0, 0]),
    (ProFit(threshold=0.05, upper_threshold=0.61, direction="middle"), [0, 1, 1, 1, 1, 0]),
    (ProFit(threshold=0.1, mask_source="reference"), [1, 0, 0, 1, 1, 1]),
    (ProFit(direction="random", rate=1.0), [1, 1, 1, 1, 1, 1]),
    (ProFit(direction="random", rate=0.0), [0, 0, 0, 0, 0, 0]),
    (TrSFT(), [0.01, 0.5, 1, 1, 1, 1]),
    (TrSFT(alpha=0.5), [0.002, 0.1, 0.2, 0.6, 1, 1]),
    (TrSFT(alpha=1.0), PROBS.tolist()),
    (DFT(), PROBS.tolist()),
    (DFT(threshold=0.3), [0, 0, 0, 0.3, 0.6, 0.95]),
    (DEFT(), (PROBS**COLLISION).tolist()),
    (EAFT(), (TOPK_ENTROPY / math.log(20)).tolist()),
    (EAFT(alpha=2.0), ((TOPK_ENTROPY / math.log(20)) ** 2).tolist()),
    (EAFT(scale=3.0), (TOPK_ENTROPY / 3).tolist()),
    (EAFT(scale=1.0), TOPK_ENTROPY.tolist()),
    (HighEntropy(keep_share=0.2), [0, 0, 1, 0, 0, 0]),
    (HighEntropy(keep_share=0.5), [0, 1, 1, 1, 0, 0]),
    (Power(k=2.0), (PROBS**2).tolist()),
    (Power(k=1.0), PROBS.tolist()),
    (Power(k=2.0, threshold=0.1), [0, 0, 0.01, 0.09, 0.36, 0.9025]),
    (Focal(gamma=0.0), [1, 1, 1, 1, 1, 1]),
    (Given(), GIVEN.tolist()),
    (STM(), [0, 0, 0, 1, 1, 1]),
    (STM(threshold=0.2), [1, 0, 0, 1, 1, 1]),
    (PSFT(), [0.005, 1, 0, 1 / 3, 1.2, 0.95 / 0.99]),
    (PSFT(epsilon=0.1), [0.005, 1, 0, 1 / 3, 0, 0.95 / 0.99]),
    (Rho(keep_share=0.5), [1, 0, 0, 1, 0, 1]),
    (Rho(keep_share=1.0), [1, 1, 1, 1, 1, 1]),
]


@pytest.mark.parametrize(("objective", "expected"), WEIGHTS, ids=lambda value: repr(value)[:40])
def test_weights(objective, expected):
    found = objective.token_weights(stats())
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def derived_weights(loss):
    """The w in `grad loss = -w grad log p`, from the loss as a function of p."""
    log_probs = PROBS.double().log().requires_grad_()
    return -torch.autograd.grad(loss(log_probs.exp(), log_probs).sum(), log_probs)[0]


def two_event_kl(p):
    r = REFERENCE.double()
    return r * (r / p).log() + (1 - r) * ((1 - r) / (1 - p)).log()


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (DFT(), lambda p, log_p: -p),
        (Power(k=3.0), lambda p, log_p: (1 - p**3) / 3),
        (DEFT(), lambda p, log_p: (1 - p ** COLLISION.double()) / COLLISION.double()),
        (Focal(gamma=2.0), lambda p, log_p: -((1 - p) ** 2) * log_p),
        (Focal(gamma=0.5), lambda p, log_p: -((1 - p) ** 0.5) * log_p),
        (ASFT(kl_coef=0.2), lambda p, log_p: -p + 0.2 * two_event_kl(p)),
    ],
    ids=lambda value: "" if callable(value) else repr(value),  # functions are called otherwise in each process
)
def test_weights_are_the_gradient_of_the_named_loss(objective, loss):
    assert objective.token_weights(stats()).tolist() == pytest.approx(derived_weights(loss).tolist(), rel=1e-4)


EXAMPLES = [objective for objective, _ in WEIGHTS] + [Focal(), ASFT()]


@pytest.mark.parametrize("objective", EXAMPLES, ids=repr)
def test_what_an_objective_declares_is_true(objective):
    assert isinstance(objective, Objective)
    needed = {name: getattr(stats(), name) for name in objective.needs}
    if objective.elementwise and not (isinstance(objective, ProFit) and objective.direction == "random"):
        whole = objective.token_weights(TokenStats(labels=torch.arange(6), **needed))
        part = {name: value[2:4] for name, value in needed.items()}
        alone = objective.token_weights(TokenStats(labels=torch.arange(2), **part))
        assert torch.equal(alone, whole[2:4])
    assert (objective.token_weights(stats())[objective.probability_floor > PROBS] == 0).all()
    for missing in objective.needs:
        rest = {name: value for name, value in needed.items() if name != missing}
        with pytest.raises(ValueError, match=f"the objective needs '{missing}', which was not given"):
            objective.token_weights(TokenStats(labels=torch.arange(6), **rest))
    for entry in dataclasses.fields(objective):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(objective, entry.name, 0.5)


@pytest.mark.parametrize("objective", EXAMPLES, ids=repr)
def test_weights_below_the_floor_are_zero_wherever_p_lies(objective):
    count = 5000
    generator = torch.Generator().manual_seed(0)
    log_probs = -12 * torch.rand(count, generator=generator)
    floor = objective.probability_floor
    if floor > 0:
        log_probs[:100] = math.log(floor) - 1e-5 * torch.arange(1, 101)
    many = TokenStats(
        labels=torch.zeros(count, dtype=torch.long),
        log_probs=log_probs,
        entropy=10 * torch.rand(count, generator=generator),
        topk_entropy=3 * torch.rand(count, generator=generator),
        collision=torch.rand(count, generator=generator),
        token_weights=torch.rand(count, generator=generator),
        reference_log_probs=-5 * torch.rand(count, generator=generator),
    )
    weights = objective.token_weights(many)
    assert weights.shape == (count,)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights[log_probs.exp() < floor * (1 - 1e-6)] == 0).all()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (ProFit(threshold=0.25), [0, 1, 1]),
        (ProFit(threshold=0.25, direction="lower"), [1, 1, 0]),
        (ProFit(threshold=0.125, upper_threshold=0.25, direction="middle"), [1, 1, 0]),
        (ProFit(threshold=0.25, upper_threshold=0.5, direction="middle"), [0, 1, 1]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("mask_source", ["online", "reference"])
def test_bounds_are_inclusive(objective, expected, mask_source):
    # The logarithms of these are the same number in fp32 whichever way they are rounded.
    log_probs = torch.tensor([math.log(0.125), math.log(0.25), math.log(0.5)])
    known = {"log_probs" if mask_source == "online" else "reference_log_probs": log_probs}
    objective = dataclasses.replace(objective, mask_source=mask_source)
    assert objective.token_weights(TokenStats(labels=torch.arange(3), **known)).tolist() == expected


@pytest.mark.parametrize(
    "objective", [DFT(threshold=0.25), Power(k=2.0, threshold=0.25), STM(threshold=0.25)], ids=repr
)
def test_a_mask_keeps_what_lies_on_its_threshold(objective):
    log_probs = torch.tensor([math.log(0.24), math.log(0.25)])
    known = TokenStats(labels=torch.arange(2), log_probs=log_probs, reference_log_probs=log_probs)
    assert (objective.token_weights(known) > 0).tolist() == [False, True]


def test_sure_tokens_are_kept_by_a_mask_that_ends_at_one():
    sure = TokenStats(labels=torch.arange(2), log_probs=torch.tensor([0.0, math.log(0.2)]))
    assert ProFit(threshold=0.3, upper_threshold=1.0, direction="middle").token_weights(sure).tolist() == [1, 0]
    assert ProFit(threshold=1.0, direction="lower").token_weights(sure).tolist() == [1, 1]


def test_eaft_weights_stay_in_the_unit_interval():
    # fp32 puts the entropy of 20 equal tokens a rounding above ln 20, and that of a certain one below 0.
    entropy = torch.tensor([-1e-7, math.log(20) * (1 + 1e-6)])
    weights = EAFT(alpha=0.5).token_weights(TokenStats(labels=torch.arange(2), topk_entropy=entropy))
    assert weights.tolist() == [0.0, 1.0]


def test_equality_and_text_of_an_objective_leave_its_generator_out():
    seeded = ProFit(direction="random", rate=0.5, generator=torch.Generator())
    assert seeded == ProFit(direction="random", rate=0.5)
    assert repr(seeded) == "ProFit(threshold=0.1, direction='random', rate=0.5)"
    assert repr(ProFit()) == "ProFit(threshold=0.1)"
    assert ProFit() != ProFit(threshold=0.2)


def test_extreme_probabilities_give_finite_weights():
    extreme = TokenStats(
        labels=torch.arange(4),
        log_probs=torch.tensor([-math.inf, -200.0, -1e-8, 0.0]),
        topk_entropy=torch.tensor([0.0, 3.1, 0.0, 0.0]),
        collision=torch.tensor([1.0, 0.0, 1.0, 1.0]),
        reference_log_probs=torch.tensor([-1.0, 0.0, -math.inf, -1.0]),
    )
    for objective in (DFT(), EAFT(), EAFT(alpha=0.1), Power(k=0.01), ASFT(), TrSFT(), DEFT(), PSFT()):
        assert objective.token_weights(extreme).isfinite().all(), objective
    for gamma in (0.0, 0.5, 1.0, 2.0):
        weights = Focal(gamma=gamma).token_weights(extreme)
        assert weights.isfinite().all(), gamma


def test_random_masks_are_reproducible_and_near_their_rate():
    many = TokenStats(labels=torch.zeros(20000, dtype=torch.long))

    def draw(seed):
        return ProFit(direction="random", rate=0.3, generator=torch.Generator().manual_seed(seed)).token_weights(many)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).mean().item() == pytest.approx(0.3, abs=0.02)
    torch.manual_seed(5)
    first = ProFit(direction="random", rate=0.3).token_weights(many)
    torch.manual_seed(5)
    assert torch.equal(ProFit(direction="random", rate=0.3).token_weights(many), first)


def test_rho_keeps_ties_and_at_least_one():
    even = TokenStats(labels=torch.arange(4), log_probs=torch.zeros(4), reference_log_probs=torch.zeros(4))
    assert Rho(keep_share=0.25).token_weights(even).tolist() == [1, 1, 1, 1]
    assert Rho(keep_share=0.01).token_weights(stats()).sum() == 1
    nothing = torch.zeros(0)
    empty = TokenStats(labels=torch.zeros(0).long(), log_probs=nothing, reference_log_probs=nothing)
    assert Rho().token_weights(empty).shape == (0,)


@pytest.mark.parametrize(("keep_share", "kept"), [(0.1, 1), (0.4, 2), (0.5, 3), (0.74, 4), (0.76, 5), (1.0, 6)])
def test_rho_keeps_the_nearest_count_of_tokens_with_the_largest_excess(keep_share, kept):
    excess = torch.tensor([0.3, -2.0, 1.5, 0.0, 4.0, -0.1])
    distinct = TokenStats(labels=torch.arange(6), log_probs=-excess - 5, reference_log_probs=torch.full((6,), -5.0))
    weights = Rho(keep_share=keep_share).token_weights(distinct)
    assert set(weights.nonzero().flatten().tolist()) == set(excess.topk(kept).indices.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProFit(threshold=10), r"threshold must be a probability in \[0, 1\], got 10. Write 10% as 0.1."),
        (lambda: ProFit(threshold="x"), "threshold must be a probability"),
        (lambda: ProFit(direction="up"), "direction must be one of 'higher', 'lower', 'middle', 'random', got 'up'"),
        (lambda: ProFit(mask_source="me"), "mask_source must be one of 'online', 'reference', got 'me'"),
        (lambda: ProFit(direction="middle"), "direction 'middle' needs upper_threshold, got upper_threshold=None"),
        (lambda: ProFit(upper_threshold=0.5), "direction 'higher' does not use upper_threshold"),
        (lambda: ProFit(direction="random"), "direction 'random' needs rate"),
        (lambda: ProFit(direction="random", rate=2.0), "rate must be a probability"),
        (
            lambda: ProFit(threshold=0.5, upper_threshold=0.2, direction="middle"),
            "upper_threshold must exceed threshold",
        ),
        (lambda: ProFit(direction="random", rate=0.5, mask_source="reference"), "'random' reads no probability"),
        (lambda: EAFT(alpha=0), "alpha must be a positive number, got 0"),
        (lambda: Power(k=-1), "k must be a positive number, got -1"),
        (lambda: Focal(gamma=-1), "gamma must be 0 or a positive number, got -1"),
        (lambda: ASFT(kl_coef=0), "kl_coef must be a positive number, got 0"),
        (lambda: Rho(keep_share=0), r"keep_share must be a share in \(0, 1\], got 0. Write 60% as 0.6."),
        (lambda: HighEntropy(keep_share=1.1), r"keep_share must be a share in \(0, 1\], got 1.1"),
        (lambda: TrSFT(alpha=0), "alpha must be a positive number, got 0"),
        (lambda: TrSFT(alpha=10), r"alpha must be a probability in \[0, 1\], got 10. Write 10% as 0.1."),
        (lambda: DFT(threshold=-0.1), r"threshold must be a probability in \[0, 1\], got -0.1"),
        (lambda: Power(threshold=2), r"threshold must be a probability in \[0, 1\], got 2"),
        (lambda: STM(threshold=2.5), r"threshold must be a probability in \[0, 1\], got 2.5"),
        (lambda: EAFT(scale=0), "scale must be a positive number, got 0"),
        (lambda: PSFT(epsilon=-0.2), "epsilon must be a positive number, got -0.2"),
        (lambda: make_objective("profitt"), "no objective is named 'profitt'. Known: nll, profit, trsft"),
        (
            lambda: make_objective("profit", prob_threshold=30, threshold_direction="random"),
            r"prob_threshold must be a probability in \[0, 1\], got 30",
        ),
        (lambda: make_objective("profit", threshold=[0.1, 0.2, 0.3]), "threshold takes one probability, or two"),
    ],
)
def test_wrong_values_are_refused_where_they_are_born(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("nll", {}, NLL()),
        ("SFT", {}, NLL()),
        ("ce", {}, NLL()),
        ("chunked_nll", {}, NLL()),
        ("use_dft_loss", {}, DFT()),
        ("use_eaft_loss", {"eaft_alpha": 0.5}, EAFT(alpha=0.5)),
        ("use_asft_loss", {"asft_alpha": 0.2}, ASFT(kl_coef=0.2)),
        ("profit", {"prob_threshold": 0.3, "threshold_direction": "lower"}, ProFit(threshold=0.3, direction="lower")),
        (
            "profit",
            {"prob_threshold": [0.1, 0.5], "threshold_direction": "middle"},
            ProFit(threshold=0.1, upper_threshold=0.5, direction="middle"),
        ),
        ("profit", {"prob_threshold": [0.2], "threshold_direction": "higher"}, ProFit(threshold=0.2)),
        (
            "profit",
            {"prob_threshold": [0.25], "threshold_direction": "random"},
            ProFit(direction="random", rate=0.75),
        ),
        ("use_profit_loss", {"threshold": 0.2}, ProFit(threshold=0.2)),
        ("focal", {"focal_gamma": 1.0}, Focal(gamma=1.0)),
        ("profit", {"threshold": (0.2, 0.5)}, ProFit(threshold=0.2, upper_threshold=0.5, direction="middle")),
        ("rho-1", {"keep_share": 0.7}, Rho(keep_share=0.7)),
        ("slm", {}, Rho()),
    ],
)
def test_lookup_by_name_understands_other_tools(name, arguments, expected):
    assert make_objective(name, **arguments) == expected


def test_lookup_knows_every_objective_and_names_the_fields_it_has():
    for name, kind in OBJECTIVES.items():
        assert isinstance(make_objective(name), kind)
    with pytest.raises(TypeError, match="objective 'profit' has no field 'tau'. It has: threshold, direction"):
        make_objective("profit", tau=0.1)
    with pytest.raises(TypeError, match="was given 'threshold' twice, once as 'prob_threshold'"):
        make_objective("profit", threshold=0.1, prob_threshold=0.2)


def test_another_package_adds_an_objective_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "plugin_module.py").write_text(
        "class Half:\n"
        "    needs, elementwise, probability_floor = frozenset(), True, 0.0\n"
        "    def __init__(self, share=0.5): self.share = share\n"
        "    def token_weights(self, stats): return stats.labels.float() * 0 + self.share\n"
    )
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[profit_sft.objectives]\nhalf = plugin_module:Half\nwrong = plugin_module:dict\n".replace(
            "plugin_module:dict", "builtins:dict"
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_objective("half", share=0.25).token_weights(stats()).tolist() == [0.25] * 6
    with pytest.raises(TypeError, match="'wrong' gave a dict, which lacks needs, elementwise or token_weights"):
        make_objective("wrong")
    with pytest.raises(ValueError, match="Known: .*rho, half, wrong"):
        make_objective("absent")
    sys.modules.pop("plugin_module", None)
