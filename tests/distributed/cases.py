"""The table: each row is a model under an engine that has to train as one process does, or to be refused by name.

Left out is what dies inside torch or accelerate with TRL's own trainer just as well: DDP's static graph with
accumulation, reentrant checkpointing with `find_unused_parameters`, FSDP2 by SIZE_BASED_WRAP, FSDP2 with adapters and a
tied head among `modules_to_save`, torch's context parallelism on CPUs; and Qwen3 under tensor parallelism, where
transformers' own gradients of q_norm and k_norm are wrong. Layouts of two mesh dimensions need four processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from campaign import sampled

# Half an eps. Each micro-batch's gradient is rounded once in a plain loop; in a trainer so is what reaches the layers
# from the head, and what is reduced.
BF16_ROUNDING = 2.0**-8
# Rows of the plain loops' micro-batches, two a rank. Tensor-parallel ranks are all given all of them.
MICRO_BATCHES = ((0, 1), (2, 3), (4, 5), (6, 7))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row.

    Attributes:
        name: Unique.
        family: Of `tiny_causal_lm`.
        tied: One matrix for embedding and head.
        lora: PEFT's `modules_to_save` beside adapters on all layers; None: full fine-tuning.
        masked: Rows of the global batch that keep no token, besides the two of the model without adapters.
        unlabeled: Rows of the global batch without any label.
        bf16: Computed on copies of the "parameters" in bf16, or under "autocast"; None: in fp32.
        normalize: As the trainer takes it.
        weight_decay: Of AdamW.
        bound: Relative error allowed of loss, gradients and parameters.
        refused: Pattern of the message with which the case is refused before its first step; None: it is right.
    """

    name: str
    family: str = "llama"
    tied: bool = False
    lora: tuple[str, ...] | None = None
    masked: tuple[int, ...] = ()
    unlabeled: tuple[int, ...] = ()
    bf16: str | None = None
    normalize: str = "all"
    weight_decay: float = 0.01
    bound: float = 1e-5
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoopCase(Case):
    """A plain loop: `apply_profit`, torch's own wrapper, two micro-batches a rank, AdamW.

    Attributes:
        engine: "ddp", "fsdp1", "fsdp2" or "tp".
        apply: `apply_profit` "before" the engine wraps the model, or "after".
        unit: What of the model's tail FSDP2 shards as one: "root", the head by itself ("own"), the same beside the
            embedding ("own, embedding too"), or final norm and head ("tail").
        reshard: FSDP2 frees parameters after forward.
        sync_each: Reduce gradients after every micro-batch, and not only after the last.
        checkpointing: `use_reentrant` of gradient checkpointing; None: none.
        compiled: torch.compile with the backend aot_eager.
        chunk_size: Of `apply_profit`.
        options: Arguments of the wrapper.
    """

    engine: str
    apply: str = "before"
    unit: str = "root"
    reshard: bool = True
    sync_each: bool = True
    checkpointing: bool | None = None
    compiled: bool = False
    chunk_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainerCase(Case):
    """A trainer under what the launcher set up, evaluated between its two steps.

    Attributes:
        trainer: "profit", or "transformers" with `apply_profit`.
        by_name: The model is given as a folder, as `profit train` does, so that ZeRO-3 builds it in parts.
        settings: Fields of `ProFitConfig`.
        environment: Variables in place of the launcher's.
        count_gathers: Count the run's all-gathers.
    """

    trainer: str = "profit"
    by_name: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    count_gathers: bool = False


CASES = 12  # of a table, outside the campaign
HEAD = ("lm_head",)
FIRST_RANK, SECOND_RANK = (0, 2, 4, 6), (1, 3, 5, 7)  # rows in a trainer
EVERY_ROW = tuple(range(8))
WHOLE_BATCHES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


def checkpointing(*, reentrant):
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}


def _sampled(tables: Mapping[str, Sequence[Case]]) -> dict[str, list[Case]]:
    """Return a sample of each table; what is counted is compared between cases, so none of it is left out."""
    found = {}
    for name, cases in tables.items():
        sample = sampled(cases, CASES)
        found[name] = [case for case in cases if case in sample or getattr(case, "count_gathers", False)]
    return found


