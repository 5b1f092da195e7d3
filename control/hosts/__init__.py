"""The agents' side of the control plane: one stream per host, its objects going out, its observations coming in.

A projection says what a host shall be like, from the cache; this service sends the difference to what the agent was last
sent, whenever a change touches the host. It knows no noun of compute or network: projections and observers are passed in.
"""
