"""Help in two lengths: ``--help`` explains the common options and names the others, ``--help-all`` explains all."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from typer import rich_utils
from typer.core import TyperArgument, TyperCommand, TyperOption

ALL = "--help-all"
MORE_TITLE = f"More options, which {ALL} explains"


def _show_all(context: typer.Context, requested: bool) -> None:
    """Print the help on every option, and end the command."""
    if requested and isinstance(context.command, HelpfulCommand):
        rich_utils.rich_format_help(obj=context.command, ctx=context, markup_mode="rich")
        raise typer.Exit


def show_all_commands(context: typer.Context, requested: bool) -> None:
    """Print the help on every option of every command, and end."""
    if requested:
        for name, command in getattr(context.command, "commands", {}).items():
            inner = typer.Context(command, info_name=name, parent=context)
            rich_utils.rich_format_help(obj=command, ctx=inner, markup_mode="rich")
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(ALL, callback=_show_all, is_eager=True, help="Explain all options."),
]


class HelpfulCommand(TyperCommand):
    """A command whose ``--help`` explains the options without a panel, and only names those in panels."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help on the common options, and the names of the others by panel."""
        panels: dict[str, list[str]] = {}
        for option in self.params:
            panel = getattr(option, "rich_help_panel", None)
            if panel and isinstance(option, TyperOption) and not option.hidden:
                panels.setdefault(panel, []).append(option.opts[0])
        short = copy.copy(self)
        short.params = [option for option in self.params if self._is_common(option, bool(panels))]
        short.epilog = None
        rich_utils.rich_format_help(obj=short, ctx=ctx, markup_mode="rich")
        console = Console()
        if panels:
            console.print(_names(panels))
        console.print(f"\n {self.epilog}", highlight=False)

    @staticmethod
    def _is_common(parameter: object, has_panels: bool) -> bool:
        """Return whether ``--help`` explains a parameter; ``--help-all`` itself only where it has more to say."""
        if isinstance(parameter, TyperOption) and ALL in parameter.opts:
            return has_panels
        return isinstance(parameter, TyperArgument) or getattr(parameter, "rich_help_panel", None) is None


def _names(panels: dict[str, list[str]]) -> Panel:
    """Return a panel with a line for each group of options: its title, and the options' names."""
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(style=rich_utils.STYLE_OPTION, ratio=1)
    for title, names in panels.items():
        table.add_row(title, "  ".join(names))
    return Panel(
        table,
        border_style=rich_utils.STYLE_OPTIONS_PANEL_BORDER,
        title=MORE_TITLE,
        title_align=rich_utils.ALIGN_OPTIONS_PANEL,
    )
