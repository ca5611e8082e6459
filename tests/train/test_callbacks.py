"""The rule of the collapse warning, on histories of logs. What it reads is measured in test_collapse_probe.py."""

import math

import numpy as np
import pytest

from profit_sft.train.callbacks import CollapseWarning
from profit_sft.train.collapse_probe import ProbeValues

START = {"step": 0, "probe_nll": 2.0, "probe_loss": 1.0}


def log(step, nll, loss, se=0.01):
    return {"step": step, "loss": loss, "nll": 9.0, "probe_nll": nll, "probe_loss": loss, "probe_rise_se": se}


def test_a_collapse_that_is_over_at_the_end_was_one_all_the_same():
    history = [START, {"step": 1, "loss": 1.0}, log(2, 2.05, 0.9), log(4, 2.2, 0.5), log(6, 1.8, 0.4)]
    message = CollapseWarning().first_verdict(history)
    assert message.startswith(
        "collapse: plain NLL of the reference rose from 2.000 to 2.200 nats a token by step 4 (on the same training "
        "rows; standard error of the rise 0.010) while the objective's loss fell from 1.000 to 0.500."
    )
    assert CollapseWarning().first_verdict(history[:3]) is None


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (log(2, 2.099, 0.5), "less than 5%"),
        (log(2, 2.3, 0.5, se=0.08), "four standard errors are 0.32"),
        (log(2, 2.3, 1.0), "the loss does not fall: no objective that feeds on itself"),
        (log(2, 9.0, 1.5), "the loss rises: a run that diverges"),
        ({"step": 2, "loss": 0.5, "nll": 9.0}, "another batch, not the probe"),
        (log(2, math.nan, math.nan, se=math.nan), "no numbers"),
        (log(2, None, None, se=None), "no numbers, as metrics.jsonl has them"),
        (log(2, 2.3, 0.5, se=math.nan), "a standard error that is no number"),
    ],
)
def test_no_alarm(entry, why):
    assert CollapseWarning().first_verdict([START, entry]) is None, why


def test_a_run_without_a_probe_has_no_verdict():
    batches = [{"step": step, "loss": 1 / step, "nll": 2.0 + step} for step in range(1, 31)]
    assert CollapseWarning().first_verdict(batches) is None
    assert CollapseWarning().first_verdict([]) is None


def test_a_probe_that_was_drawn_anew_is_compared_from_there_on():
    again = {"step": 5, "probe_nll": 3.0, "probe_loss": 0.8}
    assert CollapseWarning().first_verdict([START, log(4, 2.0, 0.9), again, log(6, 3.1, 0.5)]) is None
    assert "rose from 3.000 to 3.300" in CollapseWarning().first_verdict([START, again, log(6, 3.3, 0.5)])


def test_standard_error_is_that_of_a_ratio_of_sums_over_rows():
    generator = np.random.default_rng(0)
    labels = generator.integers(5, 50, 16)
    before, now = generator.uniform(1, 3, (2, 16)) * labels
    start = ProbeValues(labels=labels.tolist(), nll=before.tolist(), loss=0.5)
    figures = ProbeValues(labels=labels.tolist(), nll=now.tolist(), loss=0.4).figures(start)
    rise = (now - before).sum() / labels.sum()
    residuals = now - before - rise * labels
    expected = np.sqrt(residuals.var(ddof=1) * 16) / labels.sum()
    assert figures["probe_rise_se"] == pytest.approx(expected, rel=1e-12)
    assert figures["probe_nll"] - start.figures(None)["probe_nll"] == pytest.approx(rise, rel=1e-12)
    assert "probe_rise_se" not in start.figures(None)


def drawn_rows(generator, runs, rows):
    """Label tokens and NLL a token of rows as 300 of GSM8K's training rows have them under SmolLM2-135M-Instruct.

    Logarithms are about normal: tokens 4.78 with a standard deviation of 0.42, nats a token 0.31 with 0.24.
    """
    labels = np.ceil(generator.lognormal(4.78, 0.42, (runs, rows)))
    return labels, generator.lognormal(0.31, 0.24, (runs, rows))


def alarms(labels, nll, batch_logs):
    """Count the runs that are warned of.

    Args:
        labels: Of the probe's rows, `(runs, rows)`.
        nll: Nats a token of each row at each measurement, `(runs, measurements, rows)`, the first one the start.
        batch_logs: Nats a token of the batch of each log, `(runs, logs)`; those of the probe come at equal distances.
    """
    found = 0
    rule = CollapseWarning()
    for run, counts in enumerate(labels.tolist()):
        values = [
            # A loss that falls all the time: all that is left to the rule is the rise.
            ProbeValues(labels=counts, nll=(measured * labels[run]).tolist(), loss=1.0 - 0.01 * number)
            for number, measured in enumerate(nll[run])
        ]
        history = [{"step": 0, **values[0].figures(None)}]
        logs = batch_logs[run].tolist()
        for step, value in enumerate(logs, start=1):
            entry = {"step": step, "nll": value, "loss": 0.3 * value}
            number = step * (len(values) - 1) // len(logs)
            if number > (step - 1) * (len(values) - 1) // len(logs):
                entry |= values[number].figures(values[0])
            history.append(entry)
        found += rule.first_verdict(history) is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("batch_rows", [4, 8, 32, 128])
@pytest.mark.parametrize("logs", [10, 30, 100, 300])
def test_at_most_one_in_a_hundred_frozen_runs_is_warned_of(batch_rows, logs):
    generator = np.random.default_rng((batch_rows, logs))
    labels, nll = drawn_rows(generator, 1000, 16)
    # Frozen but for arithmetic: a GPU need not add in the same order twice.
    measured = nll[:, None] * (1 + 1e-3 * generator.standard_normal((1000, min(20, logs) + 1, 16)))
    tokens, values = drawn_rows(generator, 1000 * logs, batch_rows)
    batches = ((tokens * values).sum(-1) / tokens.sum(-1)).reshape(1000, logs)
    assert alarms(labels, measured, batches) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("probe_rows", [16, 32, 128])
@pytest.mark.parametrize("measurements", [2, 20])
def test_at_most_one_in_a_hundred_runs_is_warned_of_whose_rows_wander_without_a_common_rise(probe_rows, measurements):
    generator = np.random.default_rng((probe_rows, measurements))
    labels, nll = drawn_rows(generator, 1000, probe_rows)
    steps = generator.standard_normal((1000, measurements, probe_rows)).cumsum(1) / measurements**0.5
    moved = np.concatenate([np.zeros((1000, 1, probe_rows)), 0.5 * steps], axis=1)
    # Their mean moves by more than the tolerance in some of them: the standard error has to hold them back.
    shifts = (moved * labels[:, None]).sum(-1).max(1) / (nll * labels).sum(-1)
    assert (shifts > 0.05).mean() > 0.05
    assert alarms(labels, nll[:, None] + moved, np.ones((1000, measurements))) <= 10


@pytest.mark.slow
def test_a_rise_by_a_tenth_in_all_rows_alike_is_seen():
    generator = np.random.default_rng(0)
    labels, nll = drawn_rows(generator, 1000, 16)
    rise = generator.normal(0.1, 0.05, (1000, 1, 16)) * np.linspace(0, 1, 21)[:, None]
    assert alarms(labels, nll[:, None] * (1 + rise), np.ones((1000, 30))) > 950
