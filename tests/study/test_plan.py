"""Study files: what they expand to, and what is said about their mistakes."""

import copy

import pytest
import yaml

from profit_sft.errors import ConfigurationError
from profit_sft.study.flags import check_flags
from profit_sft.study.plan import load_plan, parse_plan

BASE = {
    "model_name_or_path": "embedded",
    "dataset_name": "generated",
    "cells": [{"objective": "nll", "seed": [0, 1]}],
}


_ALLOWED = "'.', '_' and '-', from a letter or digit to one, at most 100 of them, got"
TUNE = {"learning_rate": [1e-5, 1e-4], "evaluate": {"tasks": ["gsm8k"]}}
PATHS = (
    ("../../x", f"{_ALLOWED} '../../x'. Write 'x'"),
    ("/tmp/x", f"{_ALLOWED} '/tmp/x'. Write 'tmp-x'"),
    ("..", f"{_ALLOWED} '..'"),
    ("", f"{_ALLOWED} ''"),
    ("a\x1b[2Jb", f"{_ALLOWED} {chr(39)}a\\x1b[2Jb{chr(39)}. Write 'a-2Jb'"),
    ("x" * 101, f"{_ALLOWED} {'x' * 101!r}. Write {'x' * 100!r}"),
)


def plan_with(**changes):
    content = copy.deepcopy(BASE)
    for key, value in changes.items():
        content[key] = value
    return parse_plan(content)


def slugs(plan):
    return [cell.slug for cell in plan.cells]


def test_entries_with_lists_stand_for_every_combination_and_seeds_run_in_rounds():
    cells = [
        {"objective": ["nll", "dft"], "seed": [0, 1]},
        {"objective": "profit", "threshold": [0.1, 0.3], "mask_source": ["online", "reference"]},
        {"objective": "profit", "direction": "lower", "seed": 7},
        {"objective": "power", "k": [0.5, 2, 1e-6, 1e6]},
    ]
    assert slugs(plan_with(cells=cells)) == [
        "untrained",
        "nll-s0",
        "dft-s0",
        "profit-t0.1-s0",
        "profit-t0.1-reference-s0",
        "profit-t0.3-s0",
        "profit-t0.3-reference-s0",
        "profit-t0.1-lower-s7",
        "power-k0.5-s0",
        "power-k2-s0",
        "power-k1e-06-s0",
        "power-k1e06-s0",
        "nll-s1",
        "dft-s1",
    ]


def test_a_middle_direction_takes_a_pair_of_thresholds():
    plan = plan_with(cells=[*BASE["cells"], {"objective": "profit", "threshold": [[0.1, 0.5]], "direction": "middle"}])
    variant = plan.variants[1]
    assert variant.name == "profit-t0.1-0.5-middle"
    assert variant.make_objective().upper_threshold == 0.5


def test_a_random_mask_waits_for_the_share_it_imitates():
    random = {"objective": "profit", "direction": "random", "kept_share_of": "profit-t0.3"}
    plan = plan_with(
        cells=[
            *BASE["cells"],
            {"objective": "profit", "threshold": 0.3},
            random,
            random | {"kept_share_from": "scores"},
        ]
    )
    assert [variant.name for variant in plan.variants[2:]] == ["random-as-profit-t0.3", "random-as-profit-t0.3-scores"]
    assert plan.variants[2].make_objective(rate=0.25).rate == 0.25
    assert not plan.variants[2].needs_reference


def test_several_models_give_their_names_to_their_cells():
    models = ["org/Big-1", {"model_name_or_path": "org/small", "name": "tiny one", "train": {"bf16": True}}]
    content = copy.deepcopy(BASE) | {"models": models}
    del content["model_name_or_path"]
    plan = parse_plan(content)
    assert slugs(plan)[:2] == ["Big-1.untrained", "Big-1.nll-s0"]
    assert slugs(plan)[-1] == "tiny-one.nll-s1"
    assert plan.models[1].train == {"bf16": True}
    replaced = parse_plan(content, model_name_or_path="embedded")
    assert {model.model_name_or_path for model in replaced.models} == {"embedded"}
    assert slugs(replaced) == slugs(plan)


