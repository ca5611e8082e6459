"""Weights from scores against those that training finds with the model at hand."""

import numpy as np
import pytest
from problems import OBJECTIVES

from made_scores import made_example, write_scores
from profit_sft.data.settings import DataSettings
from profit_sft.errors import ConfigurationError
from profit_sft.mask.report import make_report, objective_weights
from profit_sft.mask.tokens import label_tokens
from profit_sft.models.pretrained import load_model
from profit_sft.objectives import EAFT, ENTROPY_TOP_K, ProFit, Rho
from profit_sft.scores.loop import LabelExample, score_labels
from profit_sft.scores.score import score_dataset
from profit_sft.scores.settings import ScoreSettings
from tiny import save_tiny_chat_model

KNOWN = {"log_probs", "entropy", "topk_entropy", "reference_log_probs"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model, and its scores of a few rows, with as many of the likeliest tokens as any objective looks at."""
    root = tmp_path_factory.mktemp("weights")
    model = save_tiny_chat_model(root / "model")
    rows = root / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "What is {n}?", "completion": "It is {n} or {n + 1}."}}\n' for n in range(9)))
    job = ScoreSettings(
        model_name_or_path=model,
        data=DataSettings(dataset_name=str(rows)),
        output_dir=root / "scores",
        likeliest=ENTROPY_TOP_K,
    )
    return model, score_dataset(job)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_weights_are_those_that_training_finds(scored, objective):
    if not objective.needs <= KNOWN or getattr(objective, "direction", "") == "random":
        pytest.skip("nothing that scores hold, or drawn anew")
    folder, scores = scored
    # The scores are their own reference, as they are for the first of two sets.
    tokens = label_tokens(scores, scores)
    found = objective_weights(objective, [scores, scores], tokens)
    examples = [
        LabelExample(
            input_ids=example.input_ids, positions=example.positions, reference_log_probs=np.array(example.log_probs)
        )
        for example in scores
    ]
    wanted = np.concatenate(
        [values.token_weights for values in score_labels(load_model(folder), examples, objective=objective)]
    )
    assert found.shape == (2, wanted.size)
    # Half precision of the twenty likeliest, where the objective looks at them; else the rounding of fp32.
    np.testing.assert_allclose(found[1], wanted, rtol=0, atol=2e-3 if "topk_entropy" in objective.needs else 2e-5)


def test_what_the_scores_do_not_hold_is_refused_by_name(tmp_path):
    scores = write_scores(tmp_path, [made_example(0, [-1.0, -2.0])])
    reference = ProFit(threshold=0.3, mask_source="reference")
    for objective, told in (
        (EAFT(), "EAFT.* looks at topk_entropy, which .* does not hold. Score again with --likeliest 20."),
        (Rho(), "looks at reference_log_probs, .* Give two score sets, those of the reference first."),
        (reference, "looks at reference_log_probs"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            make_report([scores], objective=objective)
    report = make_report([scores, scores], objective=reference)
    assert report.token_weights.tolist() == [[1.0, 0.0]] * 2
    assert report.figures.total.mean_weight == (0.5, 0.5)
