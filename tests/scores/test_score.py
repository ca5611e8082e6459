"""`score_dataset` on tiny models and real processes; the command line is in tests/cli/test_score.py."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forks import run_ranks, start
from profit_sft.cli.app import run_app
from profit_sft.data.generated import generate_problems, write_jsonl
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.models.pretrained import load_model
from profit_sft.scores.loop import label_examples, score_labels
from profit_sft.scores.score import ScoringInterrupted, score_dataset, write_scores
from profit_sft.scores.settings import ScoreSettings, command_line
from profit_sft.scores.store import load_scores
from tiny import save_tiny_chat_model


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Sixty rows of unequal length, in a file."""
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    lines = ({"question": f"What is {n} + 1?", "answer": f"It is {n + 1}. " * (1 + n % 5)} for n in range(60))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def settings(tiny_folder, rows, out, **changes):
    data = DataSettings(dataset_name=str(rows))
    options = {"model_name_or_path": tiny_folder, "data": data, "output_dir": out}
    return ScoreSettings(**{**options, "shard_rows": 7, "max_batch_tokens": 200, **changes})


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("shard-*.parquet"))}


def dense(model, example):
    """Log-probabilities of all tokens at the label positions, `(T, V)` in the model's dtype, then float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(example.input_ids[None].astype(np.int64))).logits[0]
    return logits[example.positions - 1].double().log_softmax(-1)


def assert_is_what_dense_logits_give(example, model, bound):
    """Compare with dense logits whose rounding differs by at most `bound` nats."""
    log_probs = dense(model, example)
    of_label = log_probs.gather(1, torch.tensor(example.input_ids[example.positions].astype(np.int64))[:, None])
    assert np.abs(of_label[:, 0].numpy() - example.log_probs).max() < bound
    entropy = -(log_probs.exp() * log_probs).sum(1)
    assert np.abs(entropy.numpy() - example.entropy).max() < bound
    likeliest = log_probs.gather(1, torch.tensor(example.top1.astype(np.int64))[:, None])
    assert (log_probs.max(1, keepdim=True).values - likeliest).max() < bound
    # Half precision keeps eleven bits of a log p, and neighbors may stand the other way round.
    alternatives = log_probs.gather(1, torch.tensor(example.likeliest.astype(np.int64)))
    assert np.abs(alternatives.numpy() - example.likeliest_log_probs).max() < 2**-11 * 8 + bound
    assert (log_probs.topk(5).values - alternatives).abs().max() < 2 * bound
    assert np.array_equal(example.likeliest[:, 0], example.top1)
    # Tokens as likely as the label but for rounding may stand on either side of it.
    at_least = 1 + (log_probs > of_label + bound).sum(1).numpy()
    at_most = 1 + (log_probs > of_label - bound).sum(1).numpy()
    assert (at_least <= example.rank).all()
    assert (example.rank <= at_most).all()


@pytest.mark.parametrize("max_batch_tokens", [1, 200, 100_000])
def test_scores_are_those_of_dense_logits(tiny_folder, rows, tmp_path, max_batch_tokens):
    scores = score_dataset(settings(tiny_folder, rows, tmp_path / "out", max_batch_tokens=max_batch_tokens))
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for example in scores:
        assert_is_what_dense_logits_give(example, model, bound=4e-6)  # fp32 logits near 0, log p near -6
    assert [example.row for example in scores] == list(range(1, 61))
    assert [example.example for example in scores] == list(range(60))
    assert scores.manifest.data["label_tokens"] == len(scores.column("rank"))
    assert len(set(scores.column("rank"))) > 50
    assert scores.manifest.mean_nll == pytest.approx(-scores.column("log_probs").mean(), abs=1e-6)


@pytest.mark.model
def test_scores_of_a_real_model_on_real_rows(smollm2_folder, smollm2_model, shared_data, tmp_path):
    data = DataSettings(dataset_name=str(shared_data / "gsm8k_train.jsonl"), max_samples=3)
    scores = score_dataset(
        ScoreSettings(model_name_or_path=str(smollm2_folder), data=data, output_dir=tmp_path, shard_rows=2)
    )
    model = smollm2_model()
    for example in scores:
        # Two ways of adding up fp32 products and a softmax over 49,152 tokens, with logits up to 40.
        assert_is_what_dense_logits_give(example, model, bound=2e-4)
    assert 0.5 < scores.manifest.mean_nll < 2.5
    assert 0.4 < (scores.column("rank") == 1).mean() < 0.9
    assert scores.tokenizer().decode(next(iter(scores)).input_ids).startswith("<|im_start|>")


def test_kinds_of_tokens_come_along(tiny_folder, tmp_path):
    write_jsonl(generate_problems(5, seed=0, split="train"), tmp_path / "train.jsonl")
    scores = score_dataset(settings(tiny_folder, str(tmp_path / "train.jsonl"), tmp_path / "out"))
    assert scores.has_kinds
    texts = {1: "", 2: ""}
    tokenizer = scores.tokenizer()
    for example in scores:
        for kind in texts:
            texts[kind] += tokenizer.decode(example.input_ids[example.positions[example.token_kinds == kind]])
    assert any(character.isdigit() for character in texts[1])
    assert not any(character.isdigit() for character in texts[2])
    assert any(character.isalpha() for character in texts[2])


def test_a_lora_adapter_is_scored_with_its_base(tiny_folder, rows, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, base_model_name_or_path=tiny_folder
    )
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "adapter")
    scores = score_dataset(settings(str(tmp_path / "adapter"), rows, tmp_path / "out"))
    merged = adapted.merge_and_unload()
    for example in scores:
        assert_is_what_dense_logits_give(example, merged, bound=4e-6)
    of_base = score_dataset(settings(tiny_folder, rows, tmp_path / "base")).column("log_probs")
    assert np.abs(scores.column("log_probs") - of_base).max() > 1e-3


def test_what_is_finished_is_not_scored_again(tiny_folder, rows, tmp_path):
    score_dataset(settings(tiny_folder, rows, tmp_path))
    before = shard_bytes(tmp_path)
    seen = []
    again = score_dataset(settings(tiny_folder, rows, tmp_path), on_batch=seen.append)
    assert seen == []
    assert len(again) == 60
    assert shard_bytes(tmp_path) == before


def test_scores_that_are_there_already_make_the_same_store(tiny_folder, rows, tmp_path):
    wanted = settings(tiny_folder, rows, tmp_path / "scored", shard_rows=60)
    whole = score_dataset(wanted)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    prepared = prepare_dataset(wanted.data, tokenizer)
    examples = label_examples(prepared.dataset[:])
    found = score_labels(load_model(tiny_folder), examples, likeliest=5, max_batch_tokens=200)
    written = write_scores(settings(tiny_folder, rows, tmp_path / "made", shard_rows=60), prepared, tokenizer, found)
    assert shard_bytes(tmp_path / "made") == shard_bytes(tmp_path / "scored")
    assert written.manifest == whole.manifest
    assert {path.name for path in written.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_stops_after_the_batch_and_the_next_call_goes_on(tiny_folder, rows, tmp_path, number):
    handler = signal.getsignal(number)
    seen = []

    def send(progress):
        seen.append(progress)
        if len(seen) == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(ScoringInterrupted, match=f"stopped by {number.name}; the shards that were done are safe"):
        score_dataset(settings(tiny_folder, rows, tmp_path / "out"), on_batch=send)
    assert len(seen) == 5
    assert signal.getsignal(number) is handler
    done = shard_bytes(tmp_path / "out")
    assert 0 < len(done) < 9
    progress = []
    resumed = score_dataset(settings(tiny_folder, rows, tmp_path / "out"), on_batch=progress.append)
    assert progress[-1].examples == progress[-1].total_examples == 60 - 7 * len(done)
    assert progress[-1].label_tokens < resumed.manifest.num_label_tokens
    assert progress[-1].tokens_per_second > 0
    score_dataset(settings(tiny_folder, rows, tmp_path / "whole"))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_job_goes_on_without_loss_or_duplication(tiny_folder, rows, tmp_path):
    wanted = settings(tiny_folder, rows, tmp_path / "out", shard_rows=2, max_batch_tokens=40)
    process = start(command_line(wanted).split()[1:], tmp_path / "log")
    deadline = time.monotonic() + 120
    while len(shard_bytes(tmp_path / "out")) < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert 3 <= len(shard_bytes(tmp_path / "out")) < 30
    with pytest.raises(DataError, match="is unfinished"):
        load_scores(tmp_path / "out")
    resumed = score_dataset(wanted)
    assert [example.example for example in resumed] == list(range(60))
    whole = score_dataset(settings(tiny_folder, rows, tmp_path / "whole", shard_rows=2, max_batch_tokens=40))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    assert resumed.manifest == whole.manifest
    left = {path.name for path in (tmp_path / "out").iterdir()} - set(shard_bytes(tmp_path / "out"))
    assert left == {"scores.json", "tokenizer", ".lock"}


@pytest.mark.slow
def test_two_ranks_write_what_one_process_writes(tiny_folder, rows, tmp_path):
    words = [*command_line(settings(tiny_folder, rows, tmp_path / "two")).split()[1:], "--json"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    statuses, printed = run_ranks(run_app, words, folder=tmp_path / "printed", environment=environment)
    assert statuses == [0, 0], printed[-4000:]
    (made,) = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))  # one rank speaks for all
    assert made["examples"] == 60
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = score_dataset(settings(tiny_folder, rows, tmp_path / "one"))
    finally:
        torch.set_num_threads(threads)
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")
    assert load_scores(tmp_path / "two").manifest == one.manifest


def test_another_job_is_refused_before_the_model_runs(tiny_folder, rows, tmp_path):
    score_dataset(settings(tiny_folder, rows, tmp_path))
    shorter = DataSettings(dataset_name=rows, max_length=30)
    with pytest.raises(ConfigurationError, match=r"another job: max_length 1024, not 30; \d+ label tokens, not \d+"):
        score_dataset(settings(tiny_folder, rows, tmp_path, data=shorter))
    with pytest.raises(ConfigurationError, match="another job: dtype 'float32', not 'bfloat16'"):
        score_dataset(settings(tiny_folder, rows, tmp_path, dtype="bfloat16"))


def test_the_same_folder_with_other_weights_is_another_job(rows, tmp_path):
    folder = save_tiny_chat_model(tmp_path / "model")
    score_dataset(settings(folder, rows, tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder)
    with pytest.raises(ConfigurationError, match="another job: model '.*' as it was then"):
        score_dataset(settings(folder, rows, tmp_path / "out"))


def test_a_model_that_gives_no_number_is_refused_by_row(rows, tmp_path):
    folder = save_tiny_chat_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:] = 3e38  # a number, but its products are none
    model.save_pretrained(folder)
    with pytest.raises(DataError, match=r"row 1: log p of token \d+ is not finite.*use --dtype bfloat16 or float32"):
        score_dataset(settings(folder, rows, tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "fp32"}, "dtype must be one of float32, bfloat16, float16, auto, got 'fp32'"),
        ({"shard_rows": 0}, "shard_rows must be at least 1, got 0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings("model", "train.jsonl", tmp_path, **changes)


def test_the_command_line_repeats_the_settings(tmp_path):
    data = DataSettings(dataset_name="a b.jsonl", max_length=7, skip_bad_rows=True, system_prompt="Be brief.")
    line = command_line(settings("model", None, tmp_path, data=data, dtype="bfloat16"))
    assert line == (
        "profit score 'a b.jsonl' --system_prompt 'Be brief.' --skip_bad_rows --max_length 7 --model_name_or_path "
        f"model --output_dir {tmp_path} --dtype bfloat16 --max_batch_tokens 200 --shard_rows 7"
    )


def test_a_second_scorer_in_the_folder_is_refused_while_the_first_is_at_work(tiny_folder, rows, tmp_path):
    out = tmp_path / "out"
    refused = []

    def second(progress):
        if not refused:
            with pytest.raises(ConfigurationError, match="another scoring is at work in '.*out'. Wait for it") as error:
                score_dataset(settings(tiny_folder, rows, out))
            refused.append(error)

    score_dataset(settings(tiny_folder, rows, out), on_batch=second)
    assert refused
    assert len(load_scores(out)) == 60


def test_a_scorer_that_fails_before_it_begins_leaves_no_folder(tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text("no json")
    with pytest.raises(DataError):
        score_dataset(settings(tiny_folder, tmp_path / "rows.jsonl", tmp_path / "a" / "out"))
    assert not (tmp_path / "a").exists()