def test_the_objectives_that_need_a_reference_are_known():
    cells = [*BASE["cells"], {"objective": "profit", "mask_source": ["online", "reference"]}, {"objective": "asft"}]
    assert [variant.needs_reference for variant in plan_with(cells=cells).variants] == [False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": []}, "cell is unknown. Did you mean cells?"),
        ({"dataset_name": None}, "dataset_name is missing, such as train.jsonl or `generated`."),
        ({"name": 3}, "name must be text, got 3."),
        ({"keep_models": "no"}, "keep_models must be true or false, got 'no'."),
        ({"generated": {"rows": 99_999_999}}, "generated.rows must be less than or equal to 50000, got 99999999."),
        ({"generated": {"steps": 4}}, "generated.steps must be less than or equal to 3, got 4."),
        *(
            ({"cells": [{"objective": "nll", "name": name}]}, f"cells[0].name must be letters, digits, {got}.")
            for name, got in PATHS
        ),
        ({"model_name_or_path": None, "models": ["../.."]}, "models[0].name is empty: name at least one."),
        (
            {
                "model_name_or_path": None,
                "models": [{"model_name_or_path": "x", "name": "a.b"}, {"model_name_or_path": "y", "name": "a"}],
                "cells": [{"objective": "nll", "name": "c"}, {"objective": "nll", "name": "b.c"}],
            },
            "two cells would be called 'a.b.c-s0'. Give models or variants other names.",
        ),
        ({"models": ["a"]}, "give one of model_name_or_path and models"),
        ({"model_name_or_path": None, "models": ["a/b", "c/b"]}, "models[1]: another is called 'b', too."),
        ({"model_name_or_path": None, "models": [{"name": "b"}]}, "models[0].model_name_or_path is missing, such as"),
        ({"model_name_or_path": None, "models": [3]}, "models[0] must be a mapping of names to values, got 3."),
        ({"generated": {"rows": 0}}, "generated.rows must be greater than 0, got 0."),
        ({"generated": {"row": 5}}, "generated.row is unknown. Did you mean rows?"),
        ({"train": {"seed": 1}}, "train.seed is set by `cells`. Take it out."),
        ({"cells": []}, "cells is empty: name at least one, such as [{objective: nll, seed: 0}]."),
        ({"cells": [{"objective": "nll"}, "dft"]}, "cells[1] must be a mapping of names to values, got 'dft'."),
        ({"cells": [{"seed": 1}]}, "cells[0].objective is missing, such as nll, dft or profit."),
        ({"cells": [{"objective": "nll", "threshold": 0.1}]}, "cells[0]: objective 'nll' has no field 'threshold'."),
        ({"cells": [{"objective": "profitt"}]}, "cells[0]: no objective is named 'profitt'. Known: nll, profit"),
        ({"cells": [{"objective": "profit", "threshold": 10}]}, "cells[0]: threshold must be a probability in [0, 1]"),
        (
            {"cells": [{"objective": "nll", "seed": -1}]},
            "equal to 0, or a list of them, got -1.",
        ),
        ({"cells": [{"objective": "nll", "seed": "a"}]}, "cells[0].seed must be a whole number, or a list of them"),
        ({"cells": [{"objective": "nll", "seed": [0, "a"]}]}, "cells[0].seed[1] must be a whole number, got 'a'."),
        ({"cells": [{"objective": "nll", "seed": [0, True]}]}, "cells[0].seed[1] must be a whole number, got True."),
        ({"cells": [{"objective": "nll", "seed": []}]}, "cells[0].seed is empty: name at least one."),
        ({"cells": [{"objective": "nll", "seed": [0, 0]}]}, "cells[0]: nll with seed 0 is there twice."),
        (
            {"cells": [{"objective": "nll", "normalize": "some"}]},
            "cells[0].normalize must be 'all' or 'kept', or a",
        ),
        ({"cells": [{"objective": "nll", "train": {"bf16": True}}]}, "so it needs a `name`."),
        ({"cells": [{"objective": ["nll", "dft"], "name": "x"}]}, "stands for 2 variants, so it cannot have a `name`."),
        ({"cells": [{"objective": "nll"}, {"objective": "dft", "name": "nll"}]}, "two different variants are called"),
        ({"cells": [{"objective": "nll"}, {"objective": "nll", "name": "untrained"}]}, "'untrained' is taken by"),
        ({"baseline": "nl"}, "baseline: variant 'nl' is unknown. Did you mean nll?"),
        ({"comparisons": [["nll"]]}, "comparisons[0] must be a pair such as [profit-t0.1, dft], got ['nll']."),
        ({"comparisons": [["nll", "dft"]]}, "comparisons[0][1]: variant 'dft' is unknown. Known: nll, untrained."),
    ],
)
def test_a_mistake_is_named_with_key_and_value(changes, message):
    with pytest.raises(ConfigurationError) as caught:
        plan_with(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"direction": "random", "kept_share_of": "absent"}, "cells[1].kept_share_of: variant 'absent' is unknown."),
        (
            {"direction": "higher", "kept_share_of": "nll"},
            "cells[1].kept_share_of gives the rate of `direction: random`",
        ),
        ({"direction": "random", "kept_share_of": "nll", "rate": 0.5}, "set that direction and no rate."),
        ({"kept_share_from": "scores"}, "cells[1].kept_share_from needs kept_share_of"),
        ({"direction": "random"}, "cells[1]: direction 'random' needs rate, got rate=None."),
        ({"direction": "random", "mask_source": "reference", "rate": 0.5}, "leave mask_source at 'online'"),
    ],
)
def test_a_random_mask_that_cannot_be_is_refused(entry, message):
    with pytest.raises(ConfigurationError) as caught:
        plan_with(cells=[*BASE["cells"], {"objective": "profit", **entry}])
    assert message in str(caught.value)


