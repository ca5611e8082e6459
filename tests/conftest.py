"""Fixtures every test may use: the real 135M model and tokenizer, and where the data lies.

The environment is set before anything imports transformers, which reads it once.
"""

import gc
import os
import shutil
import tempfile
import zipfile

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Prepared data is kept in the cache of `datasets`: in one of this run's own, so that nothing of another run is found.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="profit-tests-")
# Without a GPU the kernels run in Triton's interpreter; it must be set before they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    # DeepSpeed, a dependency of the tests alone, would say on stderr that it finds no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from campaign import WHOLE, meeting

_CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.hookimpl(trylast=True)  # of what -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sample the tables that are marked `pairs`, and begin with the files of slow tests.

    Rows that only a GPU runs, or that nothing here does, are left as they are, and count for nothing.
    """
    tables: dict[str, list[pytest.Item]] = {}
    for item in items if not WHOLE else ():
        runs = not item.get_closest_marker("gpu") and not any(mark.args[0] for mark in item.iter_markers("skipif"))
        if runs and item.get_closest_marker("pairs"):
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for rows in tables.values():
        # The rows of a table share the objects that are its values.
        values = [{name: id(value) for name, value in row.callspec.params.items()} for row in rows]
        left_out |= set(rows) - {rows[index] for index in meeting(values)}
    config.hook.pytest_deselected(items=list(left_out))
    # So that of two processes neither is alone with a long file in the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items[:] = sorted((item for item in items if item not in left_out), key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Let every later collection of garbage pass over the libraries and the tests, which stay to the end."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries would tell at the end of the process what has not been freed
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def precision_of_one_test() -> Iterator[None]:
    """transformers 4 leaves the precision of one configuration in the environment, where the next one reads it."""
    name = "ACCELERATE_MIXED_PRECISION"
    before = os.environ.pop(name, None)
    yield
    os.environ.pop(name, None)
    if before is not None:
        os.environ[name] = before


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny chat model; no test changes it."""
    from tiny import save_tiny_chat_model

    return save_tiny_chat_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def onednn_products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], bool]]:
    """Shape of each matrix that oneDNN has multiplied for a linear layer, and whether a bias was added.

    On any processor for which there is oneDNN.
    """
    from profit_sft import linears

    product = linears._PRODUCT
    if product is None or not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN: this build of torch has none")
    found: list[tuple[tuple[int, ...], bool]] = []

    def noted(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: object) -> torch.Tensor:
        found.append((tuple(weight.shape), bias is not None))
        made: torch.Tensor = product(rows, weight, bias, *rest)
        return made

    monkeypatch.setattr(linears, "_PRODUCT", noted)
    monkeypatch.setattr(linears, "onednn_is_faster", lambda: True)
    return found


@pytest.fixture(scope="session")
def shared_data(repo_root: Path) -> Path:
    folder = repo_root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no benchmark data: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def punkt() -> None:
    """NLTK's sentence data: out of a package on PyPI, or by NLTK. Skips where neither can be reached."""
    import nltk
    from filelock import FileLock

    from profit_sft.errors import DownloadError
    from profit_sft.evaluation.tasks.ifeval import ensure_punkt
    from profit_sft.models.embedded import default_cache, pip_download

    kept, inside = default_cache() / "nltk_data", "llama_index/core/_static/nltk_cache/"
    wanted = "tokenizers/punkt_tab/english/"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # two processes share the tests
        if not kept.is_dir():
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                pip_download("llama-index-core==0.14.25", Path(folder))
                for wheel in Path(folder).glob("*.whl"):
                    with zipfile.ZipFile(wheel) as archive:
                        names = [name for name in archive.namelist() if name.startswith(f"{inside}{wanted}")]
                        archive.extractall(folder, names)
                    (Path(folder) / inside).rename(kept)
    nltk.data.path.append(str(kept))
    try:
        ensure_punkt()
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """Skips where the model cannot be fetched; any other failure is a failure."""
    from profit_sft.errors import DownloadError
    from profit_sft.models.embedded import embedded_model_folder

    try:
        return embedded_model_folder()
    except DownloadError as error:
        pytest.skip(f"the embedded model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_folder: Path) -> "PreTrainedTokenizerBase":
    """Shared by the session: a test that changes it works on a copy."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(smollm2_folder)
    return tokenizer


@pytest.fixture(scope="session")
def smollm2_model(smollm2_folder: Path) -> "Callable[[], PreTrainedModel]":
    """Call it for a fresh fp32 model (540 MB, about a second), so that tests may train or patch theirs."""
    import torch
    from transformers import AutoModelForCausalLM

    def load() -> "PreTrainedModel":
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
        model.eval()
        return model

    return load


@pytest.fixture(scope="session")
def browser():
    """A real chromium without a window; its profile is new and empty."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(_CHROMIUM_FLAGS))
        yield browser
        # Workers of a data loader that nobody holds any more, but that were forked while the browser was open, have its
        # pipes, too: closing would wait for their end.
        gc.collect()
        browser.close()
