"""A run's folder as a training leaves it, made of numbers."""

import json

HOSTILE = '<script>alert(1)</script> "q" \' </script> {{ 7*7 }} [bold]x[/] \x1b[31m & <img src=x onerror=alert(2)>'


def made_run(folder, *, steps=40, ended=True, offset=0.0, warning=None, facts=None, logs=()):
    folder.mkdir(parents=True)
    facts = {
        "model": "some/model, bfloat16",
        "objective": "ProFit(threshold=0.1)",
        "data": "train.jsonl",
        **(facts or {}),
    }
    about = {
        "started": 1000.0,
        "start_step": 0,
        "max_steps": steps,
        "facts": facts,
        "command": ["profit", "train", "a b"],
    }
    (folder / "run.json").write_text(json.dumps(about))
    lines = [{"step": 0, "probe_nll": 2.0 + offset, "probe_loss": 1.0}]
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "loss": 2.0 / step + offset,
                "nll": 2.5 - step / 50 + offset,
                "kept_share": 0.6,
                "mean_p_kept": 0.5,
                "mean_p_masked": 0.05,
                "mean_token_accuracy": 0.4 + step / 200,
                "grad_norm": 1.0,
                "learning_rate": 1e-5,
                "tokens_per_second": 1234.0,
                "memory_gib": 2.0,
                "entropy": 1.5,
                "epoch": step / steps,
            }
        )
        if step % 10 == 0:
            lines[-1] |= {"probe_nll": 2.0 - step / 100 + offset, "probe_loss": 0.5, "probe_rise_se": 0.01}
    if warning is not None:
        lines.insert(11, {"step": 10, "warning": warning})
    lines += logs
    if ended:
        lines.append({"step": steps, "train_runtime": 75.0, "train_loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "checkpoint-20").mkdir()
    (folder / "checkpoint-best").mkdir()
    return folder


def made_rows(text="four"):
    sides = {"p": [None, None, 0.25, 0.01], "w": [0, 0, 1, 0], "nll": 3.0}
    later = {"p": [None, None, 0.75, 0.25], "w": [0, 0, 1, 0.5], "nll": 0.8}
    return {"step": 40, "rows": [{"row": 7, "tokens": ["2+2", "=", text, "."], "start": sides, "now": later}]}