def test_every_variant_and_model_tries_every_value_with_every_seed():
    models = [{"model_name_or_path": name, "train": {"bf16": True}} for name in ("a", "b")]
    cells = [{"objective": ["nll", "dft"], "seed": [3, 4]}]
    plan = plan_with(
        model_name_or_path=None,
        models=models,
        cells=cells,
        evaluate={"tasks": ["math500"]},
        tune={"learning_rate": [0.0001, 1e-5], "seed": [7, 0], "evaluate": {"tasks": ["gsm8k"]}},
    )
    assert [(cell.slug, cell.seed) for cell in plan.tries[:5]] == [
        ("a.nll-lr1e-05-s7-try", 7),
        ("a.nll-lr1e-05-s0-try", 0),
        ("a.nll-lr0.0001-s7-try", 7),
        ("a.nll-lr0.0001-s0-try", 0),
        ("a.dft-lr1e-05-s7-try", 7),
    ]
    assert len(plan.tries) == 16
    assert plan.train_settings(plan.tries[2]) == {"bf16": True, "learning_rate": 0.0001}
    assert plan.eval_settings(plan.tries[1]) == {"tasks": ["gsm8k"]}
    assert plan.eval_settings(plan.cells[1]) == {"tasks": ["math500"]}
    untrained, first = plan.cells[:2]
    assert plan.tries_of(first) == plan.tries[:4]
    assert plan.tries_of(untrained) == plan.tries_of(plan.tries[0]) == ()
    assert plan_with().runs == plan_with().cells


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "absent"}, "tune must name one flag of profit train with the values to try, such as"),
        ({"weight_decay": [0, 1]}, "tune must name one flag of profit train with the values to try, such as"),
        ({"learning_rate": 1e-5}, "tune.learning_rate must be a list of two values or more to choose from, got 1e-05."),
        ({"learning_rate": [1e-5]}, "tune.learning_rate must be a list of two values or more to choose from, got [1e-"),
        ({"learning_rate": [1e-5, "1e-4"]}, "must hold numbers, got '1e-4'. YAML reads 1e-5 as text; write 1.0e-5."),
        ({"learning_rate": [1e-5, True]}, "tune.learning_rate must hold numbers, got True."),
        ({"learning_rate": [1e-5, float("nan")]}, "tune.learning_rate must hold numbers, got nan."),
        ({"learning_rate": [1e-5, 1e-5]}, "tune.learning_rate holds 1e-05 twice."),
        ({"learning_rate": "absent", "threshold": [0.1, 0.2]}, "tune.threshold is set by `cells`. Take it out."),
        ({"learning_rate": [1e-5, 1.0000001e-5]}, "two cells would be called 'nll-lr1e-05-s0-try'."),
        ({"evaluate": None}, "tune.evaluate is missing"),
        ({"evaluate": {}}, "tune.evaluate is empty"),
        ({"seed": -1}, "tune.seed must be greater than or equal to 0, or a list of them, got -1."),
        ({"seed": [3, -1]}, "tune.seed[1] must be greater than or equal to 0, got -1."),
        ({"seed": [3, 3]}, "tune.seed holds 3 twice."),
        ({"seed": []}, "tune.seed is empty"),
    ],
)
def test_what_cannot_be_tried_is_refused(changes, message):
    with pytest.raises(ConfigurationError) as caught:
        plan_with(tune={key: value for key, value in (TUNE | changes).items() if value != "absent"})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"train": {"learning_rate": 1e-5}}, "train.learning_rate"),
        (
            {"cells": [{"objective": "nll"}, {"objective": "dft", "name": "x", "train": {"learning_rate": 1}}]},
            "cells[1]",
        ),
        (
            {
                "model_name_or_path": None,
                "models": ["a", {"model_name_or_path": "b", "train": {"learning_rate": 1e-5}}],
            },
            "models[1].train.learning_rate",
        ),
    ],
)
def test_what_is_tried_is_not_given_elsewhere_too(changes, place):
    with pytest.raises(ConfigurationError, match="is chosen by `tune`. Take out one of the two.") as caught:
        plan_with(tune=TUNE, **changes)
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"learning_rat": [1, 2]}, r"tune\.learning_rat is unknown\. Did you mean learning_rate\?"),
        ({"bf16": [0, 1]}, r"tune\.bf16 takes no number, so there is nothing to choose from"),
        ({"max_steps": [10, 20.5]}, r"tune\.max_steps must be a whole number, got 20\.5"),
        (
            {"per_device_train_batch_size": [8, 16.0]},
            r"tune\.per_device_train_batch_size must be a whole number, got 16",
        ),
        ({"max_length": [64, 128]}, r"tune\.max_length says which tokens are trained, scored and measured on"),
        (
            {"evaluate": {"tasks": "gsm8k"}},
            r"tune\.evaluate\.tasks must be a list such as \[gsm8k, math500\], got 'gsm8k'",
        ),
        ({"evaluate": {"task": ["gsm8k"]}}, r"tune\.evaluate\.task is unknown\. Did you mean tasks\?"),
        (
            {"evaluate": {"tasks": ["generated"], "limit": 5}},
            r"tune\.evaluate\.tasks: generated asks the problems that ge",
        ),
        (
            {"evaluate": {"tasks": ["math500"]}},
            "math500 asks the problems that math500_paper of `evaluate` asks, so values",
        ),
        ({"evaluate": {"tasks": ["generated"], "data_dir": "."}}, "generated asks the problems that generated of"),
        ({"evaluate": {"tasks": ["math500"], "data_dir": "."}}, None),
    ],
)
def test_what_the_tries_would_be_refused_is_refused_first(tune, message):
    setting = {} if any(key != "evaluate" for key in tune) else {"learning_rate": [1e-5, 1e-4]}
    tune = {"evaluate": {"tasks": ["gsm8k"]}, **setting, **tune}
    plan = plan_with(tune=tune, evaluate={"tasks": ["math500_paper", "generated"]})
    if message is None:
        check_flags(plan)
        return
    with pytest.raises(ConfigurationError, match=message):
        check_flags(plan)


