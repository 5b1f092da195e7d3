"""The network service: isolated networks with subnets, ports, routers, floating IPs and security groups (Neutron v2.0).

It decides what the network shall be; hosts make it so. What a host is to have follows from the records by plain functions
(projection.py); what it reports comes back as the status of ports (observer.py).

Invariants, each held by the commit and not by a check before it:
- a VNI, an address of a subnet and a MAC on a network are keys of their own, so none is ever given twice;
- subnets of one network do not overlap, because each subnet's commit replaces its network's record; the interfaces of one
  router do not overlap, because each interface's commit replaces the router's record;
- nothing is deleted that something else needs: who needs a thing writes a key below the thing's (/network/uses/) and compares
  that the thing is there, who deletes it compares that there is no such key;
- a floating IP's change of port replaces the port's record too, so that no port is deleted below it;
- the quota ledger is charged in the commit that creates and given back in the one that deletes.

DHCP's address of a subnet stands in the subnet, not among the allocations: whoever allocates compares that the subnet is
unchanged. So "no allocations" is exactly "no port but DHCP's".

Keys:
  /network/networks/<id>                  Network
  /network/vnis/<vni>                     VniRecord
  /network/subnets/<id>                   Subnet
  /network/allocations/<subnet>/<ip>      AllocationRecord
  /network/ports/<id>                     Port
  /network/routers/<id>                   Router
  /network/floatingips/<id>               FloatingIp
  /network/groups/<id>                    SecurityGroup, its rules inside
  /network/default-groups/<project>       DefaultGroupRecord
  /network/uses/<thing>/<user>            UseRecord: ports of a network by MAC, ports and groups that name a group by id,
                                          floating IPs through a router's port by id
  /network/topologies/<project>           TopologyRecord
  /network/foundations/<name>             FoundationRecord
"""
