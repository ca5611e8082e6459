"""What the quickstart says of a model, against dense logits in float64; the whole of it is in tests/cli."""

from datetime import date

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from profit_sft.data.generated import SYSTEM_PROMPT, generate_problems, write_jsonl
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.models.pretrained import load_tokenizer
from profit_sft.objectives import EAFT, NLL, ProFit, TokenStats
from profit_sft.quickstart import QuickstartReport, Standing, changed_answers, measure, write_page
from profit_sft.scores.store import load_scores
from tiny import save_tiny_chat_model

CORE, STYLE = 1, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny chat model whose predictions lie anywhere between sure and hopeless."""
    folder = save_tiny_chat_model(tmp_path_factory.mktemp("tiny"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight *= 30
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def problems():
    return generate_problems(4, seed=1, split="test")


@pytest.fixture(scope="module")
def data(folder, problems, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "test.jsonl"
    write_jsonl(problems, path, system_prompt=SYSTEM_PROMPT)
    return prepare_dataset(DataSettings(dataset_name=str(path), max_length=None), load_tokenizer(folder))


def dense(folder, dataset, objective):
    """Log-probabilities, whether the objective keeps it, and the kind, of every label token."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    found = []
    for row in dataset:
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        labels, kinds = torch.tensor(row["labels"][1:]), torch.tensor(row["token_kinds"][1:])
        counted = labels != -100
        log_probs, labels = log_probs[counted], labels[counted]
        of_labels = log_probs.gather(-1, labels[:, None])[:, 0]
        topk_entropy = torch.special.entr(log_probs.topk(20).values.softmax(-1)).sum(-1)
        stats = TokenStats(labels=labels, log_probs=of_labels, topk_entropy=topk_entropy)
        found.append((of_labels, objective.token_weights(stats) != 0, kinds[counted]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@pytest.mark.parametrize("objective", [NLL(), ProFit(threshold=1e-4), EAFT()], ids=str)
def test_figures_are_those_of_dense_logits(folder, problems, data, objective):
    found, scores = measure(folder, load_tokenizer(folder), problems, data, objective)
    log_probs, kept, kinds = dense(folder, data.dataset, objective)
    kept = kept.double()
    assert isinstance(objective, (NLL, EAFT)) or 0.2 < kept.mean() < 0.8
    assert found.nll == pytest.approx(-log_probs.mean().item(), rel=1e-6)
    assert found.kept_share == pytest.approx(kept.mean().item(), abs=1e-12)
    assert found.kept_share_core == pytest.approx(kept[kinds == CORE].mean().item(), abs=1e-12)
    assert found.kept_share_style == pytest.approx(kept[kinds == STYLE].mean().item(), abs=1e-12)
    assert found.accuracy == 0.0
    assert found.right == (False,) * 4
    assert found.accuracy_interval[0] == 0.0
    assert found.accuracy_interval[1] == pytest.approx(0.602, abs=1e-3)  # 1 - 0.025 ** (1 / 4)
    assert len(found.answers) == 4
    all_scores = np.concatenate([values.log_probs for values in scores])
    np.testing.assert_allclose(all_scores, log_probs.numpy(), rtol=0, atol=2e-5)


def test_the_page_shows_the_scores_that_the_figures_came_from(folder, problems, data, tmp_path):
    tokenizer = load_tokenizer(folder)
    found, scores = measure(folder, tokenizer, problems, data, NLL())
    trained = save_tiny_chat_model(tmp_path / "trained")
    after, scores_after = measure(trained, tokenizer, problems, data, NLL())
    for _ in range(2):  # what an earlier run left is replaced
        write_page(tmp_path / "mask.html", {folder: scores, trained: scores_after}, data, tokenizer, threshold=None)
    for name, standing, wanted in (("before", found, scores), ("after", after, scores_after)):
        stored = load_scores(tmp_path / "scores" / name)
        assert stored.manifest.mean_nll == pytest.approx(standing.nll, rel=1e-12)
        np.testing.assert_array_equal(stored.column("rank"), np.concatenate([values.rank for values in wanted]))
    assert date.today().isoformat() in (tmp_path / "mask.html").read_text()


def test_the_answers_shown_are_one_turned_right_and_one_turned_wrong():
    def standing(right):
        nothing = dict.fromkeys(("accuracy", "nll", "kept_share", "kept_share_core", "kept_share_style"), 0.0)
        return Standing(accuracy_interval=(0.0, 1.0), answers=("",) * 4, right=right, **nothing)

    def shown(before, plain, after):
        paths = dict.fromkeys(("report_file", "page", "comparison", "run"))
        standings = {"before": standing(before), "plain_sft": plain and standing(plain), "after": standing(after)}
        return changed_answers(QuickstartReport(objective="", problems=(), **standings, **paths))

    no, yes = False, True
    assert shown((no, no, yes, no), None, (no, yes, no, no)) == [("turned right", 1), ("turned wrong", 2)]
    assert shown((no, no, no, no), (yes, no, yes, no), (no, yes, yes, no)) == [
        ("turned right", 1),
        ("is right by plain SFT alone", 0),
    ]
    assert shown((no, no, no, no), (no, no, no, no), (no, no, no, no)) == [("is still wrong", 0)]
    assert shown((yes, yes, yes, yes), None, (yes, yes, yes, yes)) == []
