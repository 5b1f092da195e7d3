"""Chaos: a cloud of three replicas under load while its parts are killed, paused and cut off, and what must still hold.

`run.py` brings up a cloud of its own, has clients work on it (`clients.py`) while faults happen (`faults.py`), lets all heal,
and then judges: the history of what clients were answered (`linearizable.py`) and the state that is left (`invariants.py`).
Clients and faults are drawn from a seed, so that a run can be asked for again.
"""
