"""The loss benchmark on inputs so small that their times say nothing: what is compared, what is told, what is drawn."""

import itertools
import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import growth
import loss as benchmark
from forks import run_script
from losses import VARIANTS, Variant

GPU = Path(benchmark.__file__).with_name("gpu.py")
SMALL = ("--planted", "96,32,600", "--rounds", "2", "--thresholds", "0.5")
HEADER = f"| {' | '.join(benchmark.COLUMNS)} |"


def rows_of(results):
    return {row["variant"]: row for result in results for row in result["rows"]}


def test_every_variant_has_figures_or_is_named_with_the_reason(capsys):
    results = benchmark.measure(benchmark.parse([*SMALL, "--no_memory"]))
    rows, printed = rows_of(results), capsys.readouterr().out.splitlines()
    assert HEADER in printed
    for name, variant in VARIANTS.items():
        row = rows[name]
        if "not_run" in row:
            assert f"- not run: {name} ({row['not_run']})" in printed
            absent = row["not_run"].endswith(f"is not installed: pip install {variant.package}")
            assert absent or (variant.needs_cuda and row["not_run"] == "needs a CUDA device")
            continue
        assert any(line.startswith(f"| {name} |") for line in printed)
        assert row["median_ms"] > 0
        assert max(row[f"rel_err_{what}"] for what in ("loss", "dH", "dW")) <= variant.bounds[0]
        assert (0.2 < row["kept_share"] < 0.9) if variant.kind == "mask" else row["kept_share"] == 1
    assert {"trl fused head", "official formula, full logits", "ours, nll", "ours, dft"} <= {
        name for name, row in rows.items() if "median_ms" in row
    }
    assert benchmark.failures(results) == []


def test_what_has_no_threshold_is_measured_once():
    names = ("ours exact", "ours, nll", "ours, dft")
    arguments = [*SMALL[:-1], "0.5", "0.1", "--no_memory", "--only", *names]
    first, second = benchmark.measure(benchmark.parse(arguments))
    assert [row["variant"] for row in first["rows"]] == [*names, benchmark.UNIT]
    assert [row["variant"] for row in second["rows"]] == ["ours exact", benchmark.UNIT]
    assert first["rows"][0]["kept_share"] < second["rows"][0]["kept_share"]


def twice(hidden, weight, labels, threshold):
    return 2 * VARIANTS["ours, nll"].function(hidden, weight, labels, threshold)


def another_gradient(hidden, weight, labels, threshold):
    """The right loss, and a gradient of the head's that is off by a tenth."""
    right = VARIANTS["ours, nll"].function(hidden, weight, labels, threshold)
    return right + 0.1 * (right - VARIANTS["ours, nll"].function(hidden, weight.detach(), labels, threshold))


def without_numbers(hidden, weight, labels, threshold):
    """The right loss, and no numbers in the head's gradient."""
    copied = weight.clone()
    copied.register_hook(lambda gradient: gradient * math.nan)
    return VARIANTS["ours, nll"].function(hidden, copied, labels, threshold)


def raises(hidden, weight, labels, threshold):
    raise RuntimeError("no such kernel\nand more")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (twice, "rel_err_.* is 1.0e[+]00, above 0.01"),
        (another_gradient, "rel_err_dW is 1.0e-01, above 0.01"),
        (without_numbers, "rel_err_dW is nan, above 0.01"),
        (raises, "RuntimeError: no such kernel"),
    ],
)
@pytest.mark.parametrize("package", [None, "another"])
def test_a_wrong_loss_is_named_without_figures(monkeypatch, capsys, function, reason, package):
    wrong = Variant(function=function, kind="nll", bounds=(1e-2, 1e-2), package=package)
    monkeypatch.setitem(VARIANTS, "wrong", wrong)
    results = benchmark.measure(benchmark.parse([*SMALL, "--no_memory", "--only", "wrong", "ours, nll"]))
    row = rows_of(results)["wrong"]
    assert re.fullmatch(reason, row["not_run"])
    assert "median_ms" not in row
    assert "median_ms" in rows_of(results)["ours, nll"]
    assert f"- not run: wrong ({row['not_run']})" in capsys.readouterr().out
    # A peer that is off is told of; of ours it is a failure of the run.
    assert benchmark.failures(results) == ([] if package else [f"wrong: {row['not_run']}"])


