"""What a command shows while it works: named steps, timed, on stderr."""
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


class Steps:
    """Times named steps and shows each as it runs; `seconds` has what each took."""

    def __init__(self, *, quiet: bool = False):
        self.seconds: dict[str, float] = {}
        self.quiet = quiet

    def __call__(self, name: str) -> "_Step":
        return _Step(self, name)

    def done(self, name: str, seconds: float, failed: bool) -> None:
        self.seconds[name] = round(seconds, 2)
        if not self.quiet:
            console.print(f"{'[red]failed[/]' if failed else '[green]ok[/]':<8} {name} [dim]({seconds:.1f} s)[/]")


class _Step:
    def __init__(self, steps: Steps, name: str):
        self._steps, self._name = steps, name
        self._status = console.status(name) if not steps.quiet and console.is_terminal else None

    def __enter__(self) -> None:
        self._started = time.monotonic()
        if self._status:
            self._status.start()

    def __exit__(self, kind: Any, *rest: object) -> None:
        if self._status:
            self._status.stop()
        self._steps.done(self._name, time.monotonic() - self._started, kind is not None)


@contextmanager
def progress_bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on stderr, where that is a terminal; gives what to call with each number of bytes done."""
    if quiet or not console.is_terminal:
        yield lambda size: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console,
                  transient=True) as progress:
        task = progress.add_task(what, total=total)
        waiting = 0

        def advance(size: int) -> None:
            nonlocal waiting
            waiting += size
            if waiting >= 1 << 18:
                progress.advance(task, waiting)
                waiting = 0

        yield advance
