"""Make the picture of the README: python docs/make_screenshots.py SCORES [SCORES2] [--output_file FILE].

The scores are of generated problems, such as those the quickstart leaves in `scores/before` and `scores/after`. Needs
chromium and playwright.
"""

import argparse
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

from playwright.sync_api import sync_playwright

from profit_sft.mask.page import write_mask_page
from profit_sft.mask.report import make_report
from profit_sft.scores.store import load_scores

_WIDTH, _HEIGHT = 1200, 1090


def main() -> None:
    """Draw the page and take its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, nargs="+", help="one folder `profit score` wrote, or two of the same data")
    parser.add_argument("--output_file", type=Path, default=Path(__file__).parent / "images" / "mask.png")
    parser.add_argument("--section", default="probabilities", help="id of the part to begin with")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "mask.html"
        write_mask_page(make_report([load_scores(scores) for scores in args.scores]), page_file, today=date.today())
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(
            viewport={"width": _WIDTH, "height": _HEIGHT},
            color_scheme="dark" if args.dark else "light",
            reduced_motion="reduce",
        )
        page.goto(page_file.as_uri())
        page.check("#kinds")
        page.locator(f"#{args.section}").evaluate("section => section.scrollIntoView()")
        page.locator(".flow").first.locator(".t:not(.m)").nth(9).hover()
        page.screenshot(path=str(args.output_file))
        browser.close()


if __name__ == "__main__":
    main()