def test_tasks_of_ones_own_are_told_apart_by_name_and_data(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\nmetadata: {{data_files: {{test: x.jsonl}}}}\n")
    own = {"tasks": ["mine"], "task_dir": str(tmp_path)}
    check_flags(plan_with(evaluate=own, tune=TUNE | {"evaluate": own | {"tasks": ["other"]}}))
    check_flags(plan_with(evaluate=own, tune=TUNE | {"evaluate": own | {"data_dir": "."}}))
    with pytest.raises(ConfigurationError, match="mine asks the problems that mine of `evaluate` asks"):
        check_flags(plan_with(evaluate=own, tune=TUNE | {"evaluate": own | {"data_dir": str(tmp_path)}}))
    with pytest.raises(ConfigurationError, match="generated asks the problems that generated of `evaluate` asks"):
        check_flags(
            plan_with(evaluate={"tasks": ["generated"]}, tune=TUNE | {"evaluate": own | {"tasks": ["generated"]}})
        )
    (tmp_path / "mine.yaml").rename(tmp_path / "_data.yaml")
    (tmp_path / "mine.yaml").write_text("include: _data.yaml\ntask: mine\n")
    check_flags(plan_with(evaluate=own, tune=TUNE | {"evaluate": own | {"data_dir": "."}}))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("task: mine\n")
    check_flags(plan_with(evaluate=own, tune=TUNE | {"evaluate": own | {"task_dir": str(tmp_path / "sub")}}))


def test_training_flags_are_those_of_profit_train():
    check_flags(plan_with(train={"learning_rate": 1e-5, "max_length": 64, "lora_r": 8, "skip_bad_rows": True}))
    with pytest.raises(ConfigurationError, match=r"train\.learning_rat is unknown\. Did you mean learning_rate\?"):
        check_flags(plan_with(train={"learning_rat": 1e-5}))
    check_flags(plan_with(train={"learning_rate": "1e-5"}))  # as YAML reads 1e-5; `profit train` takes it for a number


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"learning_rate": "fast"}}, r"train\.learning_rate must be a number, got 'fast'"),
        (
            {"train": {"model_revision": "v2"}},
            r"train\.model_revision 'v2' would be trained alone: .* Download that rev",
        ),
        ({"heldout_dataset_name": "absent.jsonl"}, r"heldout_dataset_name: 'absent\.jsonl' does not exist"),
        ({"evaluate": {"task": ["gsm8k"]}}, r"evaluate\.task is unknown\. Did you mean tasks\?"),
        ({"evaluate": {"tasks": "gsm8k"}}, r"evaluate\.tasks must be a list such as \[gsm8k, math500\], got 'gsm8k'"),
        ({"evaluate": {"tasks": ["gsm8k"], "output_dir": "x"}}, r"evaluate\.output_dir is set by the study itself"),
        ({"evaluate": {"tasks": ["gsm8k"], "limit": "x"}}, r"evaluate: limit must be a whole number, got 'x'"),
        ({"evaluate": {"tasks": ["gsm8k"], "top_p": True}}, r"evaluate: top_p must be a number, got True"),
        ({"evaluate": {"tasks": ["gsm8k"], "data_dir": "absent"}}, r"evaluate\.data_dir: there is no folder 'absent'"),
    ],
)
def test_what_training_or_evaluation_would_refuse_is_refused_first(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        check_flags(plan_with(**changes))


WRITTEN = """\
model_name_or_path: embedded
dataset_name: generated
train: &shared
  learning_rate: 1.0e-5
  max_length: 64
cells:
  - {objective: nll, seed: [0, 1]}
  - objective: dft
    name: short
    train:
      <<: *shared
      max_length: 32
comparisons:
  - [nll,
     short]
"""


@pytest.mark.parametrize(
    ("written", "instead", "messages"),
    [
        ("dataset_name: generated\n", "", ["some.yaml: dataset_name is missing"]),
        ("dataset_name", "datasetname", ["line 2: datasetname is unknown. Did you mean dataset_name?"]),
        (
            "max_length: 64",
            "seed: 3",
            ["line 5: train.seed is set by `cells`.", "line 5: cells[1].train.seed is set"],
        ),
        ("max_length: 32", "seed: 3", ["line 12: cells[1].train.seed is set by `cells`. Take it out."]),
        ("[0, 1]", "[0, -1]", ["line 7: cells[0].seed[1] must be greater than or equal to 0, got -1."]),
        ("nll, seed", "nll, k: 1, seed", ["line 7: cells[0]: objective 'nll' has no field 'k'."]),
        ("objective: dft\n    name", "name", ["line 8: cells[1].objective is missing, such as nll, dft or profit."]),
        ("short]", "long]", ["line 15: comparisons[0][1]: variant 'long' is unknown."]),
        ("max_length: 32", "max_lengt: 32", ["line 12: cells[1].train.max_lengt is unknown. Did you mean max_length?"]),
        ("1.0e-5", "fast", ["line 4: train.learning_rate must be a number, got 'fast'."]),
        (
            "seed: [0, 1]",
            "normalize: no",
            ["line 7: cells[0].normalize must be 'all' or 'kept', or a list of them"],
        ),
        ("embedded\ndataset_name:", "3\nquestion:", ["line 1: model_name", "some.yaml: dataset_name is", "line 2: q"]),
    ],
)
def test_every_mistake_of_a_file_is_named_with_its_line(tmp_path, written, instead, messages):
    path = tmp_path / "some.yaml"
    path.write_text(WRITTEN)
    check_flags(load_plan(path))
    path.write_text(WRITTEN.replace(written, instead).replace("question: generated", "question: [what]"))
    with pytest.raises(ConfigurationError) as caught:
        check_flags(load_plan(path))
    lines = sorted(str(caught.value).splitlines())
    for line, message in zip(lines, sorted(messages), strict=True):
        assert line.startswith(str(path))
        assert message in line


def test_the_file_is_named_in_every_message(tmp_path):
    path = tmp_path / "some.yaml"
    with pytest.raises(ConfigurationError, match=r"some\.yaml' cannot be read"):
        load_plan(path)
    path.write_text("cells: [")
    with pytest.raises(ConfigurationError, match=r"some\.yaml', line 1: not YAML"):
        load_plan(path)
    path.write_text("- a list")
    with pytest.raises(ConfigurationError, match=r"some\.yaml' must be a mapping"):
        load_plan(path)
    path.write_text(yaml.safe_dump(BASE | {"baseline": "x"}))
    with pytest.raises(ConfigurationError, match=r"some\.yaml, line 1: baseline: variant 'x' is unknown"):
        load_plan(path)
    path.write_text(yaml.safe_dump(BASE))
    assert load_plan(path).name == "some"
    assert load_plan(path, dataset_name="other.jsonl").dataset_name == "other.jsonl"
