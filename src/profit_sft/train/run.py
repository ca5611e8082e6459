"""One training run: data, model, trainer, and the folder it leaves behind (`run_folder.py` lists its files)."""

import dataclasses
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed
from trl import get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from profit_sft.data.prepare import PreparedData, check_tokens_fit
from profit_sft.errors import ConfigurationError, ProFitError, blamed_on
from profit_sft.files import package_versions, sole_use, write_text
from profit_sft.models import pretrained
from profit_sft.models.checks import check_generation, check_kind, checked_weights
from profit_sft.models.pretrained import pretrained_path, require_model, told_as_models
from profit_sft.ranks import first_decides
from profit_sft.runs.record import PACKAGES, as_json, checkpoints
from profit_sft.train.callbacks import SafeStop
from profit_sft.train.checkpoints import clear_saving, finish_publishing, read_manifest
from profit_sft.train.config import ProFitConfig
from profit_sft.train.data import check_data_is_named, load_data
from profit_sft.train.engine import (
    Engine,
    check_has_launcher,
    check_installed,
    check_launched_as_planned,
    launched_engine,
)
from profit_sft.train.fixed import Fixed, check_unchanged, fixed_by_data, fixed_by_settings, together
from profit_sft.train.job import TrainJob
from profit_sft.train.memory import settle_checkpointing
from profit_sft.train.reference import settle_reference
from profit_sft.train.run_folder import (
    CONFIG_FILE,
    DATA_FILE,
    ENVIRONMENT_FILE,
    check_reaches,
    choose_start,
    clear_earlier_run,
    holds_weights,
)
from profit_sft.train.start_report import CountsReport, OnFacts, device_name, settled_facts
from profit_sft.train.trainer import ProFitTrainer
from profit_sft.train.tried import try_settings
from profit_sft.train.trl_flags import refuse_flags, settle_done_flags


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        output_dir: The run folder.
        stopped_by: Number of the signal that stopped it, or None.
        global_step: Optimizer steps done.
        train_runtime_seconds: Wall-clock time of training in this process.
        last_log: The last training log, or None.
        data: The training data's report, as written to data.json.
    """

    output_dir: Path
    stopped_by: int | None
    global_step: int
    train_runtime_seconds: float
    last_log: dict[str, Any] | None
    data: dict[str, Any]


def run_training(
    job: TrainJob,
    *,
    callbacks: list[TrainerCallback] | None = None,
    on_facts: OnFacts = lambda facts: None,
    progress: bool = True,
) -> RunResult:
    """Train as the settings say.

    Args:
        job: The settings.
        callbacks: Further callbacks, such as a progress display.
        on_facts: Called twice on the first rank with what the run has, by name: settings before the data is read, and
            counts before the first step.
        progress: Show a bar while the data is tokenized.

    Returns:
        How it ended. The model is saved unless a signal stopped the run, which leaves a checkpoint instead.

    Raises:
        ConfigurationError: A setting is missing or contradicts another, the output folder is taken, or there is nothing
            to resume.
        DataError: A row cannot be used.
        ProFitError: The engine saved no model.
    """
    engine, run, config = settle(job), job.run, job.config
    check_has_launcher(engine)
    if run.accelerate_config is not None:
        check_launched_as_planned(engine, run.accelerate_config, run.num_processes)
    spread_batch(config, engine)
    output_dir = job.output_dir
    facts: dict[str, str] = {}

    def tell(new: Mapping[str, str]) -> None:
        facts.update(new)
        on_facts(new)

    with ExitStack() as held:
        # A folder that is taken is told before the data is read, and by one rank, which has it until all are done.
        first_decides(lambda: held.enter_context(sole_use(output_dir, "run")))
        checkpoint = first_decides(lambda: _start(job, engine))
        settings = job.as_yaml()  # before what follows puts its own marks on `config`
        if config.process_index == 0:
            tell(settled_facts(job, engine))
        tokenizer = load_tokenizer(job)
        train_data, eval_data = load_data(job, tokenizer, progress=progress)
        fixed = first_decides(lambda: _fixed(job, engine, train_data, checkpoint))
        trainer = build_trainer(job, engine, tokenizer, train_data, eval_data, callbacks or [])
        trainer.fixed = fixed
        stop = held.enter_context(SafeStop())
        trainer.add_callback(stop)
        trainer.run_page.facts = facts
        counts = CountsReport(
            train_data.report,
            trainer.model.parameters(),
            trained_end=trainer.trained_end,
            checkpointing=config.checkpointing,
            on_facts=tell,
        )
        trainer.add_callback(counts)
        _clear_once(job, earlier_run=checkpoint is None and run.overwrite_output_dir)
        if trainer.is_world_process_zero():
            write_run_files(job, settings, train_data)
        output = trainer.train(resume_from_checkpoint=checkpoint)
        assert config.distributed_state is not None
        config.distributed_state.wait_for_everyone()  # a launcher may end the others as soon as one rank has ended
        if stop.signal_number is None:
            save_whole_model(trainer, output_dir)
            trainer.create_model_card(dataset_name=run.dataset_name)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return RunResult(
        output_dir=output_dir,
        stopped_by=stop.signal_number,
        global_step=trainer.state.global_step,
        train_runtime_seconds=float(output.metrics.get("train_runtime", 0.0)),
        last_log=as_json(logs[-1]) if logs else None,
        data=dataclasses.asdict(train_data.report),
    )


def check_before_launch(job: TrainJob) -> None:
    """Refuse what every process that is to be launched would refuse. Errors as `run_training`."""
    _check(job)
    engine = job.planned_engine()
    check_installed(engine)
    spread_batch(job.config, engine)
    with sole_use(job.output_dir, "run"):
        # The contents are left to the ranks: reading them takes a while.
        _start(job, engine, contents=False)


def _start(job: TrainJob, engine: Engine, *, contents: bool = True) -> str | None:
    """Return the checkpoint to go on from, as far as can be told before the data is read."""
    run, config = job.run, job.config
    finish_publishing(job.output_dir)
    checkpoint = choose_start(
        job.output_dir,
        resume_from=config.resume_from_checkpoint,
        overwrite=run.overwrite_output_dir,
        engine=engine,
        contents=contents,
    )
    if checkpoint is not None:
        manifest = read_manifest(Path(checkpoint))
        check_reaches(checkpoint, manifest.step, config.max_steps)
        now = fixed_by_settings(job, engine.ranks)
        check_unchanged(checkpoint, manifest.fixed, now, run.allowed_changes)
        # A change whenever it is said, also by a run that was resumed so before.
        if config.ignore_data_skip and "batch" not in run.allowed_changes:
            raise ConfigurationError(
                f"ignore_data_skip: the run would train on the rows before step {manifest.step} again, and leave out "
                "as many. Leave it out, or say that you mean it: --allow_changes batch"
            )
    return checkpoint


def _fixed(job: TrainJob, engine: Engine, train_data: PreparedData, checkpoint: str | None) -> Fixed:
    """Return what a run that is resumed from this one must not change, and refuse that this one changes it."""
    read = fixed_by_data(train_data, job)
    if checkpoint is not None:
        check_unchanged(checkpoint, read_manifest(Path(checkpoint)).fixed, read, job.run.allowed_changes)
    return together(fixed_by_settings(job, engine.ranks), read)


def _clear_once(job: TrainJob, *, earlier_run: bool) -> None:
    """Delete an earlier run, or what it was writing, on one rank; the others wait: nobody reads or writes what goes."""
    if job.config.should_save:
        if earlier_run:
            clear_earlier_run(job.output_dir)
        clear_saving(job.output_dir)
    assert job.config.distributed_state is not None
    job.config.distributed_state.wait_for_everyone()


def save_whole_model(trainer: ProFitTrainer, output_dir: Path) -> None:
    """Save model and tokenizer so that plain transformers loads them, whatever the engine shards.

    Raises:
        ProFitError: No weights are in the folder afterwards, or they could not be pushed.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:  # accelerate's default for FSDP2 saves shards, and of the model as a whole nothing
        plugin.set_state_dict_type("FULL_STATE_DICT")
    with blamed_on(
        f"push_to_hub: the trained model is in '{output_dir}', whole, but could not be pushed",
        f"Push it once the hub takes it: hf upload {trainer.hub_model_id or 'NAME'} {shlex.quote(str(output_dir))}",
        ProFitError,
        within="push_to_hub",
    ):
        trainer.save_model(str(output_dir))
    if trainer.args.should_save and not holds_weights(output_dir):
        last = next(iter(checkpoints(output_dir)), None)
        raise ProFitError(
            f"training is done, but its engine has left no weights in '{output_dir}'. "
            + (f"They are in '{last}', in the engine's own format." if last else "Save checkpoints: --save_strategy.")
        )


