"""What the scripts that take pictures of pages share: their arguments, and the browser."""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDTHS, HEIGHT = (1400, 390), 900  # pixels of the pictures that `--all` takes


def parsed(description: str | None, what: str, help: str) -> argparse.Namespace:
    """Return the command line: folders, named `what`, `output_dir`, which is there then, and `all`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(what, type=Path, nargs="+", help=help)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--all", action="store_true", help="both widths, both themes, whole pages")
    args = parser.parse_args()
    if shutil.which("chromium") is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's chromium, headless."""
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()
