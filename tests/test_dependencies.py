"""What pyproject.toml declares is what the code imports, and what is not installed is asked for by its extra."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from profit_sft.errors import EXTRAS, missing_extra

tomllib = pytest.importorskip("tomllib", reason="Python 3.11")

CORE = ("__init__.py", "errors.py", "objectives.py", "head.py", "head_module.py", "loss/", "integrations/")
# Where the name of the module is not that of the distribution; packages_distributions knows installed ones alone.
DISTRIBUTIONS = {"yaml": "pyyaml", "lm_eval": "lm-eval", "math_verify": "math-verify"}
NOT_IMPORTED = {
    "gguf": "transformers reads the embedded model with it",
    "immutabledict": "lm-eval's IFEval",
}
# Triton comes with torch on CUDA, and is looked for before it is imported; deepspeed and wandb are only recognized.
OPTIONAL = {"triton"}
# Modules that another trainer loads, or that look for it first; pydantic comes with Axolotl.
PEERS = {
    "integrations/axolotl.py": {"axolotl", "pydantic"},
    "integrations/llama_factory.py": {"llamafactory"},
    "integrations/ms_swift/plugin.py": {"swift"},
    "integrations/nemo_automodel.py": {"nemo_automodel"},
    "integrations/verl.py": {"verl"},
}


@pytest.fixture(scope="module")
def project(repo_root):
    return tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0].lower().replace("_", "-") for text in requirements}


def imported(repo_root, *, core):
    """Return {distribution: a file that imports it}."""
    found = {}
    package = repo_root / "src" / "profit_sft"
    known = packages_distributions()
    for path in package.rglob("*.py"):
        relative = path.relative_to(package).as_posix()
        if relative.startswith(CORE) != core:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in OPTIONAL | PEERS.get(relative, set()) | {"profit_sft"}:
                    continue
                name = DISTRIBUTIONS.get(top) or known.get(top, [top])[0]
                found[name.lower().replace("_", "-")] = relative
    return found


def test_the_core_imports_what_it_declares(repo_root, project):
    found = imported(repo_root, core=True)
    assert found.keys() == names(project["dependencies"]), found


def test_everything_else_that_is_imported_is_declared_by_an_extra_and_nothing_besides(repo_root, project):
    extras = project["optional-dependencies"]
    declared = names(project["dependencies"]) | names([text for extra in EXTRAS for text in extras[extra]])
    declared.discard("profit-sft")
    found = imported(repo_root, core=False)
    assert not found.keys() - declared, {name: found[name] for name in found.keys() - declared}
    assert declared - found.keys() - names(project["dependencies"]) == NOT_IMPORTED.keys()


def test_the_extras_know_the_modules_of_what_they_declare(project):
    for extra, modules in EXTRAS.items():
        declared = names(project["optional-dependencies"][extra])
        if extra != "train":  # what only commands use brings the command
            assert "profit-sft" in declared, extra
            declared.remove("profit-sft")
        assert {DISTRIBUTIONS.get(module, module).replace("_", "-") for module in modules} == declared, extra


def run(code, *, absent):
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(absent)}))\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)


NOT_IN_CORE = {"trl", "peft", "datasets", "accelerate", "typer", "rich", "gguf", "pyarrow", "scipy", "lm_eval"}


def test_objectives_loss_head_and_callback_need_the_core_alone():
    done = run(
        "import torch\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from profit_sft import ProFit, ProFitCallback, apply_profit, selective_linear_cross_entropy\n"
        "sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1)\n"
        "model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)).train()\n"
        "apply_profit(model, ProFit(threshold=0.01))\n"
        "ids = torch.tensor([[1, 2, 3, 4]])\n"
        "model(input_ids=ids, labels=ids).loss.backward()\n"
        "print(model.lm_head.weight.grad.norm() > 0)",
        absent=NOT_IN_CORE,
    )
    assert done.stdout.strip() == "tensor(True)", done.stderr


def test_a_command_without_typer_says_which_extra_brings_it(tmp_path, monkeypatch):
    """Those without another package: tests/cli/test_not_installed.py."""
    monkeypatch.chdir(tmp_path)
    done = run("from profit_sft.cli import main; sys.argv[1:] = ['train']; main()", absent={"typer"})
    expected = "error: the command profit needs the extra 'train': typer is not installed. Run pip install '.[train]'"
    assert expected in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_a_name_without_its_extra_is_an_import_error_that_says_which():
    done = run("from profit_sft import ProFitTrainer", absent={"trl"})
    assert "MissingExtraError: ProFitTrainer needs the extra 'train': trl is not installed." in done.stderr


def test_what_no_extra_brings_stays_what_it_is():
    assert missing_extra("antigravity") is None
    assert missing_extra(None) is None
    assert "'.[train]'" in str(missing_extra("scipy"))
    with pytest.raises(ModuleNotFoundError) as of_another_version:
        importlib.import_module("trl.no_such_part")
    assert missing_extra(of_another_version.value.name) is None
