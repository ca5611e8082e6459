"""A trainer that people use, really installed: its own command on a tiny model, what it logs against the oracle.

Runs in the trainer's environment: make test-peer PEER=llamafactory
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peers import PEERS, THRESHOLD, Run, chats
from profit_sft import NLL, ProFit
from profit_sft.loss.reference import reference_loss
from tiny import save_tiny_chat_model

PEER = PEERS.get(os.environ.get("PEER", ""))
if PEER is None:
    pytest.skip("needs a trainer's own environment: make test-peer PEER=llamafactory", allow_module_level=True)

PARALLEL = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}  # as LLaMA-Factory and ms-swift read them
SAID = f"ProFit trains ProFit(threshold={THRESHOLD})"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Path(save_tiny_chat_model(tmp_path_factory.mktemp("model")))


def train(folder, model, run, **environment):
    """Return exit status, everything that was printed, and the entries of the log that have a loss."""
    scripts = Path(sys.executable).parent
    command = [str(scripts / text) if index == 0 else text for index, text in enumerate(PEER.write(folder, model, run))]
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parent / "stand_ins"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_MODE": "disabled",
            "DO_NOT_TRACK": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    states = sorted((folder / "run").rglob("trainer_state.json"))
    history = json.loads(states[-1].read_text())["log_history"] if states else []
    return done.returncode, done.stdout + done.stderr, [entry for entry in history if "loss" in entry]


def oracle(folder, objective, rows=4):
    """Loss, norm of the gradient and kept share of the first step, row by row in float64 without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    logits, labels = [], []
    for question, answer in chats()[:rows]:
        prompt = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        trained = tokenizer(f"{answer}{PEER.trained_ending}")["input_ids"]
        logits.append(model(input_ids=torch.tensor([prompt + trained])).logits[0, len(prompt) - 1 : -1])
        labels.append(torch.tensor(trained))
    head = torch.eye(logits[0].shape[-1], dtype=torch.float64)
    loss, values = reference_loss(torch.cat(logits), head, torch.cat(labels), objective=objective)
    assert (values["log_probs"] - math.log(THRESHOLD)).abs().min() > 1e-5
    norm = torch.stack([part.norm() for part in torch.autograd.grad(loss, list(model.parameters()))]).norm()
    return loss.item(), norm.item(), (values["token_weights"] != 0).double().mean().item()


def assert_first_step(logs, expected, *, gradient=True):
    loss, norm, kept_share = expected
    assert logs[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert logs[0].get("kept_share", 1.0) == pytest.approx(kept_share)
    if gradient:
        assert logs[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_plain_training_is_what_the_oracle_says_of_its_rows(tmp_path, model):
    status, output, logs = train(tmp_path, model, Run(ours=None))
    assert status == 0, output
    assert "ProFit" not in output
    assert_first_step(logs, oracle(model, NLL()))


def test_micro_batches_equal_one_batch_and_the_oracle(tmp_path, model):
    expected = oracle(model, ProFit(threshold=THRESHOLD))
    assert 0.2 < expected[2] < 0.8
    runs = {}
    for batch in ((4, 1), (1, 4)):
        (tmp_path / str(batch[0])).mkdir()
        status, output, runs[batch] = train(tmp_path / str(batch[0]), model, Run(ours=PEER.ours(), batch=batch))
        assert status == 0, output
        assert SAID in output
        assert_first_step(runs[batch], expected)
        assert len(runs[batch]) == 2
    for one, other in zip(*runs.values(), strict=True):
        for name in ("loss", "grad_norm", "kept_share"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), (name, one, other)


def test_adapters_are_trained_on_the_same_loss(tmp_path, model):
    status, output, logs = train(tmp_path, model, Run(ours=PEER.ours(), lora=True))
    assert status == 0, output
    assert_first_step(logs, oracle(model, ProFit(threshold=THRESHOLD)), gradient=False)


@pytest.mark.skipif(PEER.parallel is None, reason="it does not start several processes on CPUs")
def test_two_processes_equal_one(tmp_path, model):
    run = Run(ours=PEER.ours(), batch=(2, 1), more=PEER.parallel)
    status, output, logs = train(tmp_path, model, run, **PARALLEL)
    assert status == 0, output
    assert_first_step(logs, oracle(model, ProFit(threshold=THRESHOLD)))


def test_another_objective_arrives(tmp_path, model):
    run = Run(ours=PEER.named("eaft"))
    status, output, logs = train(tmp_path, model, run)
    assert status == 0, output
    assert "ProFit trains EAFT(" in output
    assert logs[0]["kept_share"] == 1.0


@pytest.mark.parametrize("name", sorted(PEER.refusals))
def test_what_would_lose_the_mask_is_refused(tmp_path, model, name):
    run, message = PEER.refusals[name]
    status, output, logs = train(tmp_path, model, run)
    assert status != 0
    assert logs == []
    assert re.sub(r"\s+", " ", message) in re.sub(r"\s+", " ", output), output
