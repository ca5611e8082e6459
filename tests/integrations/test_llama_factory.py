"""The launcher of LLaMA-Factory, on a stand-in that reads, launches and trains as LLaMA-Factory 0.9.5 does."""

import os
import subprocess
import sys
import types

import pytest
import yaml
from small_trainer import THRESHOLD, logs, oracle, shapes, trainer
from transformers import Trainer

from forks import start
from profit_sft import ProFit
from profit_sft.errors import ConfigurationError, LossBypassedError
from profit_sft.integrations import llama_factory
from tiny import tiny_model


class CustomTrainer(Trainer):
    """Takes the labels away where a loss of its own is on, and averages where there is a processor."""

    def __init__(self, *args, processor=None, loss_func=None, **kwargs):
        super().__init__(*args, **kwargs)
        if processor is not None:
            self.model_accepts_loss_kwargs = False
        self.compute_loss_func = loss_func


class Stand:
    """What the package `llamafactory` is to the launcher: read_args, run_exp, launch."""

    def __init__(self, folder):
        self.folder, self.made, self.options, self.said, self.trained_on = folder, None, {}, [], None
        self.sizes, self.status = {}, 0

    def read_args(self):
        if len(sys.argv) > 1 and sys.argv[1].endswith(".yaml"):
            overrides = dict(text.split("=") for text in sys.argv[2:])
            with open(sys.argv[1]) as file:
                return {**yaml.safe_load(file), **{name: yaml.safe_load(value) for name, value in overrides.items()}}
        return sys.argv[1:]

    def run_exp(self, args=None, callbacks=None):
        self.trained_on = self.read_args() if args is None else args
        self.made = trainer(
            self.folder, tiny_model(), *(callbacks or []), trainer_class=CustomTrainer_of(self.options), **self.sizes
        )
        self.made.train()

    def launch(self):
        assert sys.argv.pop(1) == "train"
        if os.environ.get("FORCE_TORCHRUN") == "1":
            line = "torchrun --nproc_per_node 2 {file_name} {args}".format(
                file_name=self.launcher.__file__, args=" ".join(sys.argv[1:])
            )
            self.torchrun = line.split()
            subprocess.run([sys.executable, "-c", f"raise SystemExit({self.status})"], check=True)
            sys.exit(0)
        self.tuner.run_exp()


def CustomTrainer_of(options):
    return type(
        "Made", (CustomTrainer,), {"__init__": lambda self, *a, **k: CustomTrainer.__init__(self, *a, **k, **options)}
    )


@pytest.fixture
def stand(tmp_path, monkeypatch):
    made = Stand(tmp_path / "run")
    names = ("llamafactory", "launcher", "hparams", "train", "train.tuner", "extras", "extras.logging")
    modules = {name: types.ModuleType(name) for name in names}
    package = modules["llamafactory"]
    package.launcher, package.train, package.extras = modules["launcher"], modules["train"], modules["extras"]
    made.launcher, made.tuner = modules["launcher"], modules["train.tuner"]
    modules["train"].tuner, modules["extras"].logging = made.tuner, modules["extras.logging"]
    made.launcher.launch, made.launcher.__file__ = made.launch, "launcher.py"
    modules["hparams"].read_args, made.tuner.run_exp = made.read_args, made.run_exp
    modules["extras.logging"].get_logger = lambda _: types.SimpleNamespace(info_rank0=made.said.append)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, "llamafactory" if name == "llamafactory" else f"llamafactory.{name}", module)
    monkeypatch.setattr(sys, "argv", ["profit"])
    return made


def config(folder, **settings):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"stage": "sft", "use_dft_loss": False, **settings}))
    return str(path)


@pytest.mark.parametrize("sizes", shapes(), ids=["8x1", "2x4"])
def test_it_trains_the_objective_of_the_configuration(stand, tmp_path, sizes):
    stand.sizes = sizes
    path = config(tmp_path, prob_threshold=0.5, threshold_direction="higher", statistics="all")
    assert llama_factory.main(["train", path, f"prob_threshold={THRESHOLD}"]) == 0
    assert stand.trained_on == {"stage": "sft", "use_dft_loss": False}
    assert stand.said == [f"ProFit trains ProFit(threshold={THRESHOLD}), statistics='all'."]
    first = logs(stand.made)[0]
    loss, norm, kept_share = oracle(ProFit(threshold=THRESHOLD))
    assert 0.2 < kept_share < 0.8
    assert (first["loss"], first["grad_norm"]) == (pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-4))
    assert first["kept_share"] == pytest.approx(kept_share)


