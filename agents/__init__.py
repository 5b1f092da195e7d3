"""What runs on a hypervisor host: it makes the host like the objects that the control plane sends, and says what it sees.

Knows protos/ and nothing else of the program. Level-triggered throughout: an object is the whole wish for one thing, the
world is looked at before each step, and a step may always be taken again. So a lost stream, a killed agent or a restarted
libvirtd costs another look and nothing more; virtual machines run on while agent and control plane are away.

    main.py           wires one agent from its configuration
    link.py           the stream to the control plane: hello, wishes in, observations out
    agent.py          the wishes of this host, and who works on each
    work.py           keys to work on, each by one worker at a time, again after failure
    hypervisor/       servers: the Protocol, libvirt and simulated
    image/            the cache that disks are made from
    telemetry/        what every process of a cloud, the control plane too, tells of itself: metrics, health, logs, traces
    network/          taps, bridges, DHCP, metadata, filters, routers
"""
