"""The map: its pictures and table are those of its committed figures, and say what these say; rows made up for it."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from color_vision import SIGHTS, difference
from profit_sft.mask.reach import AGREED, CHECKED, LARGEST_MISS, MISS_OF_THREE, REGIONS

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "results" / "data"
spec = importlib.util.spec_from_file_location("map_figures", ROOT / "benchmarks" / "map" / "figures.py")
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)


def made_row(objective, *, wrong_share=0.5, start="strong", measure="greedy_old", new_skill=True, **compared):
    return {
        "start": start,
        "wording": "alien",
        "wrong_share": wrong_share,
        "new_skill": new_skill,
        "measure": measure,
        "objective": objective,
        "rate": 1e-5,
        "start_right": {"weak": 0.1, "strong": 0.95}[start],
        "share_right": 0.75,
        "kept_share": 0.4,
        **compared,
    }


def compared(points, p_value, **where):
    return made_row(
        "dft", difference=points / 100, low=points / 100 - 0.02, high=points / 100 + 0.02, p_value=p_value, **where
    )


def rows_of(tmp_path, rows):
    (tmp_path / "map.json").write_text(json.dumps({"rows": rows}))
    return figures.read_figures(tmp_path / "map.json")["rows"]


def words_of(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_committed_pictures_and_tables_are_those_of_the_committed_figures():
    for file, text in figures.files_of(DATA).items():
        assert file.read_text() == text, "python benchmarks/map/figures.py docs/results/data"


def test_a_picture_has_each_difference_in_its_cell_and_a_frame_where_it_is_shown(tmp_path):
    rows = [made_row("nll"), compared(12, 0.001), compared(-4, 0.2, wrong_share=0.0), made_row("nll", start="weak")]
    svg = figures.picture(rows_of(tmp_path, rows), ("greedy_old",), None)
    words = words_of(svg)
    assert [words.count(word) for word in ("75%", "+12", "+10 to +14", "-4", "-6 to -2")] == [2, 1, 1, 1, 1]
    assert words.count("·") == 2 * 2 * 2 - len(
        rows
    )  # two objectives, starts and kinds of reference: the rest is not run
    groups = {tuple(child.get("class") for child in group) for group in ElementTree.fromstring(svg) if len(group) == 3}
    assert groups == {
        ("cell shown", "number middle shown", "interval middle"),
        ("cell", "number middle", "interval middle"),
    }
    places = [words.index(word) for word in ("50% wrong", "0% wrong")]
    assert places == sorted(places)  # wrong references are up


def test_the_report_takes_the_rate_that_was_run_with_more_seeds_and_leaves_out_what_is_not_finished(tmp_path):
    """Two rates are as good on validation, and `0.0003` stands before `1e-05` among the files: the smaller ran on."""
    right = {"nll": "0011", "dft": "0111", "eaft": "1111"}
    for name, digits in right.items():
        for rate in RATES:
            write_cell(
                tmp_path, name, rate, 0, digits if rate == 1e-5 else None, validation=float(rate in (1e-5, 3e-4))
            )
        for seed in (1,) if name == "eaft" else (1, 2):
            write_cell(tmp_path, name, 1e-5, seed, digits)
    write_start(tmp_path)
    found = report_of(tmp_path)
    rows = {row["objective"]: row for row in found["rows"] if row["measure"] == "greedy_old"}
    assert {name: (row["rate"], row["share_right"], row["start_right"]) for name, row in rows.items()} == {
        "nll": (1e-5, 0.5, 0.25),
        "dft": (1e-5, 0.75, 0.25),
    }
    assert rows["dft"]["difference"] == 0.25
    assert [row["rate"] for row in found["tries"] if row["objective"] == "dft"] == list(RATES)
    assert {row["objective"] for row in found["tries"]} == {"nll", "dft"}
    assert [(row["start_right"], row["out_of_reach"], row["nll"]) for row in found["profiles"]] == [(0.25, 0.75, 0.7)]
    assert [row["share_right"] for row in found["rows"] if row["measure"] == "greedy_taught"] == [0.75, 0.5]


@pytest.mark.parametrize(("choosing", "rate", "validated"), [(1, 3e-4, 1.0), (3, 1e-4, 2 / 3)])
def test_the_seeds_that_choose_are_as_many_as_said(tmp_path, choosing, rate, validated):
    """The first seed would choose 3e-4, which the others do badly at. Of dft a try is missing, of eaft a run."""
    scores = {3e-4: (1.0, 0.0, 0.25), 1e-4: (0.5, 0.75, 0.75)}
    for name, one, seed in itertools.product(("nll", "dft", "eaft"), RATES, range(3)):
        digits = {3e-4: "0001", 1e-4: None if (name, seed) == ("eaft", 2) else "0111"}.get(one)
        missing = (name, one, seed) == ("dft", 1e-3, 2)
        write_cell(
            tmp_path, name, one, seed, digits, **{} if missing else {"validation": scores.get(one, [0.25] * 3)[seed]}
        )
    write_start(tmp_path)
    found = report_of(tmp_path, "--choosing", str(choosing))
    rows = [row for row in found["rows"] if row["measure"] == "greedy_old"]
    assert {row["objective"] for row in rows} == ({"nll"} if choosing == 3 else {"nll", "dft", "eaft"})
    assert {row["rate"] for row in rows} == {rate}
    assert {row["validation"] for row in found["tries"] if row["rate"] == rate} == {validated}


RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def write_cell(folder, objective, rate, seed, digits, **validated):
    """Write a cell: measured where there are digits, and validated where that is said."""
    cell = {"start": "weak", "wording": "own", "wrong_share": 0.0, "new_skill": True, "kept_share": 1.0, "rows": 512}
    cell |= {"seeds": [0, 1, 2], "objective": objective, "rate": rate, "seed": seed, **validated}
    if validated:
        cell["validation_old"] = 0.5
    if digits:
        cell |= {f"greedy_{skill}": digits for skill in ("old", "new", "longer")} | {"sampled_old": [0.5, 0.25]}
    file = folder / "cells" / "weak own 0 new 512" / f"{objective} {rate:g} {seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(cell))


def write_start(tmp_path):
    start = {**dict.fromkeys(("greedy_old", "greedy_new", "greedy_longer"), "0001"), "sampled_old": [0.5, 0.0]}
    for folder, name, content in (
        ("starts", "weak", {"own": start, "out_of_reach": {"old": 0.5, "new": 1.0}}),
        ("profiles", "weak own 0 new 512", {"nll": 0.7}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.json").write_text(json.dumps(content))


def report_of(folder, *options):
    command = [sys.executable, str(ROOT / "benchmarks" / "map" / "report.py"), str(folder), *options]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    return json.loads((folder / "map.json").read_text())


CHOICES = """
import json, sys
from pathlib import Path
import run
condition = run.Condition("weak", "own", 0.0, True)
right = {(1e-5, 0): 0.9, (3e-4, 1): 0.8, (3e-4, 2): 0.8}
trained = []
run.load_start = lambda out, name: None
run.training_rows = lambda seed, **data: None
run.fine_tune = lambda start, rows, *objective, rate, seed: (trained.append((rate, seed)) or (rate, seed), 1.0)
run.validate = lambda model, skills: {"validation": right.get(model, 0.1)}
run.measure = lambda model, wording: {"greedy_old": "01", "of": model}
for choosing in (1, 1, 3, 3):
    trained.clear()
    runs = run.run_objective(Path(sys.argv[1]), condition, "nll", ("nll", {}), choosing)
    assert all((one["rate"], one["seed"]) == tuple(one["of"]) for one in runs)
    print(json.dumps([runs[0]["rate"], len(runs), len(trained)]))
