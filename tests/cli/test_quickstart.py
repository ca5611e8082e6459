"""`profit quickstart`, shortened: the same path with fewer problems."""

import json

import pytest

from profit_sft import quickstart
from profit_sft.cli.app import run_app
from profit_sft.scores.store import load_scores


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore:collapse:UserWarning")
def test_quickstart_trains_measures_and_says_where_things_lie(smollm2_folder, tmp_path, capsys, monkeypatch):
    whole = quickstart.run_quickstart
    monkeypatch.setattr(quickstart, "BATCH_SIZE", 4)
    monkeypatch.setattr(
        quickstart, "run_quickstart", lambda *args, **kwargs: whole(*args, **kwargs, train_rows=12, held_out_rows=4)
    )
    output_dir = tmp_path / "quickstart"
    assert run_app(["quickstart", "--output_dir", str(output_dir)]) == 0
    out = capsys.readouterr().out
    figures = json.loads((output_dir / "quickstart.json").read_text())
    before, plain, after = figures["before"], figures["plain_sft"], figures["after"]
    assert before["kept_share_core"] > before["kept_share_style"] + 0.3
    assert plain["nll"] < before["nll"] - 0.1
    assert abs(after["nll"] - plain["nll"]) > 0.1  # not the same run twice
    for standing in (before, plain, after):
        assert len(standing["answers"]) == len(standing["right"]) == len(figures["questions"]) == 4
        assert standing["accuracy"] == sum(standing["right"]) / 4
        assert f"{standing['nll']:.2f}" in out
    assert "kept of style tokens" in out
    assert "profit less plain SFT" in out
    asked = next(index for index, question in enumerate(figures["questions"]) if question[:20] in out)
    assert str(figures["expected"][asked]) in out
    assert "What next:" in out
    for name in ("nll", "profit"):
        assert (output_dir / name / "model.safetensors").is_file()
    assert figures["page"] == str(output_dir / "mask.html")
    assert "What the mask hides in test.jsonl" in (output_dir / "mask.html").read_text()
    assert figures["comparison"] == str(output_dir / "comparison.html")
    assert "2 runs side by side" in (output_dir / "comparison.html").read_text()
    assert load_scores(output_dir / "scores" / "before").manifest.mean_nll == pytest.approx(before["nll"], rel=1e-4)
    assert load_scores(output_dir / "scores" / "after").manifest.mean_nll == pytest.approx(after["nll"], rel=1e-4)
    assert (output_dir / "data" / "train.jsonl").read_text().count("\n") == 12
    assert run_app(["quickstart", "--output_dir", str(output_dir)]) == 2
    assert run_app(["quickstart", "--output_dir", str(output_dir / "x"), "--threshold", "7"]) == 2
    assert "threshold must be a probability" in capsys.readouterr().err
    assert not (output_dir / "x").exists()
