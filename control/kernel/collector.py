"""The cycle collector, told of loads: what is read in at once stays, and looking through it time and again costs the most."""
import contextlib
import gc
from collections.abc import Iterator

#: New objects after which the youngest are looked through, and how often that happens before older ones are, and all. Python's
#: own (700, 10, 10) suit small programs: with 10,000 streams and their records, half of an attach's CPU was spent on looking.
#: More keeps cycles longer and pauses longer for each look; 20,000 take some milliseconds. Each object that lives is looked through
#: once with the older ones, however often that happens: every 4th time stops the loop for 5 to 10 ms, every 20th for 25 and more.
THRESHOLDS = (20_000, 4, 500)


def relax() -> None:
    """Have a process of many objects that stay looked through less often."""
    gc.set_threshold(*THRESHOLDS)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Collect nothing meanwhile, and leave what is there at the end out of later collections; it still goes with its last use."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
