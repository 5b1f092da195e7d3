"""Thousands of hosts in a process, for trying a control plane: the agent that real hosts run, over hypervisors in memory.

`behaviour` says how long things take and how often they fail, drawn from a seed alone; `host` is one host, `channels` the
connections that hosts share, `fleet` all hosts of a process, `run` several processes and what they count together.

A host's draws depend on the seed, its name, what is done and how often that was done before: never on the clock, on other hosts
or on the ids that the control plane gives. So the same requests in the same order meet the same latencies and the same failures.
"""