def _fsdp2_loops():
    for family, tied, apply, reshard in product(("llama", "qwen3"), (False, True), ("before", "after"), (True, False)):
        name = f"{family}, {'tied' if tied else 'untied'}, applied {apply}{'' if reshard else ', not resharded'}"
        yield LoopCase(name=name, engine="fsdp2", family=family, tied=tied, apply=apply, reshard=reshard)
    for family, tied in (("llama", False), ("qwen3", True)):
        model = {"engine": "fsdp2", "family": family, "tied": tied}
        for unit in ("root", "own", "tail"):
            name = f"{family}, {'tied' if tied else 'untied'}, {unit} unit"
            if unit != "root":
                yield LoopCase(name=name, unit=unit, **model)
                yield LoopCase(name=f"{name}, not resharded", unit=unit, reshard=False, **model)
                yield LoopCase(name=f"{name}, applied after", unit=unit, apply="after", **model)
            yield LoopCase(name=f"{name}, reduced at the end", unit=unit, sync_each=False, **model)
            yield LoopCase(name=f"{name}, bf16", unit=unit, bf16="parameters", bound=BF16_ROUNDING, **model)
    own = {"engine": "fsdp2", "unit": "own"}
    yield LoopCase(name="llama, untied, own unit, embedding too", engine="fsdp2", unit="own, embedding too")
    yield LoopCase(name="opt, untied, own unit", family="opt", **own)
    yield LoopCase(name="adapters and the head, own unit", lora=HEAD, **own)
    for reentrant in (True, False):
        kind = "reentrant" if reentrant else "non-reentrant"
        yield LoopCase(name=f"own unit, {kind} checkpointing", checkpointing=reentrant, **own)
    yield LoopCase(name="own unit, a micro-batch without labels", unlabeled=(2, 3), **own)
    yield LoopCase(name="own unit, first rank without labels", unlabeled=(0, 1, 2, 3), **own)
    yield LoopCase(name="own unit, second rank without labels", unlabeled=(4, 5, 6, 7), **own)
    yield LoopCase(name="own unit, second rank with nothing kept", unlabeled=(6, 7), **own)


FSDP2_LOOPS = list(_fsdp2_loops())

DDP_LOOPS = [
    LoopCase(name="llama, untied", engine="ddp"),
    LoopCase(name="qwen3, tied", engine="ddp", family="qwen3", tied=True),
    LoopCase(name="opt, untied", engine="ddp", family="opt"),
    LoopCase(name="applied after", engine="ddp", apply="after"),
    LoopCase(name="reduced at the end", engine="ddp", sync_each=False),
    LoopCase(name="static graph", engine="ddp", options={"static_graph": True}),
    LoopCase(name="unused parameters", engine="ddp", options={"find_unused_parameters": True}),
    LoopCase(name="reentrant checkpointing", engine="ddp", checkpointing=True),
    LoopCase(
        name="static graph, reentrant checkpointing", engine="ddp", checkpointing=True, options={"static_graph": True}
    ),
    LoopCase(
        name="unused parameters, non-reentrant checkpointing",
        engine="ddp",
        checkpointing=False,
        options={"find_unused_parameters": True},
    ),
    LoopCase(name="a micro-batch without labels", engine="ddp", unlabeled=(2, 3)),
    LoopCase(name="a rank without labels", engine="ddp", unlabeled=(4, 5, 6, 7)),
    LoopCase(name="a rank with nothing kept", engine="ddp", unlabeled=(6, 7)),
    LoopCase(name="adapters", engine="ddp", lora=()),
    LoopCase(name="adapters and the head", engine="ddp", lora=HEAD),
    # Compiling takes half a minute. An untied head is compiled under a trainer.
    LoopCase(name="compiled, qwen3, tied", engine="ddp", compiled=True, family="qwen3", tied=True),
]

# Norms lie in one parameter with the rest, so they decay alike. Gradients cannot be read there, the parameters can.
FLAT = {"weight_decay": 0.0}

