"""Backups: all that a cloud is, in one file, and a cloud made of it again.

`state.py` reads the store at one revision and writes it into an empty one, `archive.py` is the file (a tar whose last member,
the manifest, has the hash of every other), `sealing.py` encrypts it, `making.py` and `restoring.py` put these together.

Invariants:
- The state in a backup is that of one revision.
- Nothing is unpacked before the whole file was checked.
- A restore touches nothing that belongs to hosts: disks and domains of servers stay, and running ones are adopted.
- What lasts no longer than a process (leases, elections, marks) is not in it; neither are keys that tokens are sealed with:
  no token outlives a restore, for what was revoked since the backup would count again.
"""