def measured(tokens, vocab_size, **figures):
    rows = [
        {"variant": name, "kept_share": 0.5, "median_ms": 1000 * seconds, "peak_memory_mib": 1024 * gib}
        for name, (seconds, gib) in figures.items()
    ]
    rows.append({"variant": benchmark.UNIT, "median_ms": 1e5})
    return {"tokens": tokens, "vocab_size": vocab_size, "width": 8, "rows": rows}


def test_what_would_take_too_long_or_too_much_is_left_out_by_its_last_figures():
    before = [
        measured(100, 1000, slow=(100, 0), large=(0, 1), small=(1, 0.1)),
        measured(200, 1000, slow=(20, 0), large=(0, 2), small=(2, 0.2)),
    ]
    found = growth.too_large({"tokens": 800, "vocab_size": 1000}, before, 60, 6)
    assert found == {
        "slow": "about 80 s and 0 GiB, by its figures at the size before",
        "large": "about 0 s and 8 GiB, by its figures at the size before",
    }
    assert growth.too_large({"tokens": 100, "vocab_size": 4000}, before, 60, 6) == {}
    assert growth.too_large({"tokens": 800, "vocab_size": 1000}, [], 60, 6) == {}


def test_a_variant_that_is_left_out_is_named_and_is_no_failure(capsys):
    names = ("ours exact", "ours, nll")
    arguments = ["--planted", "64,16,300", "256,16,300", "--rounds", "2", "--thresholds", "0.5", "--no_memory"]
    results = benchmark.measure(benchmark.parse([*arguments, "--limit_s", "0", "--only", *names]))
    assert all("median_ms" in row for row in results[0]["rows"])
    printed = capsys.readouterr().out
    for name, row in zip(names, results[1]["rows"], strict=False):
        assert "median_ms" not in row
        assert f"- left out: {name} ({row['left_out']})" in printed
    assert benchmark.failures(results) == []


@pytest.mark.parametrize("parts", [1, 3])
def test_the_unit_is_one_product_of_all_tokens(monkeypatch, parts):
    hidden, weight = torch.randn(7, 4), torch.randn(5, 4)
    shapes = []
    monkeypatch.setattr(benchmark, "LARGEST_PRODUCT", 5 * 4 * (7 if parts == 1 else 3))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: shapes.append((left.shape, right.shape)))
    benchmark.dense_product(hidden, weight)
    assert len(shapes) == parts
    assert sum(left[0] for left, _ in shapes) == 7
    assert {right for _, right in shapes} == {(4, 5)}


def growing():
    sizes = [(1000, 100), (4000, 100), (16_000, 100), (1000, 400)]
    found = []
    for tokens, vocab_size in sizes:
        seconds = tokens * vocab_size / 1e5
        figures = {"ours exact": (seconds, 0.5)}
        if tokens < 16_000:
            figures["trl fused head"] = (8 * seconds, seconds)
        found.append(measured(tokens, vocab_size, **figures))
    return found


def test_growth_in_tokens_and_in_vocabulary_are_told_apart():
    results = growing()
    tokens = [result for result in results if result["vocab_size"] == 100]
    assert growth.series(tokens, "tokens", "median_ms") == {
        "ours exact": [(1000, 1.0), (4000, 4.0), (16_000, 16.0)],
        "trl fused head": [(1000, 8.0), (4000, 32.0)],
    }
    assert growth.series(tokens, "tokens", "peak_memory_mib")["ours exact"] == [
        (1000, 0.5),
        (4000, 0.5),
        (16_000, 0.5),
    ]


def test_the_picture_has_axes_units_and_a_name_at_each_line():
    drawn = growth.picture(growing())
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("tokens N, at V = 100, D = 8") == 1
    assert texts.count("vocabulary V, at N = 1,000, D = 8") == 1
    for words in ("tokens N", "vocabulary V", "time, seconds", "peak memory, GiB"):
        assert texts.count(words) == 2, words
    for name in ("ours exact", "trl fused head"):
        assert texts.count(growth.SHOWN[name]) == 4
    assert {"1k", "4k", "16k"} <= set(texts)
    assert "prefers-color-scheme:dark" in drawn
    # Equal factors are equal distances, and what grows in proportion is straight: the first panel's first curve.
    curves = [one.get("d") for one in root.iter("{http://www.w3.org/2000/svg}path") if one.get("class") == "curve"]
    whole = next(curve for curve in curves if curve.count("L") == 2)
    (x1, y1), (x2, y2), (x3, y3) = [tuple(map(float, point.split())) for point in whole[1:].split("L")]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.11)
    assert x1 < x2
    assert y1 > y2


