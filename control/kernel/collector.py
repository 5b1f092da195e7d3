"""The cycle collector, told of loads: what is read in at once stays, and looking through it time and again costs the most."""
import contextlib
import gc
from collections.abc import Iterator


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
