"""Compute: servers, and what they are made from; OpenStack's Nova v2.1 in REST.

Nouns: server (with metadata, tags, addresses), server group, instance action, flavor, key pair, quota, and hosts as hypervisors,
services, zones and aggregates; and the placement decision, which says why a server is where it is.

A server's record holds three things with an owner each: what is wanted (`desired`, the API), what its host reports (`seen`,
the observer) and where it is (`host`, the reconciler). Its status is derived from these by model.derive and stored nowhere.

Invariants, at every revision of the store:
- The ledger of a project equals the sum over its servers' records: a record comes and goes in the commit that charges.
- A server has a host exactly while it holds an allocation there; both come in one commit with the binding of its ports.
- A record goes after its host reported that nothing is left (or was never chosen), with its ports, allocation and charge.
- `desired.generation` grows with each change of what the host shall make.

Keys:
    /compute/servers/<id>                      ServerRecord
    /compute/actions/<server>/<request id>     ActionRecord; may outlive its server by a moment, then the reconciler takes it
    /compute/decisions/<server>                PlacementDecision: the last one, gone with the server
    /compute/server-groups/<id>                ServerGroupRecord; a server names its group, so members are what names it
    /compute/flavors/<id>                      FlavorRecord
    /compute/flavor-names/<name>               FlavorName: makes the name unique
    /compute/keypairs/<user>/<name>            KeyPairRecord
    /quota/ledgers/compute/<project>           instances, cores, ram (MiB), server_groups
    /fleet/aggregates/<id>                     HostAggregate, in control/kernel/fleet.py for all to read
    /quota/ledgers/compute.user/<user>         key_pairs
"""
