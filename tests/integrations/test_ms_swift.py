"""ms-swift's plug-in, on stand-ins that import it, make trainers and compute losses as ms-swift 4.6 does."""

import importlib.util
import subprocess
import sys
import types

import pytest
import torch
import transformers
from small_trainer import THRESHOLD, arguments, batch, logs, oracle, shapes
from transformers import DataCollatorForSeq2Seq, Trainer

from profit_sft import ProFit
from profit_sft.errors import ConfigurationError, LossBypassedError
from tiny import tiny_dataset, tiny_model, tiny_tokenizer


class BaseLoss:
    def __init__(self, args, trainer):
        self.args, self.trainer = args, trainer


class Metric:
    def __init__(self):
        self.values = []

    def update(self, values):
        self.values += values.tolist()


class SwiftTrainer(Trainer):
    """Cuts labels as logits are to be kept, passes no count to the model, and rescales by the call's share."""

    def __init__(self, model, args, *, callbacks_map, loss_map, template, callbacks, **options):
        self.template, self.custom_metrics = template, {"train": {"kept_share": Metric()}}
        args.callbacks, args.loss_type, args.use_logits_to_keep = callbacks, options.pop("loss_type", None), None
        args.enable_dft_loss, args.enable_channel_loss = options.pop("enable_dft_loss", False), False
        loss = loss_map[args.loss_type](args, self) if args.loss_type else None
        super().__init__(
            model=model,
            args=args,
            train_dataset=tiny_dataset(8),
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
            callbacks=[callbacks_map[name](args, self) for name in callbacks],
            compute_loss_func=loss,
        )
        self.model_accepts_loss_kwargs = True
        self.takes_labels = options.pop("takes_labels", False)

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        labels = inputs["labels"]
        if self.args.use_logits_to_keep is False:
            return inputs
        if labels.shape[0] == 1:
            mask = (labels != -100)[0]
            inputs["labels"] = torch.nn.functional.pad(labels[:, mask], (1, 0), value=-100)
            inputs["logits_to_keep"] = torch.nn.functional.pad(mask[1:], (0, 1), value=True)
        else:
            kept = labels.shape[-1] - (labels != -100).int().argmax(-1).min().item() + 1
            inputs["labels"], inputs["logits_to_keep"] = labels[:, -kept:], kept
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        taken = self.compute_loss_func or self.args.enable_dft_loss or self.takes_labels
        labels = inputs.pop("labels") if taken else inputs["labels"]
        outputs = model(**inputs)
        if self.compute_loss_func:
            return self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch, loss_scale=None)
        return outputs.loss * ((labels[:, 1:] != -100).sum() / num_items_in_batch)


def template(*, binary=True, parallel=1):
    return types.SimpleNamespace(
        sequence_parallel_size=parallel, loss_scale=types.SimpleNamespace(is_binary_loss_scale=binary)
    )


