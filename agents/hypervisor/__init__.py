"""Virtual machines: what is asked of a hypervisor (driver.py), which step comes next (model.py), and who can do it.

A domain's UUID is its server's id. What Brume has to remember of a domain (generation, reboots done) lives in the domain's
own metadata, so that a restarted agent finds it where the machine is and touches nothing that is right already.
"""
