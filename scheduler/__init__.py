"""Bin packing of servers onto hosts: a fleet's state in, placements out. No I/O; knows neither etcd nor gRPC.

types         what goes in and what comes out
fleet         the door: hosts, consumers and server groups by name
constraints   which hosts may serve a shape, whatever they have free
explain       why nothing fits and what would, why a host was taken
reference     what the engine means, in plain Python: the oracle that it is tested against
_engine       the same in Cython
"""
