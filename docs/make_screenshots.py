"""Make the pictures of the mask page: python docs/make_screenshots.py SCORES [SCORES2] [--output_dir FOLDER] [--all].

The scores are of generated problems, such as those the quickstart leaves in `scores/before` and `scores/after`. Writes
`mask.png` and `mask-figures.png`, which README and docs show; with `--all` also the top and the whole of the page at
two widths in both themes, to look at after a change. Needs chromium and playwright.
"""

import tempfile
from datetime import date
from pathlib import Path

from pictures import HEIGHT, WIDTHS, chromium, parsed
from playwright.sync_api import Page

from profit_sft.mask.page import write_mask_page
from profit_sft.mask.report import make_report
from profit_sft.scores.store import load_scores

_SHOWN = (1200, 760)  # pixels of the pictures in README and docs


def main() -> None:
    """Draw the page and take its pictures."""
    args = parsed(__doc__, "scores", "one folder `profit score` wrote, or two of the same data")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        file = Path(folder) / "mask.html"
        write_mask_page(make_report([load_scores(scores) for scores in args.scores]), file, today=date.today())

        def opened(width: int, height: int, theme: str) -> Page:
            page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
            page.goto(f"{file.as_uri()}#theme={theme}")
            page.wait_for_timeout(500)  # the figures are drawn when the text stands
            return page

        page = opened(*_SHOWN, "light")
        page.locator(".flow").nth(1).locator(".t").nth(8).hover()
        page.screenshot(path=args.output_dir / "mask.png")
        page.locator("#probabilities").evaluate("section => section.scrollIntoView()")
        page.screenshot(path=args.output_dir / "mask-figures.png")
        for width in WIDTHS if args.all else ():
            for theme in ("light", "dark"):
                page = opened(width, HEIGHT, theme)
                page.screenshot(path=args.output_dir / f"mask-{width}-{theme}.png")
                page.screenshot(path=args.output_dir / f"mask-{width}-{theme}-whole.png", full_page=True)


if __name__ == "__main__":
    main()
