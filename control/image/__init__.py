"""The image service: what disks, kernels and ramdisks of servers are made from (OpenStack's Glance, v2).

Nouns: an image (its record), its data (one file), its members (the projects that a shared image is shared with).

Invariants
- An image is `active` exactly when its record carries the size and hashes of a complete file, and that file was checked to be
  what the record's disk_format says and to lead to no other file of the host, and was on disk before the commit.
- Data is never in the store. A file's name is in a record before the file is written, and in a garbage record from the commit
  that lets go of it until it is gone: so no crash leaves a file that nothing knows.
- An upload holds a lock on its file. Whoever finds an image `saving` whose file nobody holds returns it to `queued`.
- The quota ledger "image" counts each project's images and the bytes of those with data, in the commits that change them.

- Data is on the disk of the replica that took it before the image is active; every other replica then fetches a copy of the
  same name for itself, and deletes it when no record names it any more (copies.py).

Key layout
  /image/images/<id>                 ImageRecord
  /image/members/<image>/<project>   Member
  /image/garbage/<file>              Garbage

Files: model.py, access.py, patch.py, query.py and formats.py decide and do no I/O; files.py is the data directory; images.py,
data.py, members.py and discovery.py are the servicers; reconciler.py repairs and collects, copies.py has every replica keep all
data; service.py puts them together.
"""
