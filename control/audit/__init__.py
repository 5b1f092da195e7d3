"""The audit journal: every change of every record, in order, with who made it, kept in files outside etcd.

`journal.py` follows etcd's history, whose marks say who decided what (control/kernel/etcd_commit.py), so the journal misses
nothing whatever crashes: it goes on from the last revision that it holds. `chain.py` keeps the files, `documents.py` makes
plain data of records, `reading.py` reads, verifies and compares journals, `cadf.py` gives them a common shape.

Invariants:
- A file is lines of JSON; each line ends with the SHA-256 of the hash of the line before it and of itself without its hash.
- A line is on disk at most a tenth of a second after the journal has heard of the change, and never changed afterwards.
- What opens something is not in it: a keyed hash stands in its place.
- Two journals of one cloud say the same of every revision that both hold.

An entry's `type` is "file" (first of each file), "change", "gap" (history that etcd forgot before the journal had it) or "era"
(the state was restored from a backup: revisions begin anew).
"""
