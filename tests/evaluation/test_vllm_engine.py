"""What is said without vLLM, and what it is asked for with it."""

from importlib.util import find_spec

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.engine import Request, load_engine
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.evaluation.vllm_engine import _sampling_arguments


def settings(**changes):
    return EvalSettings(
        model_name_or_path="embedded", tasks=("generated",), output_dir="unused", engine="vllm", **changes
    )


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_message_names_the_extra():
    with pytest.raises(ConfigurationError, match=r"the engine hf does not.*vllm is not installed.*\[vllm\]"):
        load_engine(settings())


def test_each_request_has_its_own_seed_and_the_settings_decoding():
    found = _sampling_arguments(settings(temperature=0.5, top_k=7), Request("two", 42), 100)
    assert (found["seed"], found["temperature"], found["top_p"], found["top_k"]) == (42, 0.5, 0.8, 7)
    assert (found["do_sample"], found["max_gen_toks"], found["until"]) == (True, 100, [])
    greedy = _sampling_arguments(settings(greedy=True), Request("two", 42), 100)
    assert greedy == {"do_sample": False, "max_gen_toks": 100, "until": [], "skip_special_tokens": True}
