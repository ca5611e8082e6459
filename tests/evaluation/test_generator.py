"""Generators besides hf, against a real server: `transformers serve`, which speaks OpenAI's API."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import transformers

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.runner import evaluate, start_generator
from profit_sft.evaluation.settings import EvalSettings

NEEDED = ("fastapi", "uvicorn", "openai", "aiohttp", "tenacity")


def settings(model, **changes):
    return EvalSettings(**{"model_name_or_path": model, "tasks": ("generated",), "output_dir": "unused", **changes})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of `transformers serve`, which loads the model that a request names, in fp32."""
    if transformers.__version__.startswith("4."):
        pytest.skip(f"no server: that of transformers {transformers.__version__} is another one")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"no server: {', '.join(missing)} not installed. pip install 'transformers[serving]' 'lm-eval[api]'"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen([*command, *flags], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"{address}/health"):
            assert process.poll() is None, log.seek(0) or log.read()
            assert time.monotonic() < deadline, log.seek(0) or log.read()
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def records(folder):
    return [json.loads(line) for line in (folder / "samples" / "generated.jsonl").read_text().splitlines()]


SAME = ("problem", "answer", "correct", "truncated", "extracted", "rule")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("engine", "path", "changes"),
    [
        ("local-chat-completions", "/v1/chat/completions", {}),
        ("local-completions", "/v1/completions", {"apply_chat_template": False}),
    ],
)
def test_a_server_gives_the_greedy_answers_of_hf(server, smollm2_folder, tmp_path, engine, path, changes):
    common = {"greedy": True, "limit": 3, "max_new_tokens": 32, "dtype": "float32", **changes}
    here = evaluate(settings(str(smollm2_folder), output_dir=tmp_path / "hf", **common))
    arguments = {"base_url": server + path, "tokenized_requests": False}
    served = evaluate(
        settings(str(smollm2_folder), output_dir=tmp_path / "on", engine=engine, engine_args=arguments, **common)
    )
    ours, theirs = records(tmp_path / "hf"), records(tmp_path / "on")
    assert [[row[key] for key in SAME] for row in theirs] == [[row[key] for key in SAME] for row in ours]
    assert {row["truncated"] for row in ours} == {True, False}  # or the test sees half of it
    assert served.task("generated").accuracy == here.task("generated").accuracy
    assert (served.model_fingerprint, served.device) == (None, server + path)
    again = evaluate(
        settings(str(smollm2_folder), output_dir=tmp_path / "on", engine=engine, engine_args=arguments, **common)
    )
    assert again.device == server + path


@pytest.mark.slow
def test_samples_of_a_problem_get_seeds_of_their_own_from_a_server(server, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    # This server samples only where the checkpoint says so.
    (model / "generation_config.json").write_text('{"do_sample": true, "pad_token_id": 2}')
    engine = {"engine": "local-chat-completions", "engine_args": {"base_url": f"{server}/v1/chat/completions"}}
    common = {"samples": 3, "top_k": 0, "max_new_tokens": 8, "limit": 1, "batch_size": 1, "temperature": 1.0}
    texts = []
    for name in ("once", "again"):
        evaluate(settings(str(model), output_dir=tmp_path / name, **engine, **common))
        texts.append([row["answer"] for row in records(tmp_path / name)])
    assert len(set(texts[0])) == 3
    assert texts[1] == texts[0]  # one request at a time, and torch's one generator


@pytest.mark.slow
def test_what_a_server_does_not_know_is_named(server, tiny_folder, tmp_path):
    arguments = {"base_url": f"{server}/v1/chat/completions", "max_retries": 1}
    served = settings(tiny_folder, output_dir=tmp_path, engine="local-chat-completions", engine_args=arguments, limit=1)
    with pytest.raises(ConfigurationError, match="422.*Unexpected fields in the request: {'top_k'}"):
        evaluate(served)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "nothing"}, "engine: .*'nothing'.*Supported model names: "),
        ({"engine": "local-chat-completions", "apply_chat_template": False}, "Leave out --no_chat_template"),
        ({"engine": "local-completions", "engine_args": {"batch_size": "many"}}, "cannot be started: "),
    ],
)
def test_a_generator_that_cannot_be_had_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        start_generator(settings("x", **changes))


def test_a_server_that_is_not_there_leaves_a_folder_that_binds_nobody(tiny_folder, tmp_path):
    pytest.importorskip("tenacity")
    nowhere = {"base_url": "http://127.0.0.1:9/v1/chat/completions", "max_retries": 1}
    served = settings("x", output_dir=tmp_path, engine="local-chat-completions", engine_args=nowhere, limit=1)
    with pytest.raises(ConfigurationError, match=r"engine http://127.0.0.1:9/v1.*refused.*the same command goes on"):
        evaluate(served)
    evaluate(settings(tiny_folder, output_dir=tmp_path, limit=1, samples=1, max_new_tokens=2))


def test_the_servers_key_is_written_nowhere(tiny_folder, tmp_path):
    arguments = {"max_length": 400, "auth_token": "sesame"}
    common = {"limit": 1, "samples": 1, "max_new_tokens": 2}
    report = evaluate(settings(tiny_folder, output_dir=tmp_path, engine_args=arguments, **common))
    assert report.settings["engine_args"] == {"max_length": 400}
    assert not any(b"sesame" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
