"""What the settings make of each other: the batch of a step over ranks, and the normalizer of an objective."""

import pytest

from profit_sft import ProFitConfig


def config(tmp_path, **settings):
    return ProFitConfig(str(tmp_path), use_cpu=True, report_to=[], **settings)


@pytest.mark.parametrize(
    ("rows", "asked", "ranks", "steps"),
    [(1, None, 1, 32), (1, None, 8, 4), (4, None, 8, 1), (2, None, 4, 4), (1, 4, 8, 4), (8, 4, 1, 4)],
)
def test_a_step_has_the_rows_it_should_whatever_the_number_of_ranks(tmp_path, rows, asked, ranks, steps):
    made = config(tmp_path, global_batch_size=32, per_device_train_batch_size=rows, gradient_accumulation_steps=asked)
    made.spread_batch(ranks)
    assert made.gradient_accumulation_steps == steps


def test_without_a_global_batch_size_nothing_is_settled(tmp_path):
    assert config(tmp_path).gradient_accumulation_steps == 1
    made = config(tmp_path, gradient_accumulation_steps=3)
    made.spread_batch(8)
    assert made.gradient_accumulation_steps == 3


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        (
            {"global_batch_size": 30, "per_device_train_batch_size": 4},
            1,
            r"global_batch_size 30 is not a multiple of 4 rows \(per_device_train_batch_size 4 x 1 ranks\)",
        ),
        ({"global_batch_size": 32, "per_device_train_batch_size": 2}, 3, "32 is not a multiple of 6 rows"),
        ({"global_batch_size": 32, "auto_find_batch_size": True}, 1, "is 32, which auto_find_batch_size would change"),
        ({"global_batch_size": 4, "per_device_train_batch_size": 8}, 1, "4 is not a multiple of 8 rows"),
        ({"global_batch_size": 0, "per_device_train_batch_size": 8}, 1, "0 is not a multiple of 8 rows"),
        (
            {"global_batch_size": 32, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
            8,
            "1 x 8 ranks needs 4 accumulated micro-batches, and gradient_accumulation_steps is 8. Leave that out",
        ),
        (
            {"global_batch_size": 32, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 5},
            1,
            "needs 32 accumulated micro-batches, and gradient_accumulation_steps is 5",
        ),
    ],
)
def test_a_batch_that_cannot_be_had_is_refused(tmp_path, settings, ranks, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings).spread_batch(ranks)


@pytest.mark.parametrize(
    ("settings", "normalize"),
    [
        ({}, "all"),
        ({"objective": "stm"}, "kept"),
        ({"objective": "stm", "normalize": "all"}, "all"),
        ({"objective": "dft", "normalize": "kept"}, "kept"),
    ],
)
def test_the_normalizer_is_that_of_the_objectives_source_unless_it_is_named(tmp_path, settings, normalize):
    assert config(tmp_path, **settings).normalize == normalize
