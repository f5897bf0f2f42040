"""What Ctrl-C leaves on the screen."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into its sentence on stderr (how to resume, where the run can be) and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(str(interrupt) or "interrupted", err=True)
        raise typer.Exit(130) from None
