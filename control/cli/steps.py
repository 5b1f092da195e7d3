"""What a command shows while it works: named steps, timed, on stderr."""
import time
from typing import Any

from rich.console import Console

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
