"""Write the map's starts and references as folders and files that `profit study` and all else read.

    python benchmarks/map/publish.py runs/map

makes the starts in runs/map/starts if they are not there (five minutes), and from them runs/map/models/START, folders
that transformers loads, and runs/map/references/WORDING-WRONG_SHARE-SKILL.jsonl, the 512 references of the first seed.
The task files beside this one ask the problems. `recipes/studies/map.yaml` is a study of them.
"""

import argparse
import itertools
import json
from pathlib import Path

from task import ID_OF, WORDINGS, Reference
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from profit_sft.files import write_text
from run import load_start
from train import FROM_SCRATCH, Learner, make_starts, training_rows

_PAD, _EOS = "<pad>", "<eos>"


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a character, with the ids of `task.CHARACTER_CODER`; it adds no token itself."""
    inner = Tokenizer(models.WordLevel({_PAD: 0, _EOS: 1, **ID_OF}))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=_PAD, eos_token=_EOS, clean_up_tokenization_spaces=False
    )


def publish_start(learner: Learner, folder: Path) -> None:
    """Write a start as a model folder."""
    learner.model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def publish_references(references: list[Reference], file: Path) -> None:
    """Write references as rows of `prompt` and `completion`."""
    rows = ({"prompt": row.prompt, "completion": row.answer} for row in references)
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Make the starts, then publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    make_starts(out / "starts", FROM_SCRATCH, lambda line: print(line, flush=True))
    for name in FROM_SCRATCH.strengths:
        publish_start(load_start(out, name), out / "models" / name)
    for wording, wrong_share, new_skill in itertools.product(WORDINGS, (0.0, 0.1, 0.3, 0.5), (False, True)):
        rows = training_rows(0, wording=wording, wrong_share=wrong_share, new_skill=new_skill, rows=512)
        name = f"{wording}-{wrong_share:g}-{'new' if new_skill else 'old'}"
        publish_references(rows, out / "references" / f"{name}.jsonl")


if __name__ == "__main__":
    main()