FSDP1_LOOPS = [
    LoopCase(name="root", engine="fsdp1", options={"use_orig_params": True}),
    LoopCase(name="tied", engine="fsdp1", family="qwen3", tied=True, options={"use_orig_params": True}),
    LoopCase(name="own unit", engine="fsdp1", unit="own", options={"use_orig_params": True}),
    LoopCase(
        name="own unit, applied after", engine="fsdp1", unit="own", apply="after", options={"use_orig_params": True}
    ),
    LoopCase(name="flat parameters", engine="fsdp1", options={"use_orig_params": False}, **FLAT),
    LoopCase(name="own unit, flat parameters", engine="fsdp1", unit="own", options={"use_orig_params": False}, **FLAT),
    LoopCase(name="reduced at the end", engine="fsdp1", unit="own", sync_each=False, options={"use_orig_params": True}),
]

TP_LOOPS = [
    LoopCase(name="llama, untied", engine="tp"),
    LoopCase(name="llama, tied", engine="tp", tied=True),
    LoopCase(name="nothing kept in a micro-batch, rows without labels", engine="tp", unlabeled=(2, 3)),
]

# Their all-gathers are counted, with the loss in one chunk and in several, and with the model's own loss.
GATHERS = [
    LoopCase(name="fsdp2, own unit", engine="fsdp2", unit="own"),
    LoopCase(name="fsdp2, own unit, reduced at the end", engine="fsdp2", unit="own", sync_each=False),
    LoopCase(name="fsdp2, tail unit", engine="fsdp2", unit="tail"),
    LoopCase(name="fsdp2, tied", engine="fsdp2", family="qwen3", tied=True),
    LoopCase(name="fsdp1, own unit", engine="fsdp1", unit="own", options={"use_orig_params": True}),
]

LOOPS = _sampled({"loop-fsdp2": FSDP2_LOOPS, "loop-ddp": DDP_LOOPS, "loop-fsdp1": FSDP1_LOOPS, "loop-tp": TP_LOOPS})

