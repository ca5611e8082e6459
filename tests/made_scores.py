"""Score sets made of given numbers, for tests that read scores."""

import numpy as np

from profit_sft.mask.tokens import LabelTokens
from profit_sft.scores.store import ScoredExample, ScoreJob, ScoreWriter
from tiny import chat_tokenizer


def made_example(number, log_probs, *, texts=None, kinds=None):
    """One example whose label tokens, all but the first token, have these values; `texts` gives their words."""
    count = len(log_probs)
    input_ids = [0, *(range(4, 4 + count) if texts is None else token_ids(texts))]
    return ScoredExample(
        example=number,
        row=number + 1,
        input_ids=np.array(input_ids, np.int32),
        positions=np.arange(1, count + 1, dtype=np.int32),
        log_probs=np.array(log_probs, np.float32),
        entropy=np.full(count, 0.5, np.float32),
        top1=np.full(count, 3, np.int32),
        rank=np.where(np.array(log_probs) > np.log(0.5), 1, 2).astype(np.int32),
        token_kinds=None if kinds is None else np.array(kinds, np.int8),
    )


def token_ids(texts):
    """Ids of single characters in `tiny.chat_tokenizer`."""
    tokenizer = chat_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert all(len(found) == 1 for found in ids)
    return [found[0] for found in ids]


def write_scores(folder, examples, *, tokenizer=None):
    """Write a finished store of these examples and open it."""
    job = ScoreJob(
        model_name_or_path="models/a",
        model_fingerprint="m",
        data={
            "fingerprint": "d",
            "tokenizer_fingerprint": "t",
            "dataset_name": "train.jsonl",
            "rows_used": len(examples),
            "label_tokens": sum(len(example.positions) for example in examples),
        },
        data_settings={"dataset_name": "train.jsonl", "max_length": 512},
        dtype="float32",
        engine="hf",
        shard_rows=3,
        has_token_kinds=any(example.token_kinds is not None for example in examples),
    )
    writer = ScoreWriter(folder, job)
    writer.start(tokenizer or chat_tokenizer())
    for shard in range(job.num_shards):
        writer.write_shard(shard, [examples[index] for index in job.shard_range(shard)])
    return writer.finish()


def made_tokens(log_probs, examples, token_kinds=None):
    """Label tokens with these values, each example's one after the other behind a prompt of one token."""
    examples = np.asarray(examples)
    return LabelTokens(
        log_probs=np.atleast_2d(np.asarray(log_probs, np.float64)),
        token_ids=np.full(examples.size, 5, np.int32),
        previous_ids=np.full(examples.size, 4, np.int32),
        positions=np.arange(1, examples.size + 1, dtype=np.int32),
        examples=examples,
        token_kinds=None if token_kinds is None else np.asarray(token_kinds, np.int8),
        lengths=1 + np.unique(examples, return_counts=True)[1],
    )