"""


def test_the_seeds_that_choose_run_at_all_rates_once(tmp_path):
    """One seed chooses 1e-5, the mean of three 3e-4; its runs of seeds 1 and 2 are there but for a validation score."""
    run = run_there(CHOICES, str(tmp_path))
    assert run.returncode == 0, run.stderr
    first, again, of_three, of_three_again = map(json.loads, run.stdout.splitlines())
    assert first == [1e-5, 3, 7]  # five rates, and two more seeds
    assert again == [1e-5, 3, 0]
    assert of_three == [3e-4, 3, 11]  # ten, and the first seed's at 3e-4 again, which was not measured
    assert of_three_again == [3e-4, 3, 0]


ANSWERS = """
from random import Random
import torch
from train import answers, draw_problems, new_learner
learner = new_learner()
with torch.no_grad():
    learner.model.model.embed_tokens.weight[learner.coder.eos] *= 3  # so that answers end, each in its own place
problems = draw_problems(Random(0), "old", 24)
for problem, (_, length) in zip(problems, answers(learner, problems, temperature=0.0), strict=True):
    ids, _ = learner.coder.encode(problem.prompt)
    made = learner.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=180)
    print(len(learner.coder.answer_of(made[0, len(ids) :].tolist())), length)
"""


def test_published_cells_are_taken_up_where_the_start_is_the_same(tmp_path):
    condition = {"start": "weak", "wording": "own", "wrong_share": 0.0, "new_skill": True, "rows": 512}
    cell = {**condition, "seeds": [0, 1, 2], "objective": "nll", "rate": 1e-5, "seed": 0, "validation": 0.5}
    of_another = cell | {"wording": "alien"}
    published = tmp_path / "map-cells.json"
    published.write_text(json.dumps({"starts": {"weak": {"own": 1}, "good": {"own": 2}}, "cells": [cell, of_another]}))
    (tmp_path / "starts").mkdir()
    code = """
