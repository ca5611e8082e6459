"""Make the pictures of a run's page: python docs/make_run_screenshots.py RUN [RUN2 ...] [--output_dir FOLDER] [--all].

Writes `run.png`, which docs/how-to/watch.md shows; with `--all` also the whole page, and with more runs the comparison,
at two widths in both themes, to look at after a change. Needs chromium and playwright.
"""

import tempfile
from pathlib import Path

from pictures import HEIGHT, WIDTHS, chromium, parsed

from profit_sft.runs.page import write_run_page

_SHOWN = {"width": 1200, "height": 900}  # pixels of the picture in the docs


def main() -> None:
    """Draw the pages and take their pictures."""
    args = parsed(__doc__, "runs", "folders `profit train` wrote")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        pages = {"run": write_run_page(args.runs[:1], Path(folder) / "run.html")}
        if len(args.runs) > 1:
            pages["comparison"] = write_run_page(args.runs, Path(folder) / "comparison.html")
        page = browser.new_page(viewport=_SHOWN, color_scheme="light")
        page.goto(pages["run"].as_uri())
        page.locator(".plot").first.hover()
        page.screenshot(path=args.output_dir / "run.png")
        for name, file in pages.items() if args.all else ():
            for width in WIDTHS:
                for theme in ("light", "dark"):
                    page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=theme)
                    page.goto(file.as_uri())
                    page.screenshot(path=args.output_dir / f"{name}-{width}-{theme}.png", full_page=True)


if __name__ == "__main__":
    main()
