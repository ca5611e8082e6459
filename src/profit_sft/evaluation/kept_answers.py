"""A model of lm-evaluation-harness: answers that the records hold come from there, all others from a generator."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

from profit_sft.evaluation.generator import Answer, Generator, Request
from profit_sft.evaluation.records import SampleFile


class KeptAnswers(LM):
    """Answers the requests of one task, and keeps each batch as soon as it is answered.

    The harness asks for the samples of a problem by repeating its request, so the number of a sample is how often the
    same problem was asked for before.

    Args:
        generator: Makes the answers that are missing.
        task: Name of the task.
        samples: Its records.
        seed: The evaluation's.
        batch_size: Answers generated together.
        started: Called before each batch is kept.
        say: Called with one line of text before anything is generated.
        progress: Called after each batch with the task's name, the samples done, and all of them.
    """

    tokenizer_name = ""  # the harness asks for it to name a cache of prompts, which is not used

    def __init__(
        self,
        generator: Generator,
        task: str,
        samples: SampleFile,
        *,
        seed: int,
        batch_size: int,
        started: Callable[[], None],
        say: Callable[[str], None],
        progress: Callable[[str, int, int], None],
    ) -> None:
        super().__init__()
        self._generator, self._task, self._samples = generator, task, samples
        self._seed, self._batch_size = seed, batch_size
        self._started, self._say, self._progress = started, say, progress

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        """Put messages into the model's chat template."""
        return self._generator.lm.apply_chat_template(chat_history, add_generation_prompt)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Return an answer to each request."""
        asked: Counter[int] = Counter()
        keys, missing = [], []
        for request in requests:
            key = (request.doc_id, asked[request.doc_id])
            asked[request.doc_id] += 1
            keys.append(key)
            if self._samples.get(key) is None:
                prompt, arguments = request.args
                missing.append(Request(key, prompt, arguments, sample_seed(self._seed, self._task, *key)))
        kept = len(requests) - len(missing)
        if missing:
            self._say(f"{self._task}: {len(missing)} answers to generate, {kept} are there")
        # Longest first: a batch that does not fit into memory shows at once, and rows of one length need no padding.
        lengths = {request.prompt: self._generator.length(request.prompt) for request in missing}
        missing.sort(key=lambda request: (-lengths[request.prompt], request.prompt, request.key))
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            self._answer(batch)
            self._progress(self._task, kept + start + len(batch), len(requests))
        records = [self._samples.get(key) for key in keys]
        return [Answer(row["answer"], row["new_tokens"], row["truncated"]) for row in records if row is not None]

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Refuse; tasks that ask for it are refused before."""
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def _answer(self, batch: Sequence[Request]) -> None:
        began = time.perf_counter()
        answers = self._generator.answer(batch)
        seconds = round((time.perf_counter() - began) / len(batch), 4)
        self._started()
        self._samples.add(
            {
                "task": self._task,
                "problem": request.key[0],
                "sample": request.key[1],
                # Of messages the harness makes a tuple with a text.
                "prompt": getattr(request.prompt, "prompt", request.prompt),
                "answer": str(answer),
                "truncated": answer.truncated,
                "new_tokens": answer.new_tokens,
                "seconds": seconds,
            }
            for request, answer in zip(batch, answers, strict=True)
        )


def sample_seed(seed: int, task: str, problem: int, sample: int) -> int:
    """Return the seed of one sample, an int in [0, 2^63).

    Its random numbers stay the same whatever `limit`, `batch_size`, the other tasks and an interruption do.

    Args:
        seed: The evaluation's seed.
        task: Name of the task.
        problem: Number of the problem in the task's data.
        sample: Number of the sample.
    """
    digest = hashlib.sha256(f"{seed}/{task}/{problem}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