def test_names_at_the_lines_do_not_cover_each_other():
    results = [
        measured(tokens, vocab_size, **dict.fromkeys(growth.SHOWN, (1.0, 1.0)))
        for tokens, vocab_size in [(1000, 100), (4000, 100), (1000, 400)]
    ]
    root = ElementTree.fromstring(growth.picture(results))
    labels = [one for one in root.iter("{http://www.w3.org/2000/svg}text") if one.get("class") == "name"]
    assert len(labels) == 4 * len(growth.SHOWN)
    for start in range(0, len(labels), len(growth.SHOWN)):
        heights = sorted(float(label.get("y")) for label in labels[start : start + len(growth.SHOWN)])
        assert min(b - a for a, b in itertools.pairwise(heights)) >= 12


def test_colors_are_those_of_the_pages(repo_root):
    styles = (repo_root / "src" / "profit_sft" / "pages" / "templates" / "charts.css").read_text()
    assert set(growth.SHOWN) <= set(VARIANTS)
    assert len(growth._COLORS) == len(growth._MARKERS) == len(growth.SHOWN)
    for index, (light, dark) in enumerate(growth._COLORS):
        assert f".look-{index} {{ --look: light-dark({light}, {dark}); }}" in styles


def test_growth_is_measured_written_and_drawn_and_drawn_again(tmp_path, monkeypatch, capsys):
    figures, picture, again = tmp_path / "growth.json", tmp_path / "growth.svg", tmp_path / "again.svg"
    sizes = ("64,16,200", "256,16,200", "64,16,800")
    arguments = ["--growth", "--planted", *sizes, "--rounds", "2", "--thresholds", "0.5", "--no_memory"]
    monkeypatch.setattr(
        sys, "argv", ["loss.py", *arguments, "--only", "ours exact", "--json", str(figures), "--picture", str(picture)]
    )
    benchmark.main()
    assert capsys.readouterr().out.count(HEADER) == 3
    written = json.loads(figures.read_text())
    assert [(one["tokens"], one["width"], one["vocab_size"]) for one in written["results"]] == [
        tuple(map(int, size.split(","))) for size in sizes
    ]
    assert "median_ms" in written["results"][0]["rows"][0]
    monkeypatch.setattr(sys, "argv", ["growth.py", str(figures), str(again)])
    growth.main()
    assert picture.read_text() == again.read_text()
    assert "peak memory, GiB: not measured" in picture.read_text()


def test_without_a_gpu_its_table_is_refused_in_one_line(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, printed = run_script(GPU, "--json", "figures.json", folder=tmp_path)
    assert status == 1
    assert printed.splitlines()[-1].endswith("finds no CUDA device; --device cpu only shows what is printed")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is Linux's")
def test_the_table_of_a_gpu_has_all_its_columns_on_a_cpu_too(tiny_folder, tmp_path):
    file = tmp_path / "figures.json"
    names = ("ours exact", "trl fused head", "liger, dft")
    words = ["--device", "cpu", "--json", str(file)]
    words += ["--planted", "512,32,9000", "--rounds", "2", "--only", *names, "--model_name_or_path", tiny_folder]
    status, printed = run_script(GPU, *words, folder=tmp_path / "printed")
    assert status == 0, printed[-4000:]
    lines = printed.splitlines()
    assert HEADER in lines
    assert "- not run: liger, dft (needs a CUDA device)" in lines
    assert "| variant | median_ms | iqr_ms | speedup over trl nll |" in lines
    figures = json.loads(file.read_text())
    assert figures["environment"]["torch"] == torch.__version__
    assert figures["environment"]["packages"]["trl"] is not None
    (of_loss,) = figures["loss"]
    assert (of_loss["tokens"], of_loss["width"], of_loss["vocab_size"]) == (512, 32, 9000)
    assert of_loss["dtype"] == "bfloat16"
    by_name = rows_of([of_loss])
    for name in names[:2]:
        assert by_name[name].keys() >= set(benchmark.COLUMNS)
        assert by_name[name]["peak_memory_mib"] > 0
    steps = figures["training_step"]
    assert [row["variant"] for row in steps][:2] == ["trl nll", "ours nll"]
    assert all(math.isfinite(row["median_ms"]) and len(row["times_ms"]) == 2 for row in steps)
