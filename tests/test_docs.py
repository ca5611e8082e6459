"""The code of the pages runs, in the libraries it names, and does what the page says."""

import math
import re
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import save_tiny_chat_model


@pytest.fixture(scope="module")
def run_page(repo_root, tmp_path_factory):
    """Run the Python blocks of a page one after the other, on a tiny model in place of the one it names."""
    folder = tmp_path_factory.mktemp("page")
    model = save_tiny_chat_model(folder / "model")

    def run(page):
        text = (repo_root / "docs" / page).read_text(encoding="utf-8")
        spaces = [{"__name__": "page"}]
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            code = block.replace("Qwen/Qwen3-0.6B", model).replace('"run"', repr(str(folder / "run")))
            # A random model gives every token about 1/320.
            code = code.replace("threshold=0.1", f"threshold={THRESHOLD}").replace(
                "report_to=", "use_cpu=True, report_to="
            )
            space = dict(spaces[-1])
            exec(compile(code, page, "exec"), space)
            spaces.append(space)
        return model, spaces[1:]

    return run


THRESHOLD = 1 / 320


def dense_log_probs(model, input_ids):
    logits = model.eval()(input_ids=input_ids).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, input_ids[0, 1:, None])[:, 0]


def dense(model, input_ids):
    """Plain NLL, the share of tokens of at least the threshold, and the loss on them alone, from dense logits."""
    log_probs = dense_log_probs(model, input_ids)
    kept = log_probs >= math.log(THRESHOLD)
    assert 0 < kept.double().mean() < 1
    return -log_probs.mean().item(), kept.double().mean().item(), -(log_probs * kept).mean().item()


@pytest.mark.slow
def test_the_page_on_trainers_of_ones_own(run_page):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about a machine without a GPU
        name, (loop, trainer, trl, hidden, levels, own) = run_page("how-to/own-trainer.md")
    tokenizer = AutoTokenizer.from_pretrained(name)
    input_ids = tokenizer(["What is two plus two? It is four."], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        nll, kept_share, loss = dense(AutoModelForCausalLM.from_pretrained(name), input_ids)
    assert loop["output"].loss.item() == pytest.approx(loss, rel=1e-5)
    assert loop["output"].selective.kept_share.item() == pytest.approx(kept_share)
    assert loop["output"].selective.nll.item() == pytest.approx(nll, rel=1e-5)

    log = trainer["trainer"].state.log_history[0]
    assert log["loss"] == pytest.approx(loss, rel=1e-3)
    assert (log["kept_share"], log["nll"]) == (pytest.approx(kept_share), pytest.approx(nll, rel=1e-5))

    prompt, whole = (
        tokenizer.apply_chat_template(turns, add_generation_prompt=len(turns) == 1, return_dict=True)["input_ids"]
        for turns in ([trl["question"]], [trl["question"], trl["answer"]])
    )
    answer = whole[len(prompt) : whole.index(tokenizer.eos_token_id, len(prompt)) + 1]
    with torch.no_grad():
        log_probs = dense_log_probs(AutoModelForCausalLM.from_pretrained(name), torch.tensor([prompt + answer]))
    answered = log_probs[-len(answer) :]
    kept = answered >= math.log(THRESHOLD)
    log = next(entry for entry in trl["trainer"].state.log_history if "loss" in entry)
    assert log["loss"] == pytest.approx(-answered[kept].mean().item(), rel=1e-3)
    assert log["kept_share"] == pytest.approx(kept.double().mean().item())
    assert hidden["result"].loss.item() == pytest.approx(loss, rel=1e-5)
    assert levels["from_logits"].loss.item() == pytest.approx(loss, rel=1e-5)
    assert levels["from_log_probs"].item() == pytest.approx(loss, rel=1e-5)
    output = own["model"].train()(**own["batch"], labels=own["batch"]["input_ids"])
    assert torch.equal(output.selective.token_weights[:, :-1], 1.0 - output.selective.log_probs[:, :-1].exp())
