"""Watch: the changes of what users list, streamed to them as they happen.

One step is what a replica's cache takes in at once: whole revisions. For each kind that somebody watches, a step becomes
events: a record in somebody's list after it and not before is ADDED, before it and not after DELETED, both MODIFIED. An event
is made once for all who see the same of it, and each reader has a queue of its own with a bound; who lets it fill up is
dropped, and told where to go on.

`history` has the changes since a revision: in memory for the last ones, from the store for what is older, until it is
compacted. A reader that comes back gets the difference between the state at its revision and the present one, made by the same
function as a step's events; so it does not matter on which replica it comes back, or how revisions were cut into steps there.
"""
