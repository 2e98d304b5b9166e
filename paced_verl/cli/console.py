"""What commands are given, what they say to a person, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from paced_verl.errors import PacedError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from paced_verl.config import PacedConfig

_Result = TypeVar("_Result")
Overrides = Annotated[
    list[str] | None, typer.Argument(help="The overrides of the run, as given to python -m verl.trainer.main_ppo.")
]
ConfigName = Annotated[str, typer.Option(help="Hydra's --config-name.")]
ConfigPath = Annotated[Path | None, typer.Option(help="Hydra's --config-path (a folder).")]


def say(text: str, style: str | None = None, stderr: bool = False) -> None:
    """Print text as it is; a terminal breaks its lines, a pipe gets them whole."""
    Console(stderr=stderr).print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table, fitted to the terminal; a pipe gets it as wide as it is."""
    console = Console()
    console.print(table) if console.is_terminal else Console(width=1000).print(table)


def or_exit(run: Callable[[], _Result]) -> _Result:
    """Run, and turn what a person did wrong into a message and exit code 1; a fault of the program's stays one."""
    from hydra.errors import HydraException

    try:
        return run()
    except (PacedError, FileNotFoundError, ConnectionError, HydraException) as error:
        say(str(error), style="red", stderr=True)
        raise typer.Exit(1) from None


def settled(overrides: list[str] | None, config_name: str, config_path: Path | None) -> tuple[DictConfig, PacedConfig]:
    """The configuration of a run, settled and checked, and its block."""
    from paced_verl.checks import check
    from paced_verl.launch.hydra import compose

    config = compose(overrides or [], config_name, config_path)
    return config, check(config)[0]
