"""Mixtures, and rows held out of a source."""

import json

import pytest
import yaml

from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import data_to_evaluate, data_to_train, mixture_parts, open_source
from profit_sft.errors import DataError


@pytest.fixture
def sources(tmp_path):
    """Three files: a with 10 rows, b with 4, c with 6."""
    for name, count in (("a", 10), ("b", 4), ("c", 6)):
        rows = [{"prompt": f"{name}{number}", "completion": "x", "other": 1} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mixture(sources, *parts):
    given = [{**part, "path": str(sources / f"{part['path']}.jsonl")} for part in parts]
    return DataSettings(dataset_name="mixture", datasets=mixture_parts(given))


def names(settings, start=0):
    return [row.values["prompt"] for row in open_source(settings).read(start)]


FRACTIONS = {  # shares of the mixture, rows of each part: as many as can be without a row twice
    "half and half": ((0.5, 0.5), (4, 4)),
    "not normalized": ((3, 1), (10, 3)),
    "one alone": ((1, 1e-9), (10, 0)),
}


@pytest.mark.parametrize("case", FRACTIONS)
def test_fractions_are_shares_of_the_mixture(sources, case):
    fractions, counts = FRACTIONS[case]
    parts = [{"path": name, "fraction": share} for name, share in zip("ab", fractions, strict=True)]
    expected = [f"{name}{number}" for name, count in zip("ab", counts, strict=True) for number in range(count)]
    assert names(mixture(sources, *parts)) == expected


@pytest.mark.parametrize("case", FRACTIONS)
def test_fractions_are_trls(sources, case):
    from trl import DatasetMixtureConfig, get_dataset

    fractions, _ = FRACTIONS[case]
    paths = [str(sources / f"{name}.jsonl") for name in "ab"]
    given = [
        {"path": "json", "data_files": path, "fraction": share} for path, share in zip(paths, fractions, strict=True)
    ]
    theirs = get_dataset(DatasetMixtureConfig(datasets=[dict(part) for part in given]))["train"]
    ours = DataSettings(dataset_name="mixture", datasets=mixture_parts(given))
    assert names(ours) == theirs["prompt"][:]


def test_a_mixture_keeps_the_columns_named_and_each_rows_place(sources):
    settings = mixture(sources, {"path": "a", "columns": ["prompt", "completion"]}, {"path": "b"})
    rows = list(open_source(settings))
    assert [list(rows[index].values) for index in (0, 10)] == [
        ["prompt", "completion"],
        ["prompt", "completion", "other"],
    ]
    assert (rows[10].file, rows[10].number) == (str(sources / "b.jsonl"), 1)


def test_a_yaml_file_with_a_list_of_data_sets_is_a_mixture(sources):
    file = sources / "mixture.yaml"
    file.write_text(
        yaml.safe_dump({"seed": 1, "datasets": [str(sources / "c.jsonl"), {"path": str(sources / "b.jsonl")}]})
    )
    assert names(DataSettings(dataset_name=str(file), max_samples=8)) == [*(f"c{n}" for n in range(6)), "b0", "b1"]
    file.write_text("seed: 1\n")
    with pytest.raises(DataError, match=r"mixture.yaml' has no list 'datasets' of what to mix"):
        open_source(DataSettings(dataset_name=str(file)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [{"name": "x"}],
            r"number 1 is {'name': 'x'}. It must have a path, and may have of these: path, name",
        ),
        ([{"path": "x"}, {"path": "y", "weight": 1}], "datasets: number 2 is .*'weight'"),
        ([3], "datasets: number 1 is 3. It must have a path"),
        ([{"path": "x", "fraction": 0.5}, "y"], "some have a fraction and some have none. Give it to all or to none"),
        ([{"path": "x", "fraction": -1}], "'x' has the fraction -1. It must be more than 0"),
    ],
)
def test_a_part_that_is_none_is_refused_with_the_fix(given, message):
    with pytest.raises(DataError, match=message):
        mixture_parts(given)


@pytest.mark.parametrize(("size", "count"), [(0.25, 3), (0.01, 1), (3, 3), (9, 9)])
@pytest.mark.parametrize("limit", [None, 8])
def test_rows_held_out_are_the_same_each_time_and_no_others(sources, size, count, limit):
    if limit is not None and count >= limit:
        pytest.skip("nothing would be left")
    parts = [
        DataSettings(dataset_name=str(sources / "a.jsonl"), max_samples=limit, test_split_size=size, held_out=held_out)
        for held_out in (False, True)
    ]
    trained, held_out = (names(part) for part in parts)
    assert len(held_out) == (count if limit is None or size >= 1 else max(1, round(size * limit)))
    assert sorted([*trained, *held_out]) == [f"a{number}" for number in range(limit or 10)]
    assert trained == sorted(trained)
    for part, found in zip(parts, (trained, held_out), strict=True):
        assert [names(part, start) for start in range(len(found))] == [found[start:] for start in range(len(found))]


def test_a_text_column_of_another_name_is_read_as_text(sources):
    settings = DataSettings(dataset_name=str(sources / "a.jsonl"), dataset_text_field="prompt")
    assert [row.values["text"] for row in open_source(settings)] == [f"a{number}" for number in range(10)]
    assert open_source(settings).identity != open_source(DataSettings(dataset_name=settings.dataset_name)).identity


@pytest.mark.parametrize(
    ("row", "text", "problem"),
    [
        ({"body": "right", "text": "wrong"}, "right", None),
        ({"text": "wrong", "body": "right"}, "right", None),
        ({"text": "wrong"}, "wrong", "has no column 'body' (--dataset_text_field); its columns are 'text'."),
        ({"prompt": "x"}, None, "has no column 'body' (--dataset_text_field); its columns are 'prompt'."),
    ],
    ids=["before", "behind", "absent", "another format"],
)
def test_the_column_that_is_named_is_the_text(tmp_path, row, text, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (found,) = open_source(DataSettings(dataset_name=str(path), dataset_text_field="body"))
    assert (found.values.get("text"), found.problem) == (text, problem)


def test_evaluation_data_has_the_configuration_and_split_of_what_has_any(sources):
    asked = {"dataset_name": "openai/gsm8k", "dataset_config": "main", "dataset_test_split": "test", "max_length": 7}
    trained = data_to_train(asked)
    assert (trained.dataset_config, trained.dataset_split, trained.max_length) == ("main", "train", 7)
    evaluated = data_to_evaluate(asked, "openai/gsm8k")
    assert (evaluated.dataset_config, evaluated.dataset_split, evaluated.max_length) == ("main", "test", 7)
    of_a_file = data_to_evaluate(asked, str(sources / "b.jsonl"))
    assert names(of_a_file) == ["b0", "b1", "b2", "b3"]
    assert of_a_file.max_length == 7
