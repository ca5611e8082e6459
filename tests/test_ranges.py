"""Every settings class refuses a wrong kind or number in the same words."""

from pathlib import Path

import pytest

from profit_sft.data.settings import DataSettings
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.scores.settings import ScoreSettings
from profit_sft.train.arguments import RunArguments


def score_settings(**values):
    data = DataSettings(dataset_name="train.jsonl")
    return ScoreSettings(model_name_or_path="m", data=data, output_dir=Path("scored"), **values)


def eval_settings(**values):
    return EvalSettings(model_name_or_path="m", tasks=("gsm8k",), output_dir="out", **values)


def data_settings(**values):
    return DataSettings(dataset_name="train.jsonl", **values)


COUNTS = [
    *((data_settings, name) for name in ("max_length", "max_samples", "dataset_num_proc")),
    *((score_settings, name) for name in ("max_batch_tokens", "shard_rows")),
    *((eval_settings, name) for name in ("samples", "max_new_tokens", "batch_size", "limit")),
    *((RunArguments, name) for name in ("max_samples", "num_processes")),
]


@pytest.mark.parametrize(("make", "name"), COUNTS)
def test_a_count_is_a_whole_number_from_1_on(make, name):
    for value in (0, -3):
        with pytest.raises(ValueError, match=rf"^{name} must be at least 1, got {value}\.$"):
            make(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name} must be at most [\d,]+, got {2**40}\.$"):
        make(**{name: 2**40})
    for value in ("7", 1.5, True):
        with pytest.raises(TypeError, match=rf"^{name} must be a whole number, got {value!r}\.$"):
            make(**{name: value})


def test_what_its_owner_says_more_of_is_left_to_it():
    assert eval_settings(seed=-1, top_k=0).seed == -1
    with pytest.raises(ValueError, match=r"top_k must be at least 0, got -1\. 0 keeps all tokens"):
        eval_settings(top_k=-1)
    with pytest.raises(TypeError, match="temperature must be a number, got 'hot'"):
        eval_settings(temperature="hot")
