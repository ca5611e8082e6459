"""Make the pictures of a run's page: python docs/make_run_screenshots.py RUN [RUN2 ...] [--output_dir FOLDER] [--all].

Writes `run.png`, which docs/how-to/watch.md shows; with `--all` also the whole page, and with more runs the comparison,
at two widths in both themes, to look at after a change. Needs chromium and playwright.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from profit_sft.runs.page import write_run_page

_WIDTHS, _HEIGHT = (1400, 390), 900
_SHOWN = {"width": 1200, "height": 900}  # pixels of the picture in the docs


def main() -> None:
    """Draw the pages and take their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders `profit train` wrote")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--all", action="store_true", help="both widths, both themes, whole pages")
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = {"run": write_run_page(args.runs[:1], Path(folder) / "run.html")}
        if len(args.runs) > 1:
            pages["comparison"] = write_run_page(args.runs, Path(folder) / "comparison.html")
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport=_SHOWN, color_scheme="light")
        page.goto(pages["run"].as_uri())
        page.locator(".plot").first.hover()
        page.screenshot(path=args.output_dir / "run.png")
        for name, file in pages.items() if args.all else ():
            for width in _WIDTHS:
                for theme in ("light", "dark"):
                    page = browser.new_page(viewport={"width": width, "height": _HEIGHT}, color_scheme=theme)
                    page.goto(file.as_uri())
                    page.screenshot(path=args.output_dir / f"{name}-{width}-{theme}.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
