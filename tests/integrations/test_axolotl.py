"""Axolotl's plug-in, on stand-ins that register it and make trainers as Axolotl 0.19 does."""

import importlib
import sys
import types

import pytest
from small_trainer import THRESHOLD, logs, oracle, shapes, trainer
from transformers import Trainer

from profit_sft import ProFit
from profit_sft.errors import ConfigurationError, LossBypassedError
from tiny import tiny_model


class BasePlugin:
    """Its hooks do nothing."""

    def register(self, cfg): ...


class AxolotlTrainer(Trainer):
    """Looks for the count of labels in the backbone's signature, finds none, and turns it off."""

    def __init__(self, *args, compute_loss_func=None, **kwargs):
        super().__init__(*args, compute_loss_func=compute_loss_func, **kwargs)
        self.model_accepts_loss_kwargs = False


@pytest.fixture
def axolotl(monkeypatch):
    said = []
    names = ("axolotl", "axolotl.integrations", "axolotl.integrations.base", "axolotl.utils", "axolotl.utils.logging")
    modules = {name: types.ModuleType(name) for name in names}
    modules["axolotl.integrations.base"].BasePlugin = BasePlugin
    modules["axolotl.utils.logging"].get_logger = lambda _: types.SimpleNamespace(info=said.append)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "profit_sft.integrations.axolotl", raising=False)
    yield types.SimpleNamespace(said=said)
    sys.modules.pop("profit_sft.integrations.axolotl", None)


def run(folder, cfg, *, sizes=None, hooks=("post_model_load", "post_trainer_create"), **options):
    """As `axolotl train`: load the plug-in by name, merge its keys, load the model, make the trainer, train."""
    module = importlib.import_module("profit_sft.integrations.axolotl")
    plugin = module.ProFitPlugin()
    plugin.register(cfg)
    path, name = plugin.get_input_args().rsplit(".", 1)
    arguments = getattr(sys.modules[path], name)(
        **{key: value for key, value in cfg.items() if key.startswith("profit_")}
    )
    cfg = {**cfg, **arguments.model_dump()}
    model = tiny_model()
    if "post_model_load" in hooks:
        plugin.post_model_load(cfg, model)
    kind = type(
        "Made", (AxolotlTrainer,), {"__init__": lambda self, **k: AxolotlTrainer.__init__(self, **k, **options)}
    )
    made = trainer(folder, model, *plugin.add_callbacks_pre_trainer(cfg, model), trainer_class=kind, **(sizes or {}))
    if "post_trainer_create" in hooks:
        plugin.post_trainer_create(cfg, made)
    made.train()
    return made


@pytest.mark.parametrize("sizes", shapes(), ids=["8x1", "2x4"])
def test_it_trains_the_objective_whatever_the_micro_batches(axolotl, tmp_path, sizes):
    made = run(tmp_path, {"profit_threshold": THRESHOLD, "base_model": "x", "use_eaft": False}, sizes=sizes)
    first = logs(made)[0]
    loss, norm, kept_share = oracle(ProFit(threshold=THRESHOLD))
    assert (first["loss"], first["grad_norm"]) == (pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-4))
    assert first["kept_share"] == pytest.approx(kept_share)
    assert axolotl.said == [f"ProFit trains ProFit(threshold={THRESHOLD})."]


def test_without_its_last_hook_the_run_would_be_stopped(axolotl, tmp_path):
    with pytest.raises(LossBypassedError, match="the trainer passed no num_items_in_batch"):
        run(tmp_path, {"profit_threshold": THRESHOLD}, sizes=shapes()[1], hooks=("post_model_load",))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"profit_treshold": 0.1},
            "'profit_treshold' is none of ProFit's keys in Axolotl. Did you mean profit_threshold?",
        ),
        ({"profit_42": 1}, "'profit_42' is none of ProFit's keys in Axolotl.$"),
        ({"use_eaft": True}, "Axolotl would compute its loss by use_eaft=True"),
        ({"rl": "dpo"}, "rl='dpo'"),
        ({"chunked_cross_entropy": True}, "chunked_cross_entropy=True"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"context_parallel_size": 2}, "context_parallel_size=2"),
        ({"profit_threshold": 10}, r"Axolotl's configuration \(profit_...\): threshold must be a probability"),
        ({"profit_normalize": "kept"}, "normalize 'kept' is exact in ProFitTrainer alone"),
    ],
)
def test_a_mask_that_would_be_lost_is_refused_before_anything_is_loaded(axolotl, tmp_path, cfg, message):
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path, cfg)


def test_sizes_of_one_are_no_obstacle(axolotl, tmp_path):
    run(tmp_path, {"profit_threshold": THRESHOLD, "context_parallel_size": 1})


def test_a_loss_it_has_by_other_means_ends_the_run(axolotl, tmp_path):
    with pytest.raises(LossBypassedError, match="without labels"):
        run(tmp_path, {}, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum())
