"""Every kind of record that a cloud keeps: what the cache holds, the journal writes down and a backup counts."""
from control.compute import model as compute
from control.identity import model as identity
from control.image import model as image
from control.kernel import fleet, quota, replicas
from control.kernel.cache import Kind
from control.network import model as network

KINDS: tuple[Kind, ...] = (*quota.KINDS, *replicas.KINDS, *fleet.KINDS, *identity.KINDS, *image.KINDS, *compute.KINDS,
                           *network.KINDS)
