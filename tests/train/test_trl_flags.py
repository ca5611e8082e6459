"""Every flag of `trl sft` works, or is refused in one line that says what to use instead."""

import dataclasses
from pathlib import Path

import pytest
import torch
from trl import ModelConfig, SFTConfig
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from profit_sft.cli.app import run_app
from profit_sft.cli.train_flags import parse
from profit_sft.data.sources import mixture_parts
from profit_sft.errors import ConfigurationError
from profit_sft.train import run as training
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trl_flags import NEEDS, REFUSED, refuse_flags
from tiny import save_tiny_chat_model, write_questions

# What reads each flag, in this version of TRL or another: the trainer's own loop, TRL, or what is named.
WORKS = {
    "Trainer": """
        accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
        auto_find_batch_size average_tokens_across_devices bf16 bf16_full_eval data_seed
        dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
        dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
        ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout ddp_timeout_delta debug deepspeed
        disable_tqdm do_eval do_train enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches
        eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_backend fp16_full_eval fp16_opt_level
        fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap full_determinism
        gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better
        group_by_length half_precision_backend
        include_num_input_tokens_seen
        include_tokens_per_second jit_mode_eval learning_rate
        local_rank log_level log_level_replica log_on_each_node logging_dir logging_first_step
        logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm
        max_steps metric_for_best_model mp_parameters neftune_noise_alpha no_cuda num_train_epochs optim optim_args
        output_dir overwrite_output_dir parallelism_config past_index per_device_eval_batch_size
        per_device_train_batch_size per_gpu_eval_batch_size per_gpu_train_batch_size prediction_loss_only project
        push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope remove_unused_columns
        report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node
        save_only_model save_safetensors save_steps save_strategy save_total_limit seed skip_memory_metrics tf32
        torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps torchdynamo
        tp_size tpu_metrics_debug tpu_num_cores
        train_sampling_strategy use_cache use_cpu use_ipex use_legacy_prediction_loop use_mps_device warmup_ratio
        warmup_steps weight_decay
    """,
    "TRL": """
        activation_offloading eval_packing model_init_kwargs packing packing_strategy pad_to_multiple_of padding_free
        router_aux_loss_coef trust_remote_code
        attn_implementation dtype torch_dtype lora_target_modules model_name_or_path model_revision use_peft
    """,
    "the preparation of the data": """
        assistant_only_loss chat_template_path dataset_config dataset_name dataset_num_proc dataset_streaming
        dataset_test_split dataset_text_field dataset_train_split datasets eos_token max_length shuffle_dataset
        streaming test_split_size truncation_mode
    """,
    "the settings, where they are made": "label_smoothing_factor loss_type",
}


def test_every_flag_of_trl_sft_is_known_and_classified():
    flags = {
        entry.name
        for settings in (SFTConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig)
        for entry in dataclasses.fields(settings)
        if entry.init
    }
    works = {name for names in WORKS.values() for name in names.split()}
    assert flags - works - set(REFUSED) - set(NEEDS) == set(), "say of each what it does here, or refuse it"
    ours = {entry.name for kind in (RunArguments, ProFitConfig, ModelConfig) for entry in dataclasses.fields(kind)}
    assert flags - ours == set()


def test_the_keys_of_a_mixture_are_trls():
    from trl.scripts.utils import DatasetConfig

    given = {entry.name: None for entry in dataclasses.fields(DatasetConfig)}
    (part,) = mixture_parts([{**given, "path": "x"}])
    assert {entry.name for entry in dataclasses.fields(part)} == set(given)


