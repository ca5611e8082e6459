import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.scores.store import FORMAT, ScoredExample, ScoreJob, ScoreWriter, load_scores
from tiny import chat_tokenizer

LENGTHS = [5, 3, 9, 2, 7]


def scored(example, *, kinds=False, likeliest=False):
    length = LENGTHS[example]
    generator = np.random.default_rng(example)
    count = length - 1
    return ScoredExample(
        example=example,
        row=2 * example + 1,
        input_ids=generator.integers(0, 99, length).astype(np.int32),
        positions=np.arange(1, length, dtype=np.int32),
        log_probs=-generator.random(count).astype(np.float32),
        entropy=generator.random(count).astype(np.float32),
        top1=generator.integers(0, 99, count).astype(np.int32),
        rank=generator.integers(1, 9, count).astype(np.int32),
        token_kinds=generator.integers(0, 3, count).astype(np.int8) if kinds else None,
        **(
            {
                "likeliest": generator.integers(0, 99, (count, 4)).astype(np.int32),
                "likeliest_log_probs": -generator.random((count, 4)).astype(np.float16),
            }
            if likeliest
            else {}
        ),
    )


def job(**changes):
    fields = {
        "model_name_or_path": "models/a",
        "model_fingerprint": "m",
        "data": {"fingerprint": "d", "tokenizer_fingerprint": "t", "rows_used": 5, "label_tokens": sum(LENGTHS) - 5},
        "data_settings": {"dataset_name": "train.jsonl", "max_length": 512},
        "dtype": "float32",
        "engine": "hf",
        "shard_rows": 2,
        "has_token_kinds": False,
    }
    return ScoreJob(**{**fields, **changes})


def write(folder, *, kinds=False, likeliest=False, shards=(0, 1, 2)):
    writer = ScoreWriter(folder, job(has_token_kinds=kinds, likeliest=4 if likeliest else 0))
    writer.start(chat_tokenizer())
    for shard in shards:
        writer.write_shard(
            shard, [scored(example, kinds=kinds, likeliest=likeliest) for example in writer.job.shard_range(shard)]
        )
    return writer


@pytest.mark.parametrize("kinds", [False, True])
@pytest.mark.parametrize("likeliest", [False, True])
def test_what_was_written_is_read_back(tmp_path, kinds, likeliest):
    # Shards may come in any order, as they do from several processes.
    write(tmp_path, kinds=kinds, likeliest=likeliest, shards=(2, 0, 1)).finish()
    scores = load_scores(tmp_path)
    assert len(scores) == 5
    assert scores.has_kinds is kinds
    wanted = [scored(example, kinds=kinds, likeliest=likeliest) for example in range(5)]
    for got, want in zip(scores, wanted, strict=True):
        assert (got.example, got.row) == (want.example, want.row)
        names = ["input_ids", "positions", "log_probs", "entropy", "top1", "rank"]
        if not likeliest:
            assert got.likeliest is got.likeliest_log_probs is None
        for name in names + ["likeliest", "likeliest_log_probs"] * likeliest:
            assert getattr(got, name).dtype == getattr(want, name).dtype
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        if kinds:
            np.testing.assert_array_equal(got.token_kinds, want.token_kinds)
        else:
            assert got.token_kinds is None


def test_scores_of_format_1_are_read(tmp_path):
    write(tmp_path, kinds=True).finish()
    for path in tmp_path.glob("shard-*.parquet"):
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.drop_columns(["likeliest", "likeliest_log_probs"]), path)
    manifest = json.loads((tmp_path / "scores.json").read_text())
    del manifest["likeliest"]
    (tmp_path / "scores.json").write_text(json.dumps({**manifest, "format": 1}))
    scores = load_scores(tmp_path)
    assert scores.manifest.likeliest == 0
    assert [example.likeliest for example in scores] == [None] * 5
    np.testing.assert_array_equal(scores.column("rank"), np.concatenate([scored(n, kinds=True).rank for n in range(5)]))


def test_columns_hold_every_label_token_in_data_order(tmp_path):
    scores = write(tmp_path, kinds=True).finish()
    wanted = [scored(example, kinds=True) for example in range(5)]
    for name in ("log_probs", "entropy", "rank", "top1", "token_kinds", "positions"):
        np.testing.assert_array_equal(scores.column(name), np.concatenate([getattr(item, name) for item in wanted]))
    token_ids = np.concatenate([item.input_ids[item.positions] for item in wanted])
    np.testing.assert_array_equal(scores.column("token_ids"), token_ids)
    assert scores.manifest.mean_nll == pytest.approx(-scores.column("log_probs").mean(), abs=1e-6)
    assert scores.manifest.num_label_tokens == len(token_ids)
    with pytest.raises(ValueError, match="column must be one of positions, log_probs.*got 'probs'"):
        scores.column("probs")


def test_the_tokenizer_comes_back_with_its_template(tmp_path):
    tokenizer = write(tmp_path).finish().tokenizer()
    assert tokenizer.chat_template == chat_tokenizer().chat_template
    assert tokenizer("four")["input_ids"] == chat_tokenizer()("four")["input_ids"]