import sys
from pathlib import Path
from run import Condition, take_up
take_up(*map(Path, sys.argv[1:]), {Condition("weak", "own", 0.0, True)})
"""
    for start, refused in (({"own": 3}, True), ({"own": 1}, False)):
        (tmp_path / "starts" / "weak.json").write_text(json.dumps(start))
        run = run_there(code, str(tmp_path), str(published))
        assert ("its start 'weak' answers otherwise" in run.stderr) == refused
        assert (tmp_path / "cells").exists() != refused
    (file,) = (tmp_path / "cells").glob("*/*.json")
    assert (file.parent.name, file.stem) == ("weak own 0 new 512", "nll 1e-05 0")
    assert json.loads(file.read_text()) == cell


def run_there(code, *arguments):
    folder = ROOT / "benchmarks" / "map"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", folder)))}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


def test_answers_are_those_of_generate_though_rows_that_have_ended_leave_the_batch():
    run = run_there(ANSWERS)
    lengths = [line.split() for line in run.stdout.splitlines()]
    assert [own for _, own in lengths] == [generated for generated, _ in lengths]
    assert len({own for _, own in lengths}) > 10


PUBLISHED = """
import sys
from pathlib import Path
from random import Random
import torch
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.models.pretrained import load_model, load_tokenizer
from publish import publish_references, publish_start
from task import CHARACTERS, draw_problems
from train import new_learner, training_rows
learner, folder = new_learner(), Path(sys.argv[1])
with torch.no_grad():
    learner.model.model.embed_tokens.weight[learner.coder.eos] *= 3  # so that answers end
publish_start(learner, folder / "start")
model, tokenizer = load_model(str(folder / "start")), load_tokenizer(str(folder / "start"))
assert tokenizer("".join(CHARACTERS))["input_ids"] == learner.coder.encode("".join(CHARACTERS))[0]
for problem in draw_problems(Random(0), "old", 24):
    ids, _ = learner.coder.encode(problem.prompt)
    encoded = tokenizer(problem.prompt, return_tensors="pt")
    assert encoded["input_ids"].tolist() == [ids]
    said = learner.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)[0, len(ids):]
    made = model.generate(**encoded, do_sample=False, max_new_tokens=40)[0, len(ids):]
    print(repr(learner.coder.answer_of(said.tolist())))
    print(repr(tokenizer.decode(made, skip_special_tokens=True)))
references = training_rows(0, wording="alien", wrong_share=0.5, new_skill=True, rows=16)
publish_references(references, folder / "references.jsonl")
rows = prepare_dataset(DataSettings(dataset_name=str(folder / "references.jsonl")), tokenizer, False).dataset
batch = learner.coder.batch_of(references)
for index, row in enumerate(rows):
    size = len(row["input_ids"])
    assert batch["attention_mask"][index].sum() == size
    for name in ("input_ids", "labels"):
        assert list(row[name]) == batch[name][index, :size].tolist(), name
with torch.no_grad():
    print(float(learner(**batch).loss), float(model(**batch).loss))