REFUSALS = [
    (["--completion_only_loss", "False"], "completion_only_loss is False: prompts are not trained. Leave it out, or"),
    (
        ["--dataset_kwargs", '{"add_special_tokens": false}'],
        "'skip_prepare_dataset' is the only key",
    ),
    (["--use_liger_kernel", "True"], "use_liger_kernel is True: the selective loss takes the place of Liger's"),
    (
        ["--use_peft", "--lora_target_modules", "lm_head"],
        r"\['lm_head'\]: .*--lora_modules_to_save lm_",
    ),
    (["--use_peft", "--lora_target_modules", "q_proj", "lm_head"], "an adapter of the head would not be trained"),
    (["--lora_task_type", "SEQ_CLS"], "lora_task_type is 'SEQ_CLS': a causal language model is trained"),
    (["--ignore_bias_buffers", "True"], "ignore_bias_buffers is True: `trl sft` does not read it either"),
    (["--label_names", "answer"], "the labels are named 'labels'"),
    (["--do_predict", "True"], "there is nothing to predict on"),
    (["--lora_r", "8"], "lora_r is 8, which does nothing without use_peft. Add --use_peft, or leave it out"),
    (["--load_in_4bit"], "load_in_4bit is True, which does nothing without use_peft"),
    (["--hub_token", "hf_x"], "hub_token is a secret, which does nothing without push_to_hub. Add --push_to_hub"),
    (["--trackio_space_id", "a/b"], "which does nothing without report_to trackio. Add --report_to trackio, or"),
    (["--optim_target_modules", "attn"], "which does nothing without optim galore_adamw. Add --optim galore_adamw"),
    (["--include_for_metrics", "inputs"], "computes no metrics beside the loss's. Leave it out"),
    (["--bnb_4bit_quant_type", "fp4"], "bnb_4bit_quant_type is 'fp4', which does nothing without load_in_4bit"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSALS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_flag_without_a_meaning_here_is_refused_with_what_to_use(flags, message):
    job, *_ = parse([*flags, "--use_cpu", "True"])
    with pytest.raises(ConfigurationError, match=message) as refused:
        refuse_flags(job)
    assert "\n" not in str(refused.value)


ACCEPTED = [
    ["--assistant_only_loss", "True"],
    ["--completion_only_loss", "True"],
    ["--dataset_kwargs", '{"skip_prepare_dataset": true}'],
    ["--use_peft", "--lora_target_modules", "all-linear", "--lora_r", "4"],
    ["--use_peft", "--lora_modules_to_save", "lm_head"],
]


@pytest.mark.parametrize("flags", ACCEPTED, ids=lambda flags: flags[0])
def test_a_flag_that_says_what_is_done_anyway_is_taken(flags):
    job, *_ = parse([*flags, "--use_cpu", "True"])
    refuse_flags(job)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gradient_checkpointing"], True),
        (["--gradient_checkpointing", "True"], True),
        (["--gradient_checkpointing", "False"], False),
        (["--no_gradient_checkpointing"], False),
    ],
    ids=str,
)
def test_activations_are_computed_again_as_trl_is_told(words, expected):
    config = parse([*words, "--use_cpu", "True"])[0].config
    assert (config.checkpointing, config.gradient_checkpointing) == ("as asked", expected)


# A value other than the default for every flag that a run on a CPU can show, in two runs that do not contradict
# themselves.
GIVEN = {
    "the loop": """
        --adam_beta1 0.8 --adam_beta2 0.9 --adam_epsilon 1e-6 --average_tokens_across_devices False
        --data_seed 3 --ddp_broadcast_buffers False --ddp_bucket_cap_mb 20 --ddp_find_unused_parameters False
        --ddp_static_graph True --ddp_timeout 60 --do_eval True --do_train True --enable_jit_checkpoint True
        --eval_accumulation_steps 1 --eval_delay 1 --eval_do_concat_batches False --eval_on_start True
        --eval_strategy steps --eval_steps 2 --eval_use_gather_object True --gradient_accumulation_steps 2
        --gradient_checkpointing False --greater_is_better False --include_num_input_tokens_seen True
        --learning_rate 1e-3 --log_level error --log_level_replica error --log_on_each_node False
        --logging_first_step True --logging_nan_inf_filter False --logging_steps 2
        --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":1e-4} --max_grad_norm 0.5 --max_steps 4
        --metric_for_best_model eval_loss --neftune_noise_alpha 5 --optim adamw_torch --pad_to_multiple_of 16
        --per_device_eval_batch_size 2 --per_device_train_batch_size 2 --prediction_loss_only True --project mine
        --remove_unused_columns False --restore_callback_states_from_checkpoint True --run_name named
        --save_on_each_node True --save_only_model True --save_steps 2 --save_total_limit 1 --seed 5
        --skip_memory_metrics False --torch_empty_cache_steps 2 --train_sampling_strategy group_by_length
        --use_cpu True --warmup_steps 1 --weight_decay 0.1
    """,
    "loading": """
        --accelerator_config {"even_batches":false} --activation_checkpointing_kwargs {"use_reentrant":true}
        --attn_implementation eager --auto_find_batch_size True --bf16 True --bf16_full_eval True
        --dataloader_drop_last True --dataloader_in_order False --dataloader_multiprocessing_context fork
        --dataloader_num_workers 1 --dataloader_persistent_workers True --dataloader_pin_memory False
        --dataloader_prefetch_factor 3 --debug underflow_overflow --disable_tqdm True --dtype bfloat16
        --eval_packing False --gradient_checkpointing True --logging_strategy epoch --lora_target_modules q_proj
        --lora_r 2 --max_length 64 --model_init_kwargs {"use_cache":false} --num_train_epochs 1 --optim sgd
        --optim_args momentum=0.5 --packing True --packing_strategy wrapped
        --save_strategy no --trust_remote_code True --use_cache True --use_cpu True --use_peft True
    """,
}
# Those that it cannot, and what shows them.
SHOWN_ELSEWHERE = {
    "only on an accelerator": "activation_offloading fp16 fp16_full_eval full_determinism tf32",
    "distributed/": """
        ddp_backend deepspeed fsdp fsdp_config local_rank padding_free parallelism_config torch_compile
        torch_compile_backend torch_compile_mode
    """,
    "train/test_trainer_moe.py": "router_aux_loss_coef",
    "two spellings of one flag above": "activation_checkpointing gradient_checkpointing_kwargs",
    "faults/, train/test_checkpoints.py and train/test_run.py": """
        model_name_or_path model_revision output_dir push_to_hub report_to resume_from_checkpoint
    """,
}


