"""Take the pictures of pages that README and docs show.

    python docs/pictures.py --mask runs/quickstart/mask.html --run runs/quickstart/profit/report.html \
        --comparison runs/quickstart/comparison.html --study runs/one-to-many/report.html

Any of them may be left out. With `--all` also each page as a whole, at two widths in both themes, to look at after a
change. Needs chromium and playwright.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SHOWN = (1200, 800)  # pixels of the pictures in README and docs
WIDTHS, HEIGHT = (1400, 390), 900


def _mask(page: Page, folder: Path) -> None:
    page.locator(".flow").nth(1).locator(".t").nth(8).hover()
    page.screenshot(path=folder / "mask.png")
    page.locator("#probabilities").evaluate("section => section.scrollIntoView()")
    page.screenshot(path=folder / "mask-figures.png")


def _run(page: Page, folder: Path) -> None:
    page.locator(".plot").first.hover()
    page.screenshot(path=folder / "run.png")


def _comparison(page: Page, folder: Path) -> None:
    page.screenshot(path=folder / "comparison.png")


def _study(page: Page, folder: Path) -> None:
    page.locator("#verdict").evaluate("section => section.scrollIntoView()")
    page.screenshot(path=folder / "study.png")


TAKEN: dict[str, Callable[[Page, Path], None]] = {
    "mask": _mask,
    "run": _run,
    "comparison": _comparison,
    "study": _study,
}


def main() -> None:
    """Open the pages and take their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in TAKEN:
        parser.add_argument(f"--{name}", type=Path, help="the HTML file")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--all", action="store_true", help="both widths, both themes, whole pages")
    args = parser.parse_args()
    if shutil.which("chromium") is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)

        def opened(file: Path, width: int, height: int, theme: str) -> Page:
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
            page.goto(file.resolve().as_uri())
            page.wait_for_timeout(500)  # some figures are drawn when the text stands
            return page

        for name, take in TAKEN.items():
            file = getattr(args, name)
            if file is None:
                continue
            take(opened(file, *SHOWN, "light"), args.output_dir)
            for width in WIDTHS if args.all else ():
                for theme in ("light", "dark"):
                    picture = args.output_dir / f"{name}-{width}-{theme}.png"
                    opened(file, width, HEIGHT, theme).screenshot(path=picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
