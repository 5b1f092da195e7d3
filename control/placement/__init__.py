"""Placement: what there is, what is allocated of it, and which host a server goes to.

Nouns, all in kernel.fleet: providers (/fleet/providers/<uuid>, their names /fleet/provider-names/<name>) in trees, with
inventories, traits and aggregates; allocations (/fleet/allocations/<consumer>); usages (/fleet/usages/<provider>); custom
resource classes and traits (/fleet/resource-classes/<name>, /fleet/traits/<name>).
Invariants: the usage of a provider is the sum of all allocations of it, at every revision (ledger.py is the only one who writes
either); no allocation is made that takes a usage over capacity. A host's root provider has the host's id and name, and is written
and deleted with the host. Every provider's root is its parent's, and no provider is below itself (trees.py).
"""
