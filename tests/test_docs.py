"""The code of the pages runs, in the libraries it names, and does what the page says."""

import html
import json
import math
import re
import shlex
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from profit_sft.cli.app import run_app
from tiny import save_tiny_chat_model


@pytest.fixture(scope="module")
def run_page(repo_root, tmp_path_factory):
    """Run the Python blocks of a page one after the other, on a tiny model in place of the one it names."""
    folder = tmp_path_factory.mktemp("page")
    model = save_tiny_chat_model(folder / "model")

    def run(page, old="", new=""):
        text = (repo_root / "docs" / page).read_text(encoding="utf-8")
        spaces = [{"__name__": "page"}]
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            code = block.replace("Qwen/Qwen3-0.6B", model).replace('"run"', repr(str(folder / "run")))
            # A random model gives every token about 1/320.
            code = code.replace("threshold=0.1", f"threshold={THRESHOLD}").replace(
                "report_to=", "use_cpu=True, report_to="
            )
            code = code.replace(old, new) if old else code
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("page", "weights"),
    [
        ("how-to/lora.md", lambda p: (p >= THRESHOLD).double()),
        ("how-to/objective.md", lambda p: (p / (2 * THRESHOLD)).clamp(max=1)),
    ],
    ids=["lora", "objective"],
)
def test_pages_whose_last_block_computes_a_loss(run_page, repo_root, page, weights):
    name, spaces = run_page(page, "full_at=0.1", f"full_at={2 * THRESHOLD}")
    found = spaces[-1]
    with torch.no_grad():
        log_probs = dense_log_probs(AutoModelForCausalLM.from_pretrained(name), found["batch"]["input_ids"])
    expected = weights(log_probs.exp())
    assert 0 < expected.mean() < 1
    assert found["output"].loss.item() == pytest.approx(-(expected * log_probs).mean().item(), rel=1e-5)
    if page == "how-to/lora.md":
        assert found["trained"]
        assert all("lora_" in parameter for parameter in found["trained"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_the_page_says_to_do_after_training(repo_root, tmp_path, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model

    monkeypatch.chdir(tmp_path)
    save_tiny_chat_model(tmp_path / "runs" / "first")
    base = save_tiny_chat_model(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained("runs/lora")
    AutoTokenizer.from_pretrained(base).save_pretrained("runs/lora")
    text = (repo_root / "docs" / "how-to" / "after-training.md").read_text(encoding="utf-8")
    (ask,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    space = {}
    exec(ask, space)
    assert capsys.readouterr().out == f"{space['answer'][0]['generated_text']}\n"
    (merge,) = re.findall(r"^    (profit merge .*)$", text, flags=re.MULTILINE)
    assert run_app(shlex.split(merge)[1:]) == 0
    ids = torch.arange(12)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained("runs/merged").eval()(ids).logits
        torch.testing.assert_close(merged, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-5)
        assert (merged - AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore:collapse:UserWarning")
def test_the_tutorial(smollm2_folder, repo_root, tmp_path, monkeypatch, capsys):
    """Every command, with fewer rows and problems; and what the page says that one will see."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(repo_root / "recipes")
    text = (repo_root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for old, new in (("(160,", "(4,"), ("--limit 60", "--limit 2"), ("--max_new_tokens 64", "--max_new_tokens 4")):
        assert old in text
        text = text.replace(old, new)
    printed = {}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.DOTALL):
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "profit"
            assert run_app(arguments) == 0, line
            printed[" ".join(arguments[:2])] = capsys.readouterr().out
    assert re.search(r"⟦.*<\|im_end\|>⟧", printed["data train.jsonl"], flags=re.DOTALL)
    assert run_app(["inspect", "scored", "--threshold", "0.1", "--json"]) == 0
    kinds = {kind["label"]: kind["kept_share"][0] for kind in json.loads(capsys.readouterr().out)["by_kind"]}
    assert kinds["core"] > 0.7 > 0.6 > kinds["style"]
    for name, masks in (("plain", False), ("profit", True)):
        logs = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        first = next(log for log in logs if "loss" in log)
        assert (first["loss"] < 0.9 * first["nll"]) is masks
        assert list((tmp_path / "runs" / name / "eval").iterdir())
    assert (tmp_path / "scored" / "mask.html").is_file()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of Jupyter's libraries
def test_the_notebook(smollm2_folder, repo_root, tmp_path):
    """Every cell in a real kernel, with fewer rows and steps; its plain NLL is that of dense logits in float64."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(repo_root / "docs" / "notebooks" / "first_look.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10
    assert not any(cell.outputs for cell in cells)
    for cell in cells:
        cell.source = cell.source.replace("generate_problems(64", "generate_problems(4")
        cell.source = cell.source.replace("max_steps=8", "max_steps=2").replace("size=8", "size=2")
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = ["".join(out.text for out in cell.outputs if out.get("name") == "stdout") for cell in cells]
    shown = [out.data["text/html"] for cell in cells for out in cell.outputs if "text/html" in out.get("data", {})]
    assert sum("<iframe" in page for page in shown) == 2
    assert "<|im_end|>" in html.unescape(shown[0])  # of the labels

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    for folder, name in ((smollm2_folder, "before"), (tmp_path / "after", "after")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        losses = []
        for line in (tmp_path / "test.jsonl").read_text().splitlines():
            messages = json.loads(line)["messages"]
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
            # What is learned ends with the turn; the line break after it does not count.
            whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"][:-1]
            log_probs = dense_log_probs(model, torch.tensor([whole]))
            losses.append(-log_probs[len(prompt["input_ids"]) - 1 :])
        (found,) = re.findall(rf"^{name} +plain NLL ([\d.]+)", "\n".join(printed), flags=re.MULTILINE)
        assert float(found) == pytest.approx(torch.cat(losses).mean().item(), abs=1e-3)