DDP_TRAINERS = [
    TrainerCase(name="llama, untied"),
    TrainerCase(name="qwen3, tied", family="qwen3", tied=True),
    TrainerCase(name="kept", normalize="kept"),
    TrainerCase(name="kept, qwen3, tied", normalize="kept", family="qwen3", tied=True),
    TrainerCase(name="one micro-batch", settings=WHOLE_BATCHES),
    TrainerCase(
        name="reduced after each micro-batch",
        settings={"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
    ),
    TrainerCase(name="a row without labels", unlabeled=(7,)),
    TrainerCase(name="a row without labels, kept", unlabeled=(7,), normalize="kept"),
    TrainerCase(name="a rank without labels", unlabeled=SECOND_RANK),
    TrainerCase(name="a rank without labels, kept", unlabeled=SECOND_RANK, normalize="kept"),
    TrainerCase(name="second rank with nothing kept", masked=SECOND_RANK),
    TrainerCase(name="first rank with nothing kept, kept", masked=FIRST_RANK, normalize="kept"),
    TrainerCase(name="nothing kept", masked=EVERY_ROW),
    TrainerCase(name="nothing kept, kept", masked=EVERY_ROW, normalize="kept"),
    TrainerCase(name="unused parameters", settings={"ddp_find_unused_parameters": True}),
    TrainerCase(name="static graph", settings={**WHOLE_BATCHES, "ddp_static_graph": True}),
    TrainerCase(name="reentrant checkpointing", settings=checkpointing(reentrant=True)),
    TrainerCase(name="non-reentrant checkpointing", settings=checkpointing(reentrant=False)),
    TrainerCase(
        name="non-reentrant checkpointing, unused parameters",
        settings={**checkpointing(reentrant=False), "ddp_find_unused_parameters": True},
    ),
    TrainerCase(name="adapters", lora=()),
    TrainerCase(name="adapters and the head", lora=HEAD),
    TrainerCase(name="adapters and the head, kept", lora=HEAD, normalize="kept"),
    TrainerCase(name="adapters and the tied head", lora=HEAD, tied=True),
    TrainerCase(name="adapters, checkpointing", lora=(), settings={"gradient_checkpointing": True}),
    TrainerCase(
        name="padding-free",
        settings={
            "padding_free": True,
            "max_length": None,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
    ),
    TrainerCase(name="bf16", settings={"bf16": True, "use_cpu": True}, bf16="autocast", bound=4 * BF16_ROUNDING),
    TrainerCase(name="compiled", settings={"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    TrainerCase(name="transformers' Trainer", trainer="transformers"),
    TrainerCase(name="transformers' Trainer, qwen3, tied", trainer="transformers", family="qwen3", tied=True),
]

FSDP2_TRAINERS = [
    TrainerCase(name="llama, untied"),
    TrainerCase(name="qwen3, tied", family="qwen3", tied=True),
    TrainerCase(name="not resharded", environment={"FSDP_RESHARD_AFTER_FORWARD": "false"}),
    TrainerCase(name="kept", normalize="kept"),
    TrainerCase(name="kept, qwen3, tied", normalize="kept", family="qwen3", tied=True),
    TrainerCase(name="one micro-batch", settings=WHOLE_BATCHES),
    TrainerCase(name="a row without labels", unlabeled=(7,)),
    TrainerCase(name="a rank without labels", unlabeled=SECOND_RANK),
    TrainerCase(name="second rank with nothing kept", masked=SECOND_RANK),
    TrainerCase(name="first rank with nothing kept, kept", masked=FIRST_RANK, normalize="kept"),
    TrainerCase(name="nothing kept", masked=EVERY_ROW),
    TrainerCase(name="nothing kept, kept", masked=EVERY_ROW, normalize="kept"),
    TrainerCase(name="one unit", environment={"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}),
    TrainerCase(name="every Linear a unit", environment={"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer,Linear"}),
    TrainerCase(name="opt, untied", family="opt"),
    TrainerCase(name="opt, tied", family="opt", tied=True),
    TrainerCase(name="checkpointing", settings={"gradient_checkpointing": True}),
    TrainerCase(name="FSDP's checkpointing", environment={"FSDP_ACTIVATION_CHECKPOINTING": "true"}),
    TrainerCase(name="bf16", settings={"bf16": True, "use_cpu": True}, bf16="parameters", bound=4 * BF16_ROUNDING),
    TrainerCase(name="adapters", lora=()),
    TrainerCase(name="adapters and the head", lora=HEAD),
    TrainerCase(name="adapters and the head, kept", lora=HEAD, normalize="kept"),
    TrainerCase(
        name="adapters and the head, loaded by every rank",
        lora=HEAD,
        environment={"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
    ),
    TrainerCase(name="transformers' Trainer", trainer="transformers"),
    TrainerCase(
        name="context parallelism",
        settings={"gradient_accumulation_steps": 8, "pad_to_multiple_of": 4},
        environment={"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"},
        refused="cp_size=2: under context parallelism",
    ),
]

FSDP1_TRAINERS = [
    TrainerCase(name="llama, untied"),
    TrainerCase(name="qwen3, tied", family="qwen3", tied=True),
    TrainerCase(name="kept", normalize="kept"),
    TrainerCase(name="gradients sharded", environment={"FSDP_RESHARD_AFTER_FORWARD": "SHARD_GRAD_OP"}),
    TrainerCase(name="one micro-batch", settings=WHOLE_BATCHES),
    TrainerCase(name="a row without labels", unlabeled=(7,)),
    TrainerCase(name="one unit", environment={"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}),
    TrainerCase(name="every Linear a unit", environment={"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer,Linear"}),
    TrainerCase(
        name="the head a unit",
        environment={"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "16000"},
    ),
    TrainerCase(
        name="the tied head a unit",  # FSDP1 shares no parameter between units
        tied=True,
        environment={"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "16000"},
        refused=r"the language-model head is not whole while its module is called \(shape \(\d+,\)\)",
    ),
    TrainerCase(name="flat parameters", environment={"FSDP_USE_ORIG_PARAMS": "false"}, **FLAT),
    TrainerCase(name="flat parameters, kept", normalize="kept", environment={"FSDP_USE_ORIG_PARAMS": "false"}, **FLAT),
    TrainerCase(name="adapters", lora=()),
    TrainerCase(name="adapters and the head", lora=HEAD),
]


def _zero(stage, **settings):
    return {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), **settings}


_STEP = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}

DEEPSPEED_TRAINERS = [
    TrainerCase(name="zero-1, llama, untied", environment=_zero(1)),
    TrainerCase(name="zero-1, one micro-batch", settings=WHOLE_BATCHES, environment=_zero(1, **_STEP)),
    TrainerCase(name="zero-2, llama, untied", environment=_zero(2)),
    TrainerCase(name="zero-2, qwen3, tied", family="qwen3", tied=True, environment=_zero(2)),
    TrainerCase(name="zero-2, a row without labels", unlabeled=(7,), environment=_zero(2)),
    TrainerCase(name="zero-2, checkpointing", settings={"gradient_checkpointing": True}, environment=_zero(2)),
    TrainerCase(name="zero-2, adapters", lora=(), environment=_zero(2)),
    TrainerCase(name="zero-2, adapters and the head", lora=HEAD, environment=_zero(2)),
    TrainerCase(
        name="zero-2, kept",
        normalize="kept",
        environment=_zero(2),
        refused="normalize='kept' .* not exact with DeepSpeed",
    ),
    TrainerCase(
        name="sequence parallelism",
        settings={"gradient_accumulation_steps": 8, "pad_to_multiple_of": 32},
        environment=_zero(
            2,
            ACCELERATE_USE_PARALLELISM_CONFIG="true",
            PARALLELISM_CONFIG_SP_SIZE="2",
            PARALLELISM_CONFIG_SP_BACKEND="deepspeed",
            PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION="sdpa",
            ACCELERATE_GRADIENT_ACCUMULATION_STEPS="8",
        ),
        refused="sp_size=2: under sequence parallelism",
    ),
]


def _zero3(**given):
    return TrainerCase(environment=_zero(3, **given.pop("environment", {})), **given)


ZERO3_TRAINERS = [
    _zero3(name="llama, untied"),
    _zero3(name="qwen3, tied", family="qwen3", tied=True),
    _zero3(name="adapters and the head", lora=HEAD),
    _zero3(name="by name, llama, untied", by_name=True),
    _zero3(name="by name, qwen3, tied", by_name=True, family="qwen3", tied=True),
    _zero3(name="by name, loss in one chunk", by_name=True, count_gathers=True),
    _zero3(name="by name, loss in several chunks", by_name=True, count_gathers=True, settings={"loss_chunk_size": 4}),
    _zero3(name="by name, one micro-batch", by_name=True, settings=WHOLE_BATCHES, environment=_STEP),
    _zero3(name="by name, a row without labels", by_name=True, unlabeled=(7,)),
    _zero3(name="by name, a rank without labels", by_name=True, unlabeled=SECOND_RANK),
    _zero3(name="by name, second rank with nothing kept", by_name=True, masked=SECOND_RANK),
    _zero3(name="by name, nothing kept", by_name=True, masked=EVERY_ROW),
    _zero3(name="by name, reentrant checkpointing", by_name=True, settings=checkpointing(reentrant=True)),
    _zero3(name="by name, non-reentrant checkpointing", by_name=True, settings=checkpointing(reentrant=False)),
    _zero3(name="by name, adapters", by_name=True, lora=()),
    _zero3(name="by name, adapters and the head", by_name=True, lora=HEAD),
    _zero3(
        name="by name, kept",
        by_name=True,
        normalize="kept",
        refused="normalize='kept' .* not exact with DeepSpeed",
    ),
]

TP_TRAINERS = [
    TrainerCase(name="llama, untied", by_name=True, settings={"gradient_accumulation_steps": 8}),
    TrainerCase(name="llama, tied", by_name=True, tied=True, settings={"gradient_accumulation_steps": 8}),
    TrainerCase(name="kept", by_name=True, normalize="kept", settings={"gradient_accumulation_steps": 8}),
    TrainerCase(name="a row without labels", by_name=True, unlabeled=(7,), settings={"gradient_accumulation_steps": 8}),
]

TRAINERS = _sampled(
    {
        "trainer-ddp": DDP_TRAINERS,
        "trainer-fsdp2": FSDP2_TRAINERS,
        "trainer-fsdp1": FSDP1_TRAINERS,
        "trainer-deepspeed": DEEPSPEED_TRAINERS,
        "trainer-zero3": ZERO3_TRAINERS,
        "trainer-tp": TP_TRAINERS,
    }
)
