"""The estimate's parts by hand, engine by engine; measured processes are in tests/benchmarks/test_memory.py."""

import copy
import dataclasses

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from profit_sft.loss.devices import CUDA_CHUNK_TOKENS
from profit_sft.train import memory
from profit_sft.train.config import ProFitConfig
from profit_sft.train.engine import Engine
from profit_sft.train.memory import estimate_memory_gib, free_memory_gib, settle_checkpointing

V, D, LAYERS, ROWS, LONGEST = 5000, 64, 3, 2, 300
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=V,
                hidden_size=D,
                intermediate_size=2 * D,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                tie_word_embeddings=False,
            )
        )


def parts(model, tmp_path, engine=None, *, mixed_precision=False, device=CPU, longest=LONGEST, **settings):
    config = ProFitConfig(
        str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=ROWS, max_length=None, **settings
    )
    found = estimate_memory_gib(
        model, config, engine or Engine(), longest=longest, mixed_precision=mixed_precision, device=device
    )
    return {name: round(size * 2**30) for name, size in found.items()}


def sizes(model):
    whole = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    return whole, block


def test_one_process_by_hand(model, tmp_path):
    whole, _ = sizes(model)
    tokens = ROWS * LONGEST
    assert parts(model, tmp_path, gradient_checkpointing=False) == {
        "weights": 4 * whole,
        "gradients": 4 * whole,
        "adam": 8 * whole,
        "exchange": 0,
        "loss": 4 * tokens * V + 4 * V * D,
        "activations": 17 * 4 * tokens * D * LAYERS,
    }
    checkpointed = parts(model, tmp_path, gradient_checkpointing=True)
    assert checkpointed["activations"] == 17 * 4 * tokens * D + LAYERS * 4 * tokens * D


@pytest.mark.parametrize(
    ("name", "weights", "gradients", "adam", "exchange"),
    [
        ("DDP", 4, 4, 8, "gradients"),
        ("FSDP1", 4 / 4, 4 / 4, 8 / 4, "blocks"),
        ("FSDP2", 4 / 4, 4 / 4, 8 / 4, "blocks"),
        ("ZeRO-1", 4, 4, 12 / 4, "bucket"),
        ("ZeRO-2", 4, 4 / 4, 12 / 4, "bucket"),
        ("ZeRO-3", 4 / 4, 4 / 4, 12 / 4, "bucket and weights"),
    ],
)
def test_what_four_ranks_share(model, tmp_path, name, weights, gradients, adam, exchange):
    whole, block = sizes(model)
    found = parts(model, tmp_path, Engine(name=name, ranks=4))
    held = {
        "gradients": 4 * whole,
        "blocks": 4 * (whole - (LAYERS - 2) * block),
        "bucket": 4 * whole,
        "bucket and weights": 8 * whole,
    }
    expected = (weights * whole, gradients * whole, adam * whole, held[exchange])
    assert tuple(found[part] for part in ("weights", "gradients", "adam", "exchange")) == pytest.approx(expected)


def test_fsdp_that_accumulates_holds_whole_gradients_unless_it_exchanges_each(model, tmp_path):
    whole, _ = sizes(model)
    fsdp = Engine(name="FSDP2", ranks=4)
    assert parts(model, tmp_path, fsdp, gradient_accumulation_steps=2)["gradients"] == 4 * whole
    each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    found = parts(model, tmp_path, fsdp, gradient_accumulation_steps=2, accelerator_config=each)
    assert found["gradients"] == pytest.approx(whole)


def test_sixteen_bits_halve_what_is_computed_and_not_what_is_stored(model, tmp_path):
    fsdp = Engine(name="FSDP2", ranks=4)
    full, half = (parts(model, tmp_path, fsdp, mixed_precision=mixed) for mixed in (False, True))
    assert [half[part] for part in ("weights", "adam", "loss")] == [full[part] for part in ("weights", "adam", "loss")]
    assert [2 * half[part] for part in ("exchange", "activations")] == [full["exchange"], full["activations"]]


def test_the_chunk_of_logits_is_that_of_the_planned_device_or_the_flags(model, tmp_path):
    head = 4 * V * D
    assert parts(model, tmp_path, device=GPU, longest=10_000)["loss"] == 4 * CUDA_CHUNK_TOKENS * V + head
    assert parts(model, tmp_path, device=GPU, longest=10_000, loss_chunk_size=7)["loss"] == 4 * 7 * V + head


