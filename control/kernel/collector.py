"""The cycle collector, told of loads: what is read in at once stays, and looking through it time and again costs the most."""
import contextlib
import gc
from collections.abc import Iterator

#: New objects, less those that went, after which the youngest are looked through; how often that happens before older ones are,
#: and all. Python's own (700, 10, 10) suit small programs: with 10,000 streams and their records, half of an attach's CPU went
#: into looking. More cost less and stop the loop for longer: among 100,000 servers 20,000 are five times as many by the time, and
#: take 70 ms; 5,000 cost 3 % of the boots a second. What lives is looked through once more with the older ones, however often
#: that happens: with 20,000 every 4th time stopped the loop for 160 to 410 ms, and the 20th would for five times as long.
THRESHOLDS = (10_000, 4, 1_000)


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