def test_kinds_of_data_without_spans_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no 'answer_spans'"):
        write(tmp_path).finish().column("token_kinds")


def test_an_unfinished_store_is_refused_and_gone_on_with(tmp_path):
    write(tmp_path, shards=(1,))
    (tmp_path / ".shard-00000.parquet.x.tmp").write_text("left by a kill")
    with pytest.raises(DataError, match="unfinished: 1 of 3 shards are there. Run the `profit score` command"):
        load_scores(tmp_path)
    writer = ScoreWriter(tmp_path, job())
    assert writer.missing_shards() == [0, 2]
    write(tmp_path, shards=writer.missing_shards()).finish()
    assert [example.example for example in load_scores(tmp_path)] == [0, 1, 2, 3, 4]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["scores.json", *(f"shard-0000{shard}.parquet" for shard in range(3)), "tokenizer"]


def test_a_torn_shard_is_written_again(tmp_path):
    writer = write(tmp_path)
    shard = tmp_path / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    (tmp_path / "shard-00002.parquet").replace(tmp_path / "shard-00000.parquet")
    assert writer.missing_shards() == [0, 1, 2]


def test_a_missing_store_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' holds no scores.*profit score DATA --model M --out .*nowhere"):
        load_scores(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "models/b", "model_fingerprint": "n"}, "model 'models/a', not 'models/b'"),
        ({"model_fingerprint": "n"}, "model 'models/a' as it was then"),
        ({"dtype": "bfloat16"}, "dtype 'float32', not 'bfloat16'"),
        ({"engine": "other"}, "engine 'hf', not 'other'"),
        ({"shard_rows": 3}, "shard_rows 2, not 3"),
        ({"has_token_kinds": True}, "without answer_spans"),
        ({"data": {**job().data, "tokenizer_fingerprint": "u"}}, "another tokenizer or chat template"),
        (
            {"data": {**job().data, "fingerprint": "e"}, "data_settings": {"dataset_name": "a", "max_length": 256}},
            "dataset_name 'train.jsonl', not 'a'; max_length 512, not 256",
        ),
        ({"data": {**job().data, "fingerprint": "e", "rows_used": 6}}, "5 rows, not 6"),
        ({"data": {**job().data, "fingerprint": "e"}}, "other tokens or labels of as many rows"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_jobs_folder_is_refused_by_name(tmp_path, changes, message, finished):
    writer = write(tmp_path)
    if finished:
        writer.finish()
    with pytest.raises(ConfigurationError, match="holds the scores of another job: ") as caught:
        ScoreWriter(tmp_path, job(**changes))
    assert message in str(caught.value)


def test_the_same_job_under_another_name_is_the_same_job(tmp_path):
    write(tmp_path)
    ScoreWriter(tmp_path, job(model_name_or_path="b", data_settings={"dataset_name": "./train.jsonl"}))


def test_shards_of_nobody_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "progress.json").unlink()
    with pytest.raises(ConfigurationError, match="holds shards, but neither progress.json nor scores.json"):
        ScoreWriter(tmp_path, job())


def test_another_format_is_refused(tmp_path):
    write(tmp_path).finish()
    manifest = json.loads((tmp_path / "scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}))
    with pytest.raises(DataError, match=f"has format {FORMAT + 1}; this version reads {FORMAT}"):
        load_scores(tmp_path)
    (tmp_path / "scores.json").write_text("[1]")
    with pytest.raises(DataError, match="is no score manifest"):
        load_scores(tmp_path)


def test_damage_is_named(tmp_path):
    scores = write(tmp_path).finish()
    shard = tmp_path / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"shard-00001.parquet' cannot be read"):
        list(scores)
    (tmp_path / "shard-00002.parquet").replace(shard)
    with pytest.raises(DataError, match="lacks shard-00002.parquet"):
        load_scores(tmp_path)
    with pytest.raises(DataError, match=r"shard-00001.parquet' has 1 rows, not 2"):
        scores.column("rank")


def test_a_store_that_lacks_tokens_is_not_finished(tmp_path):
    write(tmp_path)
    other = job(data={**job().data, "label_tokens": 22})
    with pytest.raises(DataError, match="holds 21 label tokens where the data has 22"):
        ScoreWriter(tmp_path, other).finish()
    assert not (tmp_path / "scores.json").exists()


def test_a_shard_takes_its_own_examples_only(tmp_path):
    with pytest.raises(ValueError, match="shard 1 must hold examples 2 to 3 in order"):
        ScoreWriter(tmp_path, job()).write_shard(1, [scored(3), scored(2)])


def test_values_that_do_not_line_up_are_refused():
    good = scored(0)
    with pytest.raises(ValueError, match="example 0: per-token values must be equally long.*'rank': 3"):
        dataclasses.replace(good, rank=good.rank[:3])
    with pytest.raises(ValueError, match=r"positions must lie in \[1, 5\), got 0 to 3"):
        dataclasses.replace(good, positions=good.positions - 1)
