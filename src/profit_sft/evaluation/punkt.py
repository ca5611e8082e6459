"""NLTK's sentence data (punkt_tab, English), which two of IFEval's checkers need and NLTK does not come with."""

import socket
from collections.abc import Callable
from types import ModuleType

from profit_sft.errors import DownloadError

_FOLDER = "tokenizers/punkt_tab/english/"
_SECONDS = 30.0


def ensure_punkt(*, report: Callable[[str], None] = lambda text: None) -> None:
    """Make sure that NLTK finds its English sentence data, which `nltk.download` fetches on first use (4 MB).

    Args:
        report: Called with one line of text before it is fetched.

    Raises:
        DownloadError: It is not there and cannot be fetched; says what to do.
    """
    import nltk

    if _is_there(nltk):
        return
    report("fetching NLTK's sentence data for ifeval (4 MB), once")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)  # NLTK sets none, and would wait for a server that does not answer
    try:
        nltk.download("punkt_tab", quiet=True)
    finally:
        socket.setdefaulttimeout(before)
    if not _is_there(nltk):
        raise DownloadError(
            "ifeval: NLTK's sentence data is not on this machine, and nltk.download cannot fetch it. Where its server "
            "can be reached run `python -m nltk.downloader punkt_tab`; the folder nltk_data it makes may be copied to "
            "this machine and named by the variable NLTK_DATA. Or leave ifeval out."
        )


def _is_there(nltk: ModuleType) -> bool:
    try:
        nltk.data.find(_FOLDER)
    except LookupError:
        return False
    return True
