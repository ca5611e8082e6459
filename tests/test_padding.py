"""Skipped padding: the loss and the gradients of the padded batch, from fewer tokens."""

import itertools

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tiny
from profit_sft import DFT, NLL, ProFit, apply_profit
from profit_sft.head import causal_lm, label_statistics, selective_head
from profit_sft.head_forward import _CACHE
from profit_sft.head_module import backbone_of
from profit_sft.loss.selective import shifted
from profit_sft.padding import TokenRows, rows_are_independent

SIZES = {**tiny.SIZES, "num_hidden_layers": 4}
BALANCED = {"output_router_logits": True, "router_aux_loss_coef": 0.1}
SKIPPING = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2_moe": {**tiny.EXPERTS, "shared_expert_intermediate_size": 24},  # its window of 0 is none
    "qwen3": {},
    "qwen3_moe": tiny.EXPERTS,
    "qwen3_moe, balanced": {**tiny.EXPERTS, **BALANCED},
    "mixtral, balanced": {"num_local_experts": 4, "num_experts_per_tok": 2, **BALANCED},
    "olmo2": {},
    "gemma3_text": {"sliding_window": 64},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.3},
    "phi3": {},
    "mistral": {"sliding_window": 64},
    "gpt_neox": {},
    "phi": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},  # positions are learned
}
# What goes from token to token elsewhere than in attention.
NOT_SKIPPING = {
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen3_next": {**tiny.EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
}


def make(family, attention="sdpa", dtype=None, **overrides):
    if family.partition(",")[0] not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(0)
    if dtype is None:  # experts are multiplied in float32 at most
        dtype = torch.float32 if "num_experts_per_tok" in SKIPPING.get(family, {}) else torch.float64
    settings = {**SIZES, **(SKIPPING | NOT_SKIPPING).get(family, {}), **overrides}
    config = AutoConfig.for_model(family.partition(",")[0], **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).train()