@pytest.fixture(scope="module")
def plugin_path():
    code = "import sys; from profit_sft.cli import main; sys.argv[1:] = ['plugin', 'ms-swift']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def swift(monkeypatch, plugin_path):
    """Load the plug-in as `--external_plugins` does; return what it registers in, and what it says."""
    said, maps = [], {"callbacks_map": {}, "loss_map": {}}
    names = ("swift", "swift.trainers", "swift.callbacks", "swift.loss", "swift.utils")
    modules = {name: types.ModuleType(name) for name in names}
    modules["swift"].trainers = modules["swift.trainers"]
    modules["swift.callbacks"].callbacks_map = maps["callbacks_map"]
    modules["swift.loss"].loss_map, modules["swift.loss"].BaseLoss = maps["loss_map"], BaseLoss
    modules["swift.utils"].get_logger = lambda: types.SimpleNamespace(info=said.append)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", list(transformers.trainer.DEFAULT_CALLBACKS))
    spec = importlib.util.spec_from_file_location("_swift_external_1", plugin_path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return types.SimpleNamespace(said=said, **maps)


def made(swift, folder, *, sizes=None, callbacks=("profit",), of=None, **options):
    return SwiftTrainer(
        tiny_model(),
        arguments(folder, **(sizes or {}), **({"label_smoothing_factor": options.pop("smoothing", 0.0)})),
        callbacks_map=swift.callbacks_map,
        loss_map=swift.loss_map,
        template=of or template(),
        callbacks=list(callbacks),
        **options,
    )


@pytest.mark.parametrize("way", ["callback", "loss_type"])
@pytest.mark.parametrize("sizes", shapes(), ids=["8x1", "2x4"])
def test_both_ways_train_the_objective(swift, tmp_path, monkeypatch, sizes, way):
    monkeypatch.setenv("PROFIT_THRESHOLD", str(THRESHOLD))
    chosen = {"callbacks": ["profit"]} if way == "callback" else {"callbacks": [], "loss_type": "profit"}
    trainer = made(swift, tmp_path, sizes=sizes, **chosen)
    trainer.train()
    first = logs(trainer)[0]
    loss, norm, kept_share = oracle(ProFit(threshold=THRESHOLD))
    assert (first["loss"], first["grad_norm"]) == (pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-4))
    assert swift.said == [f"ProFit trains ProFit(threshold={THRESHOLD})."]
    if way == "callback":
        assert first["kept_share"] == pytest.approx(kept_share)
        assert trainer.args.use_logits_to_keep is False
    else:
        seen = trainer.custom_metrics["train"]["kept_share"].values[: (batch()["labels"] != -100).sum()]
        assert sum(seen) / len(seen) == pytest.approx(kept_share)


@pytest.mark.parametrize("keep", [None, False], ids=["logits cut", "all logits"])
@pytest.mark.parametrize("rows", [1, 2])
def test_labels_that_are_cut_are_understood(swift, tmp_path, monkeypatch, rows, keep):
    monkeypatch.setenv("PROFIT_THRESHOLD", str(THRESHOLD))
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows}
    trainer = made(swift, tmp_path, sizes=sizes)
    trainer.args.use_logits_to_keep = keep
    trainer.train()
    assert logs(trainer)[0]["loss"] == pytest.approx(oracle(ProFit(threshold=THRESHOLD))[0], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({"enable_dft_loss": True}, {}, "ms-swift would compute its loss by --enable_dft_loss=True"),
        ({"loss_type": "profit"}, {}, "--loss_type='profit'"),
        ({"smoothing": 0.1}, {}, "--label_smoothing_factor=0.1"),
        ({"of": template(binary=False)}, {}, "--loss_scale='weights other than 0 and 1'"),
        ({"of": template(parallel=2)}, {}, "--sequence_parallel_size=2"),
        ({"callbacks": []}, {}, "nothing asks for it, so plain SFT would be trained. Add --callbacks profit"),
        (
            {},
            {"PROFIT_TRESHOLD": "0.1"},
            r"--model_kwargs or the environment \(PROFIT_...\): objective 'profit' has no",
        ),
        ({}, {"PROFIT_NORMALIZE": "kept"}, "normalize 'kept' is exact in ProFitTrainer alone"),
        ({"callbacks": [], "loss_type": "profit"}, {"PROFIT_GRADIENT_BUDGET": "0.1"}, "belongs to --callbacks profit"),
    ],
)
def test_a_mask_that_would_be_lost_is_refused_when_the_trainer_is_made(
    swift, tmp_path, monkeypatch, options, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        made(swift, tmp_path, **options)


def test_labels_that_are_taken_by_other_means_end_the_run(swift, tmp_path):
    with pytest.raises(LossBypassedError, match="without labels"):
        made(swift, tmp_path, takes_labels=True).train()


def test_the_plug_in_lies_where_nothing_stands_in_the_way_of_other_modules(plugin_path):
    from pathlib import Path

    assert sorted(path.name for path in Path(plugin_path).parent.glob("*.py")) == ["__init__.py", "plugin.py"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("axolotl", "axolotl takes no plug-in file. Write: plugins: [profit_sft"),
        ("swift", "There is one for: ms-swift."),
    ],
)
def test_a_trainer_without_a_plug_in_file_is_told_what_to_write(name, message):
    code = f"import sys; from profit_sft.cli import main; sys.argv[1:] = ['plugin', '{name}']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
