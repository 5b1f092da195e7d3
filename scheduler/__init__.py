"""Bin packing of servers onto hosts: a snapshot in, a plan out. No I/O; knows neither etcd nor gRPC.

types       what goes in and what comes out
planner     the two doors: Snapshot, plan()
reference   what the kernels mean, in plain Python: the oracle they are tested against
_pack       the same in Cython
"""
