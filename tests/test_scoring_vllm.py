"""The engine `vllm` against a recorded contract.

vLLM does not run here. The stand-in has the names, arguments and result fields that its documentation gives for
`LLM`, `SamplingParams`, `RequestOutput.prompt_logprobs` and `Logprob` (releases 0.10 to 0.15).
"""

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from profit_sft.data import DataSettings
from profit_sft.errors import ConfigurationError
from profit_sft.scores.engine import LabelPositions
from profit_sft.scores.score import ScoreSettings, score_dataset
from profit_sft.scoring_vllm import vllm_engine
from tiny import save_tiny_chat_model


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class SamplingParams:
    def __init__(self, *, max_tokens, temperature, prompt_logprobs, detokenize):
        assert max_tokens >= 1
        self.temperature = temperature
        self.prompt_logprobs = prompt_logprobs


class LLM:
    """Gives token t of a prompt p = 1/2 and rank 1 if t is even, else 1/8 and rank 3 behind token t + 1 of p = 3/4."""

    made = None

    def __init__(self, model, *, dtype, revision, trust_remote_code, max_model_len):
        self.max_model_len = max_model_len
        LLM.made = self

    def generate(self, prompts, sampling_params, *, use_tqdm):
        assert sampling_params.prompt_logprobs == 1
        return [self._answer(prompt["prompt_token_ids"]) for prompt in prompts]

    def _answer(self, token_ids):
        assert len(token_ids) < self.max_model_len
        entries = [None]
        for token in token_ids[1:]:
            if token % 2:
                entries.append({token: Logprob(np.log(1 / 8), 3), token + 1: Logprob(np.log(3 / 4), 1)})
            else:
                entries.append({token: Logprob(np.log(1 / 2), 1)})
        return types.SimpleNamespace(prompt_token_ids=token_ids, prompt_logprobs=entries)


@pytest.fixture
def recorded(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.usefixtures("recorded")
def test_label_tokens_are_picked_out_of_the_prompt():
    engine = vllm_engine("model", longest=5)
    assert LLM.made.max_model_len == 6
    first = LabelPositions(input_ids=np.array([8, 3, 4, 7, 6], np.int32), positions=np.array([2, 3], np.int32))
    second = LabelPositions(input_ids=np.array([1, 2], np.int32), positions=np.array([1], np.int32))
    found = engine([first, second])
    np.testing.assert_allclose(np.exp(found[0].log_probs), [1 / 2, 1 / 8], rtol=1e-6)
    assert found[0].rank.tolist() == [1, 3]
    assert found[0].top1.tolist() == [4, 8]
    assert np.isnan(found[0].entropy).all()
    assert (found[1].rank.tolist(), found[1].top1.tolist()) == ([1], [2])


@pytest.mark.usefixtures("recorded")
def test_of_two_tokens_as_likely_the_first_in_rank_is_the_likeliest(monkeypatch):
    tie = [None, {5: Logprob(-0.7, 2), 3: Logprob(-0.7, 1)}]
    monkeypatch.setattr(LLM, "_answer", lambda self, token_ids: types.SimpleNamespace(prompt_logprobs=tie))
    example = LabelPositions(input_ids=np.array([1, 5], np.int32), positions=np.array([1], np.int32))
    (found,) = vllm_engine("model", longest=2)([example])
    assert (found.top1.tolist(), found.rank.tolist()) == ([3], [2])


@pytest.mark.usefixtures("recorded")
def test_an_answer_of_another_length_is_not_taken(monkeypatch):
    monkeypatch.setattr(LLM, "_answer", lambda self, token_ids: types.SimpleNamespace(prompt_logprobs=[None]))
    example = LabelPositions(input_ids=np.array([1, 5], np.int32), positions=np.array([1], np.int32))
    with pytest.raises(RuntimeError, match="returned 1 prompt log-probabilities for 2 tokens"):
        vllm_engine("model", longest=2)([example])


@pytest.mark.usefixtures("recorded")
def test_a_data_set_is_scored_without_entropy(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "ab", "completion": "cd"}\n' * 3)
    settings = ScoreSettings(
        model_name_or_path=save_tiny_chat_model(tmp_path / "model"),
        data=DataSettings(dataset_name=str(tmp_path / "train.jsonl")),
        output_dir=tmp_path / "out",
        engine="vllm",
        shard_rows=2,
    )
    scores = score_dataset(settings)
    even = scores.column("token_ids") % 2 == 0
    np.testing.assert_allclose(np.exp(scores.column("log_probs")), np.where(even, 1 / 2, 1 / 8), rtol=1e-6)
    assert np.isnan(scores.column("entropy")).all()
    assert scores.manifest.engine == "vllm"


@pytest.mark.usefixtures("recorded")
def test_an_adapter_is_refused_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is a LoRA adapter. Merge it first, or use --engine hf"):
        vllm_engine(str(tmp_path), longest=2)


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigurationError, match=r"--engine hf does not\).*vllm is not installed.*\[vllm\]"):
        vllm_engine("model", longest=2)