"""


def test_a_published_start_reads_trains_and_answers_as_the_learner_does(tmp_path):
    run = run_there(PUBLISHED, str(tmp_path))
    assert run.returncode == 0, run.stderr
    *answers, losses = run.stdout.splitlines()
    assert answers[::2] == answers[1::2]
    assert len({len(answer) for answer in answers}) > 5
    own, published = map(float, losses.split())
    assert published == pytest.approx(own, rel=1e-6)


def test_the_task_files_ask_the_problems_that_the_map_measures():
    code = """
import yaml
from pathlib import Path
from random import Random
from train import TEST_SEED, VALIDATION_SEED, draw_problems, new_learner
from task import task_data
sizes = new_learner().sizes
for suffix, seed, counts in (
    ("", TEST_SEED, {skill: sizes.tested[skill] for skill in ("old", "new")}),
    ("_validation", VALIDATION_SEED, dict.fromkeys(("old", "new"), sizes.validated)),
):
    random = Random(seed)
    for skill, count in counts.items():
        file = Path(task_data.__code__.co_filename).with_name(f"{skill}{suffix}.yaml")
        asked = task_data(**yaml.safe_load(file.read_text())["metadata"])["test"]
        problems = draw_problems(random, skill, count)
        assert asked["prompt"] == [problem.prompt for problem in problems], file
        assert asked["answer"] == [str(problem.answer) for problem in problems], file
        print(len(asked))
"""
    run = run_there(code)
    assert run.stdout.split() == ["400", "200", "200", "200"], run.stderr


def test_p_values_are_corrected_over_all_of_a_measure(tmp_path):
    both = [compared(12, 0.03), compared(9, 0.01, wrong_share=0.0), compared(3, 0.04, measure="greedy_new")]
    assert [row["adjusted_p_value"] for row in rows_of(tmp_path, both)] == [0.03, 0.02, 0.04]
    rows = rows_of(tmp_path, [compared(12, 0.03), compared(9, 0.03, wrong_share=0.0)])
    assert [figures.is_shown(row) for row in rows] == [False, False]


def test_where_nothing_was_new_the_new_skill_is_not_compared(tmp_path):
    rows = rows_of(tmp_path, [compared(12, 0.03), compared(0, 1.0, measure="greedy_new", new_skill=False)])
    assert [row["measure"] for row in rows] == ["greedy_old"]


@pytest.mark.parametrize("theme", figures.THEMES)
def test_colors_can_be_read_and_told_apart_by_all(theme):
    colors = figures.THEMES[theme]
    for fill in (*colors["ahead"], *colors["behind"]):
        assert figures.contrast(figures.text_color(fill), fill) >= 4.5
    for text, fill in itertools.product(("ink", "pale"), ("paper", "same")):
        assert figures.contrast(colors[text], colors[fill]) >= 4.5
    for sight in SIGHTS:
        for ahead, behind in zip(colors["ahead"], colors["behind"], strict=True):
            assert difference(channels(ahead), channels(behind), sight) > 12  # 2.3 is just noticeable


def channels(color):
    return tuple(bytes.fromhex(color[1:]))


def test_the_figures_of_the_rule_are_those_of_the_map():
    assert figures.regions(figures.read_figures(DATA / "map.json")) == REGIONS


def test_the_rule_is_judged_on_conditions_that_did_not_make_it():
    checked = figures.read_figures(DATA / "map-check.json")
    made = {
        (*figures.condition(row), row["rows"], *row["seeds"]) for row in figures.read_figures(DATA / "map.json")["rows"]
    }
    assert made.isdisjoint((*figures.condition(row), row["rows"], *row["seeds"]) for row in checked["rows"])
    of_other_starts = figures.read_figures(DATA / "map-other-starts.json")
    assert figures.hits(checked, of_other_starts) == (CHECKED, AGREED, LARGEST_MISS)
    missed = [
        figures.condition(row)
        for _, row in figures._by_region(of_other_starts)
        if (row["objective"], round(100 * row["difference"], 1)) == (figures.MASK, -LARGEST_MISS)
    ]
    of_three = [
        -100 * row["difference"]
        for _, row in figures._by_region(figures.read_figures(DATA / "map-three-seeds.json"))
        if (figures.condition(row), row["objective"]) == (missed[0], figures.MASK)
    ]
    assert (len(missed), of_three) == (1, [pytest.approx(MISS_OF_THREE, abs=0.05)])