def test_eager_attention_holds_its_scores(model, tmp_path):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    scores = 10 * ROWS * LONGEST**2 * 4
    for checkpointing, layers in [(False, LAYERS), (True, 1)]:
        found, without = (
            parts(entry, tmp_path, gradient_checkpointing=checkpointing)["activations"] for entry in (eager, model)
        )
        assert found - without == layers * scores


def test_a_frozen_model_has_no_gradients_and_no_adam(tmp_path):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    model.requires_grad_(False)
    model.model.layers[0].requires_grad_(True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = parts(model, tmp_path)
    assert (found["gradients"], found["adam"]) == (4 * trained, 8 * trained)
    assert found["loss"] == 4 * ROWS * LONGEST * 64  # the head's gradient is not formed


def settled(model, tmp_path, monkeypatch, *, free=1.0, engine=None, longest=LONGEST, **settings):
    monkeypatch.setattr(memory, "free_memory_gib", lambda device: free)
    config = ProFitConfig(str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=ROWS, **settings)
    settle_checkpointing(model, config, engine or Engine(), longest=longest)
    assert config.gradient_checkpointing == getattr(config, "activation_checkpointing", config.gradient_checkpointing)
    return config.checkpointing, config.gradient_checkpointing


def test_activations_are_kept_where_nobody_asked_and_they_fit(model, tmp_path, monkeypatch):
    needed = sum(parts(model, tmp_path, gradient_checkpointing=False).values()) / 2**30
    assert settled(model, tmp_path, monkeypatch, free=2.01 * needed) == ("kept", False)
    assert settled(model, tmp_path, monkeypatch, free=1.99 * needed) == ("computed again", True)
    assert settled(model, tmp_path, monkeypatch, free=2.01 * needed, longest=2 * LONGEST) == ("computed again", True)
    assert settled(model, tmp_path, monkeypatch, longest=None) == ("computed again", True)


def test_weights_that_are_there_already_are_not_wanted_again(tmp_path, monkeypatch):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=2))
    found = parts(model, tmp_path, gradient_checkpointing=False)
    needed = (sum(found.values()) - found["weights"]) / 2**30
    assert settled(model, tmp_path, monkeypatch, free=2.01 * needed) == ("kept", False)
    assert settled(model, tmp_path, monkeypatch, free=1.99 * needed) == ("computed again", True)


@pytest.mark.parametrize("name", ["FSDP1", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3"])
def test_what_shards_computes_activations_again(model, tmp_path, monkeypatch, name):
    assert settled(model, tmp_path, monkeypatch, engine=Engine(name=name, ranks=2)) == ("computed again", True)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("flag", ["gradient_checkpointing", "activation_checkpointing"])
def test_what_was_asked_for_stays(model, tmp_path, monkeypatch, flag, asked):
    if flag not in {field.name for field in dataclasses.fields(ProFitConfig)}:
        pytest.skip("this version of transformers has one name for it")
    for free in (1e-6, 1e6):
        assert settled(model, tmp_path, monkeypatch, free=free, **{flag: asked}) == ("as asked", asked)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_kwargs` is deprecated:FutureWarning")
def test_who_says_how_to_compute_again_asks_for_it(model, tmp_path, monkeypatch):
    how = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert settled(model, tmp_path, monkeypatch, free=1e6, **how) == ("as asked", True)
    off = {**how, "gradient_checkpointing": False}
    assert settled(model, tmp_path, monkeypatch, free=1e-6, **off) == ("as asked", False)


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    whole = free_memory_gib(CPU)
    assert 0 < whole <= psutil.virtual_memory().total / 2**30
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_CONTAINER", [(tmp_path / "absent", used), (limit, used)])
    limit.write_text("max\n")
    used.write_text(f"{2**20}\n")
    assert free_memory_gib(CPU) == pytest.approx(whole, rel=0.2)
    limit.write_text(f"{3 * 2**20}\n")
    assert free_memory_gib(CPU) == 2 / 2**10
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory_gib(CPU) == 1 / 2**10


def test_free_memory_is_that_of_any_accelerator(monkeypatch):
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda device: (3 * 2**29, 2**33))
    assert free_memory_gib(torch.device("xpu", 1)) == 1.5
