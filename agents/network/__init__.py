"""The host's part of networks: what makes bridges, taps, namespaces, DHCP, DNS, metadata, routers and filters of wishes.

A network is a bridge in the root namespace; a server's port is a tap in it. DHCP, DNS and metadata live in a namespace per
network, a router in one per router; both are joined to the bridges by pairs of veth. The root namespace has no address on a
tenant's bridge and refuses what a tenant sends to it; only external networks are the host's to route.

    driver.py        the Protocol and its simulated twin
    names.py         what everything is called, and whose it is
    wish.py          the host's objects, sorted out and checked
    filters.py       the root namespace's rules: anti-spoofing, security groups, the way out (pure text)
    nft.py           libnftables: text in, one transaction
    kernel.py        links, addresses, routes, namespaces by netlink
    dhcp.py          dnsmasq's configuration and its process
    resolver.py      the names that dnsmasq does not know: forwarded by the agent, outside the namespace
    responder.py     HTTP at 169.254.169.254
    listeners.py     the two above, served by the agent in each namespace
    routers.py       a router's namespace and its rules
    host.py          LinuxNetworking: all of it, in order

Invariants
    * Nothing is remembered that cannot be found again on the host: by name, by ifalias "<cloud>/<kind>/<id>", by namespace.
    * Rules come before links: a tap enters its bridge when its rules are there, and a link that the rules do not know passes
      nothing.
    * Two clouds on one machine have nothing in common: own tables that match own interfaces only, own names.
"""
