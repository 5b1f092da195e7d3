"""Placement: which host a server goes to, and what it holds there.

Nouns: hosts and claims, both in kernel.fleet (/fleet/hosts/<name>, /fleet/claims/<server id>).
Invariant: claims on a host never add up to more than its inventory times the over-commit ratios; a claim is made in the
commit that binds its server to the host, and given back in the commit that unbinds or deletes it.
"""
