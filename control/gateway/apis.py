"""Which REST API a proto package is, and what the options of its descriptors say.

A package's API stands as (brume.v1.api) in one of its files: the service's own, or api.proto beside it.
"""
from dataclasses import dataclass, field

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor

from control.kernel.naming import api_options
from protos.brume.v1 import options_pb2

Family = options_pb2.Api.Family

#: A microversion as one number, greater than every real one: the API has none, or the caller takes everything.
EVERYTHING = 10 ** 9


def number(microversion: str) -> int:
    """ "2.96" as a number that compares as microversions do; "" is 0."""
    if not microversion:
        return 0
    major, minor = microversion.split(".")
    return int(major) * 100_000 + int(minor)


@dataclass(frozen=True, eq=False)
class Api:
    """One REST API of the listener. `mount` is "" or begins with a slash; neither it nor a prefix ends with one."""

    family: int
    type: str
    name: str
    mount: str
    endpoint: str
    versions: tuple[options_pb2.Api.Version, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    dated_since: int = EVERYTHING + 1     # the microversion from which answers say when what they show was changed
    is_keystone: bool = field(init=False)      # the family's name, which a call asks often
    is_nova: bool = field(init=False)
    is_neutron: bool = field(init=False)

    def __post_init__(self) -> None:
        for name in ("keystone", "nova", "neutron"):
            object.__setattr__(self, f"is_{name}", self.family == Family.Value(name.upper()))

    def prefix_of(self, path: str) -> str:
        """The version's part of a path below the mount: "/v2.1" of "/v2.1/servers"; the endpoint's path where it has none."""
        found = [version.path.rstrip("/") for version in self.versions if path.startswith(version.path.rstrip("/") + "/")]
        return max(found, key=len, default=self.endpoint)

    def version_of(self, path: str) -> options_pb2.Api.Version | None:
        """The version with microversions that a path below the mount belongs to; None where there is none."""
        found = [version for version in self.versions
                 if version.max_version and version.path not in self.aliases
                 and path.startswith(version.path.rstrip("/") + "/")]
        return max(found, key=lambda version: len(version.path), default=None)


def api_of(service: ServiceDescriptor) -> Api:
    """The API that a service belongs to. Raises LookupError where no file of its package names one."""
    options = api_options(service.file)
    if options is None:
        raise LookupError(f"{service.full_name}: neither {service.file.name} nor api.proto beside it has (brume.v1.api)")
    return Api(options.family, options.type, options.name, options.mount.rstrip("/"), options.endpoint.rstrip("/"),
               tuple(options.versions), dict(options.aliases), number(options.dated_since) or EVERYTHING + 1)


def field_options(field: FieldDescriptor) -> options_pb2.Field:
    """A field's REST options."""
    return field.GetOptions().Extensions[options_pb2.field]


def rest_options(method: MethodDescriptor) -> options_pb2.Rest:
    """An rpc's REST options."""
    return method.GetOptions().Extensions[options_pb2.rest]


def in_json(field: FieldDescriptor) -> bool:
    """Whether a field may stand in a JSON body at all."""
    options = field_options(field)
    return not (options.hidden or options.header or options.query)