def batch(lengths=(9, 17, 4), *, size=17, left=False, behind=0, seed=1):
    """Rows of these lengths, of which the first two tokens and the last `behind` have no labels."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, SIZES["vocab_size"], (len(lengths), size), generator=generator)
    column, length = torch.arange(size), torch.tensor(lengths)[:, None]
    place = column - (size - length if left else 0)
    mask = (place >= 0) & (place < length)
    labels = input_ids.masked_fill(~mask | (place < 2) | (place >= length - behind), -100)
    return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": labels}


def tokens_of_layers(model):
    """Return the list to which each call of the first layer adds the number of its tokens."""
    seen = []
    backbone = backbone_of(causal_lm(model))
    layer = next(module for name, module in backbone.named_modules() if name.endswith(".0"))
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    return seen


def step(model, inputs, *, skip_padding, **call):
    selective_head(model).skip_padding = skip_padding
    model.zero_grad()
    output = model(**inputs, **call)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output, gradients


def assert_same_step(model, inputs, bound=None, **call):
    bound = (1e-6 if model.dtype == torch.float64 else 1e-5) if bound is None else bound
    expected, expected_gradients = step(model, inputs, skip_padding=False, **call)
    found, gradients = step(model, inputs, skip_padding=True, **call)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=bound)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= bound * gradient.norm() + 1e-12, name
    for name in ("log_probs", "token_weights", "label_mask"):
        values, others = (getattr(output.selective, name).double() for output in (found, expected))
        assert torch.allclose(values, others, rtol=0, atol=max(bound, 1e-6), equal_nan=True), name
    return found


@pytest.mark.parametrize("family", SKIPPING)
def test_loss_and_gradients_are_those_of_the_padded_batch(family):
    model, inputs = make(family), batch()
    median = label_statistics(model, **inputs).log_probs[inputs["labels"].roll(-1) != -100].median().exp().item()
    apply_profit(model, ProFit(threshold=median * 1.0001))
    found = assert_same_step(model, inputs)
    assert 0 < found.selective.num_kept < found.selective.num_labels
    tokens = tokens_of_layers(model)
    step(model, inputs, skip_padding=True)
    balanced = "balanced" in family
    # Their layers take no further arguments there.
    if family in ("gpt2", "qwen2_moe") and transformers.__version__.startswith("4."):
        assert tokens == [51]
        return
    # Of each row all but the last token, which predicts nothing; experts' loads are counted over every token.
    assert tokens == [30 if balanced else 27]


@pytest.mark.parametrize("family", NOT_SKIPPING)
def test_a_model_that_mixes_rows_runs_the_padded_batch(family):
    model, inputs = apply_profit(make(family, dtype=torch.float32), NLL()), batch()
    tokens = tokens_of_layers(model)
    assert_same_step(model, inputs, bound=0)
    assert tokens[-1] == 51


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_rows_mix_the_trial_says_so(dtype):
    for family, expected in [("llama", True), ("qwen3_moe", True), ("lfm2", False), ("falcon_h1", False)]:
        backbone = backbone_of(make(family, dtype=dtype).eval())
        assert rows_are_independent(backbone, SIZES["vocab_size"], torch.device("cpu")) is expected, family


@pytest.mark.parametrize(
    ("left", "behind", "shift"), [*itertools.product([False, True], [0, 2], [False, True])], ids=str
)
def test_every_layout_of_a_batch(left, behind, shift):
    model, inputs = apply_profit(make("llama"), ProFit(threshold=0.004)), batch(left=left, behind=behind)
    if shift:
        inputs["shift_labels"] = shifted(inputs.pop("labels"), -100)
    tokens = tokens_of_layers(model)
    assert_same_step(model, inputs)
    last_labels = (8 - behind, 16 - behind, 3 - behind)  # counted from a row's beginning, whose second has none
    assert tokens[-1] == sum(last for last in last_labels if last >= 2)


def test_learned_positions_are_those_of_the_padded_batch():
    assert_same_step(apply_profit(make("gpt2"), NLL()), batch(left=True))


@pytest.mark.parametrize("lengths", [(17, 2, 9), (5, 1, 17), (2, 2, 2), (17, 17, 17), (0, 6, 0)], ids=str)
def test_rows_without_labels_and_of_every_length(lengths):
    inputs = batch(lengths)
    assert_same_step(apply_profit(make("llama"), NLL()), inputs)


def test_a_mask_with_holes():
    inputs = batch()
    inputs["attention_mask"][1, 3:6] = 0
    inputs["labels"][1, 4:7] = -100
    model = apply_profit(make("llama"), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, inputs)
    assert tokens[-1] == 24


def test_a_label_that_padding_predicts_leaves_the_batch_as_it_is():
    inputs = batch(left=True)
    inputs["labels"][2, 13] = inputs["input_ids"][2, 13]  # the first token of the row
    model = apply_profit(make("llama"), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, inputs, bound=0)
    assert tokens[-1] == 51


def test_weights_of_the_data_stay_with_their_tokens():
    inputs = batch()
    generator = torch.Generator().manual_seed(3)
    inputs["reference_log_probs"] = -10 * torch.rand(inputs["labels"].shape, generator=generator)
    model = apply_profit(make("llama"), ProFit(threshold=0.01, mask_source="reference"))
    found = assert_same_step(model, inputs)
    kept = (inputs["reference_log_probs"] >= torch.tensor(0.01).log()) & (inputs["labels"] != -100)
    assert torch.equal(found.selective.token_weights > 0, shifted(kept.long(), 0).bool())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_are_computed_again_by_rows(reentrant):
    model = apply_profit(make("llama"), NLL())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    tokens = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[:2].numel()))
    assert_same_step(model, batch())
    assert tokens[-2:] == [27, 27]  # once more in the backward


def test_an_adapter():
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(make("llama"), config).double()
    assert_same_step(apply_profit(model, DFT()), batch())


@pytest.mark.skipif(
    "alora_invocation_tokens" not in LoraConfig.__dataclass_fields__, reason="this version of PEFT has no aLoRA"
)
def test_an_adapter_that_begins_at_a_place_of_each_row():
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", alora_invocation_tokens=[7])
    model = apply_profit(get_peft_model(make("llama"), config), NLL())
    tokens = tokens_of_layers(model)
    step(model, batch(), skip_padding=True)
    assert tokens == [51]


def test_under_autocast():
    model = apply_profit(make("llama", dtype=torch.float32), NLL())
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_step(model, batch(), bound=0.02)
        tokens = tokens_of_layers(model)
        step(model, batch(), skip_padding=True)
    assert tokens == [27]


def test_rows_longer_than_the_window_run_padded():
    model = apply_profit(make("mistral", sliding_window=8), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, batch())
    assert tokens[-1] == 51
    assert_same_step(model, batch((9, 5, 7, 4), size=12))
    assert tokens[-1] == 21  # the row of nine runs its first eight tokens


@pytest.mark.parametrize(
    "further",
    [
        {"position_ids": torch.arange(17)[None].expand(3, 17)},
        {"output_hidden_states": True},
        {"output_attentions": True},
    ],
    ids=lambda further: next(iter(further)),
)
def test_what_belongs_to_the_padded_batch_leaves_it_as_it_is(further):
    model = apply_profit(make("llama", "sdpa" if "output_attentions" not in further else "eager"), NLL())
    tokens = tokens_of_layers(model)
    output, _ = step(model, batch(), skip_padding=True, **further)
    assert tokens[-1] == 51
    if "output_hidden_states" in further:
        assert {states.shape[:2] for states in output.hidden_states} == {(3, 17)}


def test_hidden_states_that_the_configuration_asks_for():
    model = make("llama")
    model.config.output_hidden_states = True
    output, _ = step(apply_profit(model, NLL()), batch(), skip_padding=True)
    assert {states.shape[:2] for states in output.hidden_states} == {(3, 17)}


def test_a_look_at_labels_skips_padding_as_well():
    model, inputs = make("llama"), batch()
    tokens = tokens_of_layers(model)
    found = label_statistics(model, **inputs)
    assert tokens[-1] == 27
    with torch.no_grad():
        log_probs = model.eval()(**{**inputs, "labels": None}).logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    own = log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    assert torch.allclose(found.log_probs[:, :-1].double()[labels != -100], own[labels != -100], atol=1e-5)


def test_places_of_tokens():
    needed = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]).bool()
    rows = TokenRows.of(needed)
    assert rows.in_batch.tolist() == [1, 2, 8, 10, 11]
    assert rows.in_rows.tolist() == [0, 1, 6, 7, 8]
    assert rows.longest == 3
    values = torch.randn(1, 5, 2)
    assert torch.equal(rows.taken(rows.laid_out(values)), values)
    assert torch.equal(rows.in_place(values).flatten(0, 1)[rows.in_batch], values[0])


def test_a_model_that_counts_positions_from_the_first_token_runs_the_padded_batch():
    model = apply_profit(make("opt", ffn_dim=48, word_embed_proj_dim=32, dropout=0.0), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, batch(left=True), bound=0)
    assert tokens[-1] == 51


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
DYNAMIC = {"type": "dynamic", "factor": 4.0}
TEMPERATURE = {"attn_temperature_tuning": True, "no_rope_layers": [0, 1] * 2, "intermediate_size_mlp": 48}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        # The padded batch reaches the length from which on frequencies change, and what is run of it does not.
        ("phi3", {"rope_scaling": LONGROPE, "max_position_embeddings": 64, "original_max_position_embeddings": 16}),
        ("llama", {"rope_scaling": DYNAMIC, "max_position_embeddings": 16}),
        # The other way round: these layers take the place in the call for the position.
        ("llama4_text", {**TEMPERATURE, "floor_scale": 20, "num_local_experts": 2}),
    ],
    ids=["longrope", "dynamic", "temperature"],
)
def test_layers_that_go_by_the_length_of_a_call(family, settings):
    model = apply_profit(make(family, dtype=torch.float32, **settings), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, batch(), bound=0)
    assert tokens[-1] == 51
    assert_same_step(model, batch((5, 3, 7), size=12))
    assert tokens[-1] == 12


def test_a_hole_counts_to_the_window():
    inputs = batch((9, 16, 4))
    inputs["attention_mask"][1, 3:13] = 0
    inputs["labels"][1, 3:14] = -100
    model = apply_profit(make("mistral", sliding_window=8), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, inputs, bound=0)
    assert tokens[-1] == 51


def test_attention_that_is_changed_later():
    model = apply_profit(make("llama"), NLL())
    assert_same_step(model, batch())
    model.set_attn_implementation("eager")
    tokens = tokens_of_layers(model)
    assert_same_step(model, batch(), bound=0)
    assert tokens[-1] == 51


def test_attention_that_another_library_sets(monkeypatch):
    model = apply_profit(make("llama"), NLL())
    assert_same_step(model, batch())
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", sdpa_attention_forward)
    tokens = tokens_of_layers(model)
    assert_same_step(model, batch())
    assert tokens[-1] == 27


def test_masks_by_the_type_of_layer_leave_the_batch_as_it_is():
    inputs = batch()
    causal = torch.ones(17, 17).tril().bool() & inputs["attention_mask"].bool()[:, None, None]
    inputs["attention_mask"] = {"full_attention": causal, "sliding_attention": causal}
    model = apply_profit(make("gemma3_text"), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, inputs, bound=0)
    assert tokens[-1] == 51


def test_a_cache_is_of_the_padded_batch():
    output, _ = step(apply_profit(make("llama"), NLL()), batch(), skip_padding=True, use_cache=True)
    assert output[_CACHE].layers[0].keys.shape[::2] == (3, 17)


def test_attention_that_chooses_what_it_sees_runs_the_padded_batch():
    sizes = {
        **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16},
        **{"index_topk": 8, "index_n_heads": 2, "index_head_dim": 8, "mlp_layer_types": ["dense"] * 4},
        **{"num_key_value_heads": 4, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    }
    model = apply_profit(make("glm_moe_dsa", dtype=torch.float32, **sizes), NLL())
    tokens = tokens_of_layers(model)
    assert_same_step(model, batch(), bound=0)
    assert tokens[-1] == 51