def flags_given(run):
    return [word.removeprefix("--") for word in GIVEN[run].split() if word.startswith("--")]


def test_every_working_flag_is_given_to_a_run_below_or_shown_elsewhere():
    known = {entry.name for kind in (ProFitConfig, ModelConfig) for entry in dataclasses.fields(kind)}
    works = {name for group in ("Trainer", "TRL") for name in WORKS[group].split()} & known
    elsewhere = {name for names in SHOWN_ELSEWHERE.values() for name in names.split()}
    assert works - {name for run in GIVEN for name in flags_given(run)} == elsewhere & known


@pytest.mark.parametrize("run", GIVEN)
def test_every_working_flag_arrives(run, tmp_path, monkeypatch):
    trainers = []

    class Kept(training.ProFitTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(training, "ProFitTrainer", Kept)
    folder, rows = save_tiny_chat_model(tmp_path / "model"), write_questions(tmp_path / "rows.jsonl", 16, ragged=True)
    data = ["--dataset_name", rows, *(["--test_split_size", "4"] if run == "the loop" else [])]
    command = ["train", "--model_name_or_path", folder, *data, "--output_dir", str(tmp_path / "run")]
    asked = parse(GIVEN[run].split())[0].config  # before the run: it resets accelerate's state
    assert run_app([*command, "--objective", "nll", *GIVEN[run].split()]) == 0
    (trainer,) = trainers
    defaults = {entry.name: entry.default for entry in dataclasses.fields(ProFitConfig)}
    for name in flags_given(run):
        if name in defaults and name != "model_init_kwargs":  # which the model is loaded with before
            assert str(getattr(trainer.args, name)) == str(getattr(asked, name)), name
            assert name == "gradient_checkpointing" or getattr(asked, name) != defaults[name], name
    check = check_the_loop if run == "the loop" else check_loading
    check(trainer)


def check_the_loop(trainer):
    """What was done with the flags, as far as it can be seen afterwards."""
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert not optimizer.defaults["fused"]
    assert [optimizer.param_groups[0][name] for name in ("betas", "eps", "weight_decay")] == [(0.8, 0.9), 1e-6, 0.1]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)  # the smallest, at the end
    assert trainer.neftune_noise_alpha == 5
    logs = trainer.state.log_history
    assert [entry["step"] for entry in logs if "loss" in entry] == [1, 2, 4]
    assert [entry["step"] for entry in logs if "eval_loss" in entry] == [0, 2, 4]
    assert trainer.state.num_input_tokens_seen > 0
    assert "before_init_mem_cpu" in logs[-1]
    folder = Path(trainer.args.output_dir)
    (checkpoint,) = folder.glob("checkpoint-*")
    assert trainer.state.best_model_checkpoint == str(checkpoint)
    assert not (checkpoint / "optimizer.pt").exists()
    widths = {batch["input_ids"].shape for batch in trainer.get_train_dataloader()}
    assert {(rows, width % 16) for rows, width in widths} == {(2, 0)}


def check_loading(trainer):
    """What was done with the flags, as far as it can be seen afterwards."""
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
    loader = trainer.get_train_dataloader()
    assert {batch["input_ids"].shape[1] for batch in loader} == {64}
    base = loader.base_dataloader
    assert (base.num_workers, base.prefetch_factor, base.persistent_workers, base.pin_memory) == (1, 3, True, False)
    assert base.multiprocessing_context.get_start_method() == "fork"
    assert (base.batch_sampler.drop_last, base.in_order) == (True, False)
    assert not trainer.accelerator.even_batches
    config = trainer.model.config
    assert config._attn_implementation == "eager"
    adapters = {name.split(".")[-4] for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert adapters == {"q_proj"}
    assert {weight.shape[0] for name, weight in trainer.model.named_parameters() if "lora_A" in name} == {2}
    assert {weight.dtype for name, weight in trainer.model.named_parameters() if "embed" in name} == {torch.bfloat16}
    assert trainer.model.is_gradient_checkpointing
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [trainer.state.max_steps]
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))