def load_tokenizer(job: TrainJob) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, or raise ConfigurationError with what to do."""
    return pretrained.load_tokenizer(
        job.model_config.model_name_or_path,
        revision=job.model_config.model_revision,
        trust_remote_code=job.config.trust_remote_code,
        chat_template_path=job.config.chat_template_path,
        eos_token=job.config.eos_token,
    )


def settle(job: TrainJob) -> Engine:
    """Make the settings agree before anything is read: model, engine, objective, and where its reference comes from."""
    _check(job)
    engine = launched_engine(job.config)
    settle_reference(job.config, given=job.run.reference_scores is not None, command=job.score_command())
    return engine


def _check(job: TrainJob) -> None:
    """Refuse settings that can be seen to be wrong before anything is read."""
    require_model(vars(job.model_config))
    refuse_flags(job)
    try_settings(job.config, job.model_config)
    check_data_is_named(job)


def spread_batch(config: ProFitConfig, engine: Engine) -> None:
    """Settle the micro-batches of a step, or raise ConfigurationError where `global_batch_size` cannot be had."""
    try:
        config.spread_batch(engine.ranks)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def build_trainer(
    job: TrainJob,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    train_data: PreparedData,
    eval_data: PreparedData | None,
    callbacks: list[TrainerCallback],
) -> ProFitTrainer:
    """Load the model and put the trainer together, as `trl sft` does; errors as `pretrained.load_model`."""
    config, model_config = job.config, job.model_config
    load_arguments: dict[str, Any] = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype or "float32",
        "trust_remote_code": config.trust_remote_code,
        "quantization_config": get_quantization_config(model_config),
        **(config.model_init_kwargs or {}),
    }
    config.model_init_kwargs = None  # the trainer gets a model, and no name
    settle_done_flags(config)
    train_dataset = train_data.dataset
    if config.shuffle_dataset and not config.packing:  # before packing TRL does
        train_dataset = train_dataset.shuffle(seed=config.seed)
    path = pretrained_path(model_config.model_name_or_path)
    longest = (config.max_length if config.packing else None) or train_data.report.longest or config.max_length
    model = _model(path, config, load_arguments, job.run.allow_missing_weights)
    for data in [train_data, *([] if eval_data is None else [eval_data])]:
        check_tokens_fit(model, tokenizer, data)
    settle_checkpointing(model, config, engine, longest=longest)
    settings = job.values
    may_be_at_fault = ("report_to", "push_to_hub", "hub_model_id", "lora_target_modules", "lora_modules_to_save")
    asked = [f"{name} {settings[name]!r}" for name in may_be_at_fault if settings[name]]
    what = "the trainer does not take these settings for this model"
    with blamed_on(": ".join([what, ", ".join(asked)] if asked else [what]), "Change them.", ConfigurationError):
        trainer = ProFitTrainer(
            model,
            config,
            train_dataset=train_dataset,
            eval_dataset=None if eval_data is None else eval_data.dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=get_peft_config(model_config),
        )
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        # Without it ZeRO-3 saves shards that transformers cannot load.
        plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    if config.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # the stand-in for the bar, which prints every log on stdout
    return trainer


def _model(path: str, config: ProFitConfig, arguments: dict[str, Any], allow_missing_weights: bool) -> PreTrainedModel:
    """Load a model as TRL's trainer does of a name, which would not tell what the files lack."""
    set_seed(config.seed)
    assert config.distributed_state is not None
    if config.distributed_state.distributed_type != DistributedType.NO:
        arguments["device_map"] = None
    own = ("revision", "attn_implementation", "dtype", "trust_remote_code", "device_map")
    with told_as_models(path, [name for name, value in arguments.items() if name not in own and value is not None]):
        model, info = create_model_from_path(path, **arguments, output_loading_info=True)
    check_kind(path, model, revision=arguments["revision"], trust_remote_code=config.trust_remote_code)
    check_generation(path, model)
    return checked_weights(path, model, info, allow_missing_weights=allow_missing_weights)


def write_run_files(job: TrainJob, settings: str, train_data: PreparedData) -> None:
    """Write config.yaml, environment.json and data.json, each completely or not at all."""
    output_dir, config = job.output_dir, job.config
    write_text(output_dir / CONFIG_FILE, settings)
    environment = {
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(config.device),
        "world_size": config.world_size,
        "packages": package_versions(PACKAGES),
    }
    write_text(output_dir / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")
    write_text(output_dir / DATA_FILE, json.dumps(dataclasses.asdict(train_data.report), indent=2) + "\n")
