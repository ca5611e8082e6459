"""Completion of a command's flags in a shell, with hyphens or underscores, those that TRL's parser reads among them."""

from typing import Any

from typer.core import TyperCommand

from profit_sft.cli.options import underscored
from profit_sft.cli.train_help import flags_to_complete


class CompletedCommand(TyperCommand):
    """A command as a shell's completion sees it."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the flags that begin so; for a value nothing, for which a shell offers files."""
        if not incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        offered: dict[str, Any] = {item.value: item for item in super().shell_complete(ctx, "-")}
        item = type(next(iter(offered.values())))  # of click, or of the copy of it that typer brings, by its version
        if self.name == "train":
            offered = {flag: item(flag) for flag in flags_to_complete()} | offered
        return [entry for flag, entry in offered.items() if underscored(flag).startswith(underscored(incomplete))]
