"""Settings in other trainers' spellings: the objective they give, and the line that refuses what cannot be meant."""

import re

import pytest

from profit_sft import DFT, EAFT, ProFit
from profit_sft.errors import ConfigurationError
from profit_sft.integrations.settings import _NOT_SETTINGS, read_environment, read_settings, refuse

HIGHER = ProFit(threshold=0.1)


@pytest.mark.parametrize(
    ("given", "objective", "options"),
    [
        ({}, HIGHER, {}),
        ({"threshold": 0.3}, ProFit(threshold=0.3), {}),
        ({"prob_threshold": 0.3, "threshold_direction": "lower"}, ProFit(threshold=0.3, direction="lower"), {}),
        ({"threshold": [0.1, 0.6]}, ProFit(threshold=0.1, upper_threshold=0.6, direction="middle"), {}),
        ({"objective": "dft"}, DFT(), {}),
        ({"objective": "eaft", "objective_kwargs": {"alpha": 0.5}}, EAFT(alpha=0.5), {}),
        ({"objective": "eaft", "objective_kwargs": '{"alpha": 0.5}'}, EAFT(alpha=0.5), {}),
        ({"objective": "eaft", "alpha": 0.5, "threshold": None}, EAFT(alpha=0.5), {}),
        (
            {"normalize": "all", "gradient_budget": 0.003, "statistics": "all", "skip_padding": False},
            HIGHER,
            {"gradient_budget": 0.003, "statistics": "all", "skip_padding": False},
        ),
    ],
)
def test_every_spelling_ends_in_the_objective(given, objective, options):
    found = read_settings(given, place="here")
    assert (found.objective, found.options) == (objective, options)
    assert str(found).startswith(f"ProFit trains {objective}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"treshold": 0.1}, "here: objective 'profit' has no field 'treshold'. It has: threshold,"),
        ({"threshold": 10}, "here: threshold must be a probability in [0, 1], got 10. Write 10% as 0.1."),
        ({"threshold": "high"}, "here: threshold must be a probability in [0, 1], got 'high'."),
        ({"objective": "profti"}, "here: no objective is named 'profti'. Known: nll, profit"),
        ({"objective": "nll", "threshold": 0.1}, "here: objective 'nll' has no field 'threshold'."),
        ({"objective_kwargs": "alpha"}, "here: "),
        ({"threshold": 0.1, "objective_kwargs": {"threshold": 0.2}}, "here: threshold is given twice"),
        ({"gradient_budget": 3}, "here: gradient_budget must be a share in [0, 1), got 3. Write 0.3% as 0.003."),
        ({"gradient_budget": "much"}, "here: gradient_budget must be a share in [0, 1), got 'much'."),
        ({"statistics": "some"}, "here: statistics must be 'objective', 'all' or 'ranks', got 'some'."),
        ({"skip_padding": "no"}, "here: skip_padding must be true or false, got 'no'."),
        ({"normalize": "kept"}, "here: normalize 'kept' is exact in ProFitTrainer alone"),
        (
            {"objective": "rho"},
            "here: Rho(keep_share=0.6) needs reference_log_probs beside the labels, which this trainer",
        ),
        ({"mask_source": "reference"}, "needs reference_log_probs beside the labels"),
        ({"objective": "given"}, "needs token_weights beside the labels"),
        ({"objective": "stm"}, "here: normalize 'kept' is exact in ProFitTrainer alone"),  # its paper's
        ({"objective": "stm", "normalize": "all"}, "needs reference_log_probs beside the labels"),
    ],
)
def test_what_cannot_be_meant_is_one_line(given, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)) as refused:
        read_settings(given, place="here")
    assert "\n" not in str(refused.value)


def test_the_environment_spells_them_in_capitals(monkeypatch):
    monkeypatch.setenv("PROFIT_OBJECTIVE", "eaft")
    monkeypatch.setenv("PROFIT_ALPHA", "0.5")
    monkeypatch.setenv("PROFIT_GRADIENT_BUDGET", "")  # as good as unset
    monkeypatch.setenv("PROFIT_CACHE", "/somewhere")  # of another part of the package
    assert read_environment(place="here") == (EAFT(alpha=0.5), {})
    monkeypatch.setenv("PROFIT_TRESHOLD", "0.1")
    with pytest.raises(ConfigurationError, match="objective 'eaft' has no field 'treshold'"):
        read_environment(place="here")


def test_variables_of_the_packages_other_parts_are_none(repo_root):
    package = repo_root / "src" / "profit_sft"
    texts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py") if "integrations" not in path.parts]
    named = {name for text in texts for name in re.findall(r'"(PROFIT_[A-Z_]+)"', text)}
    assert named == _NOT_SETTINGS


def test_a_switch_that_is_off_is_no_obstacle():
    refuse({"use_dft_loss": False, "smoothing": 0.0, "loss_type": None, "flag": "false"}, place="Peer")
    with pytest.raises(ConfigurationError, match=r"Peer would compute its loss by smoothing=0.1, loss_type='dft' and"):
        refuse({"use_dft_loss": False, "smoothing": 0.1, "loss_type": "dft"}, place="Peer")