def test_flags_are_read_as_well_and_those_of_ours_taken_out(stand):
    flags = [
        "--stage",
        "sft",
        "--prob_threshold",
        str(THRESHOLD),
        "--do_train",
        "--threshold_direction=lower",
        "--x",
        "-1",
    ]
    assert llama_factory.main(["train", *flags]) == 0
    assert stand.trained_on == ["--stage", "sft", "--do_train", "--x", "-1"]
    assert stand.said == [f"ProFit trains ProFit(threshold={THRESHOLD}, direction='lower')."]


def test_two_thresholds_are_a_list_in_flags_as_well(stand):
    llama_factory.main(["train", "--prob_threshold", str(THRESHOLD), "0.5", "--stage=sft"])
    assert stand.trained_on == ["--stage=sft"]
    assert stand.said == [f"ProFit trains ProFit(threshold={THRESHOLD}, direction='middle', upper_threshold=0.5)."]


@pytest.mark.parametrize("status", [0, 3])
def test_where_it_starts_processes_they_run_this_module(stand, tmp_path, monkeypatch, status):
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    stand.status = status
    path = config(tmp_path)
    assert llama_factory.main(["train", path, "lr=1"]) == status
    assert stand.torchrun[3:] == ["-m", "profit_sft.integrations.llama_factory", path, "lr=1"]
    assert stand.made is None


def test_a_process_that_was_started_trains_by_itself(stand, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "1")
    for name, value in {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stand.tuner, "run_exp", lambda args, callbacks: stand.said.append(len(callbacks)))
    assert llama_factory.main([config(tmp_path)]) == 0
    assert stand.said[-1] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use_dft_loss": True},
            "LLaMA-Factory would compute its loss by use_dft_loss=True and never call the selective",
        ),
        ({"use_eaft_loss": True}, "use_eaft_loss=True"),
        ({"use_asft_loss": True}, "use_asft_loss=True"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"use_mca": True}, "use_mca=True"),
        ({"stage": "dpo"}, "stage 'dpo' has no reference answer to weigh"),
        ({"normalize": "kept"}, "normalize 'kept' is exact in ProFitTrainer alone"),
        ({"prob_threshold": 10}, "LLaMA-Factory's arguments: threshold must be a probability"),
    ],
)
@pytest.mark.parametrize("form", ["file", "flags"])
def test_another_loss_is_refused_before_anything_is_started(stand, tmp_path, monkeypatch, form, settings, message):
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    given = [config(tmp_path, **settings)]
    if form == "flags":
        given = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        llama_factory.main(["train", *given])
    assert not hasattr(stand, "torchrun")


@pytest.mark.parametrize("name", ["USE_V1", "USE_MCA", "USE_KT"])
def test_another_trainer_of_its_own_is_refused(stand, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigurationError, match=f"{name}='1'"):
        llama_factory.main(["train", config(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()}, "without labels"),
        ({"processor": object()}, "the trainer passed no num_items_in_batch, so the 4 parts"),
    ],
    ids=["a loss it has by other means", "a processor"],
)
def test_a_mask_that_is_lost_on_the_way_ends_the_run(stand, tmp_path, options, message):
    stand.options, stand.sizes = options, shapes()[1]
    with pytest.raises(LossBypassedError, match=message):
        llama_factory.main(["train", config(tmp_path, prob_threshold=THRESHOLD)])


def test_only_its_training_is_run(stand):
    with pytest.raises(ConfigurationError, match="only LLaMA-Factory's train is run with ProFit, got 'export'"):
        llama_factory.main(["export", "config.yaml"])


def test_without_it_there_is_one_line(tmp_path):
    log = tmp_path / "log"
    process = start(["llamafactory", "train", "x.yaml"], log)
    process.join()
    assert (process.exitcode, log.with_suffix(".out").read_text()) == (2, "")
    assert log.read_text().strip().startswith("error: LLaMA-Factory is not installed in this environment.")
