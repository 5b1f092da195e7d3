"""The flavors' servicer. A flavor's name is unique by a key of its own; servers keep a copy, so flavors come and go freely."""
import re
import uuid
from collections.abc import Callable, Mapping

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Value

from control.compute import limits, specs
from control.compute.model import FLAVOR, FLAVOR_NAME
from control.kernel import clock, listing
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.rpc import Call
from protos.compute.v1 import flavors_pb2 as pb
from protos.compute.v1.records_pb2 import FlavorName, FlavorRecord

#: Nova's: what fits its database's integers.
LARGEST = 2**31 - 1

MAX_EXTRA_SPECS, MAX_PROJECTS = 128, 1000

_ID = re.compile(r"[A-Za-z0-9_.-]([A-Za-z0-9_. -]{0,253}[A-Za-z0-9_.-])?\Z")
_SPEC_KEY = re.compile(r"[A-Za-z0-9_.: -]{1,255}\Z")


class Flavors:
    """Servicer of compute.v1.Flavors."""

    def __init__(self, database: Database):
        self._database = database

    async def CreateFlavor(self, request: pb.CreateFlavorRequest, call: Call) -> pb.FlavorResponse:
        flavor = _new_flavor(request.flavor)

        def decide(tx: Transaction) -> None:
            if tx.get(FLAVOR_NAME, flavor.name) is not None:
                raise Conflict("compute.flavor.name", f"Flavor with name {flavor.name} already exists.")
            if tx.get(FLAVOR, flavor.id) is not None:
                raise Conflict("compute.flavor.id", f"Flavor with ID {flavor.id} already exists.")
            tx.put(FLAVOR_NAME, FlavorName(name=flavor.name, flavor_id=flavor.id))
            tx.put(FLAVOR, flavor)

        await self._database.transact(decide)
        return pb.FlavorResponse(flavor=view(flavor, call))

    async def ListFlavors(self, request: pb.ListFlavorsRequest, call: Call) -> pb.ListFlavorsResponse:
        flavors, marker = self._page(request, call.caller)
        rows = [pb.FlavorSummary(id=flavor.id, name=flavor.name, description=_description(flavor)) for flavor in flavors]
        return pb.ListFlavorsResponse(flavors=rows, next_page_marker=marker)

    async def ListFlavorsDetail(self, request: pb.ListFlavorsRequest, call: Call) -> pb.ListFlavorsDetailResponse:
        flavors, marker = self._page(request, call.caller)
        return pb.ListFlavorsDetailResponse(flavors=[view(flavor, call) for flavor in flavors], next_page_marker=marker)

    def _page(self, request: pb.ListFlavorsRequest, caller: Caller) -> tuple[list[FlavorRecord], str]:
        key = request.sort_key or "flavorid"
        if key not in ORDERS or request.sort_dir not in ("", "asc", "desc"):
            raise Invalid("compute.flavor.sort", f"Flavors are sorted by one of {', '.join(sorted(ORDERS))}, 'asc' or 'desc'.")
        wanted = _publicity(request.is_public) if caller.is_admin else None
        flavors = [flavor for flavor in self._database.cache.all(FLAVOR)
                   if _may_use(flavor, caller) and (wanted is None or flavor.is_public == wanted)
                   and flavor.ram_mib >= request.least_ram and flavor.disk_gib >= request.least_disk]
        return listing.page(flavors, limit=request.limit, marker=request.marker, sort=[(ORDERS[key], request.sort_dir == "desc")])

    async def GetFlavor(self, request: pb.GetFlavorRequest, call: Call) -> pb.FlavorResponse:
        return pb.FlavorResponse(flavor=view(self._find(request.flavor_id, call.caller), call))

    def _find(self, flavor_id: str, caller: Caller) -> FlavorRecord:
        flavor = self._database.get(FLAVOR, flavor_id)
        if flavor is None or not _may_use(flavor, caller):
            raise _missing(flavor_id)
        return flavor

    async def UpdateFlavor(self, request: pb.UpdateFlavorRequest, call: Call) -> pb.FlavorResponse:
        def change(flavor: FlavorRecord) -> None:
            flavor.ClearField("description")
            if request.flavor.HasField("description"):
                flavor.description = limits.text(request.flavor.description, "description", 65535)

        return pb.FlavorResponse(flavor=view(await self._change(request.flavor_id, change), call))

    async def DeleteFlavor(self, request: pb.DeleteFlavorRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            flavor = tx.get(FLAVOR, request.flavor_id)
            if flavor is None:
                raise _missing(request.flavor_id)
            tx.delete(FLAVOR_NAME, flavor.name)
            tx.delete(FLAVOR, flavor.id)

        await self._database.transact(decide)
        return Empty()

    # Extra specs

    async def ListExtraSpecs(self, request: pb.ListExtraSpecsRequest, call: Call) -> pb.ExtraSpecs:
        return pb.ExtraSpecs(extra_specs=self._find(request.flavor_id, call.caller).extra_specs)

    async def AddExtraSpecs(self, request: pb.AddExtraSpecsRequest, call: Call) -> pb.ExtraSpecs:
        added = await self._add_specs(request.flavor_id, request.extra_specs)
        return pb.ExtraSpecs(extra_specs=added)

    async def SetExtraSpec(self, request: pb.SetExtraSpecRequest, call: Call) -> pb.ExtraSpec:
        if list(request.spec) != [request.spec_key]:
            raise Invalid("compute.flavor.spec", "Request body and URI mismatch: the body must have one item, of the path's key.")
        added = await self._add_specs(request.flavor_id, request.spec)
        return pb.ExtraSpec(spec={key: Value(string_value=value) for key, value in added.items()})

    async def _add_specs(self, flavor_id: str, specs: Mapping[str, Value]) -> dict[str, str]:
        """Add extra specs to a flavor's; what was added, as text."""
        texts = {key: _spec_text(key, value) for key, value in specs.items()}

        def change(flavor: FlavorRecord) -> None:
            flavor.extra_specs.update(texts)
            if len(flavor.extra_specs) > MAX_EXTRA_SPECS:
                raise Invalid("compute.flavor.spec", f"A flavor has at most {MAX_EXTRA_SPECS} extra specs.")

        await self._change(flavor_id, change)
        return texts

    async def GetExtraSpec(self, request: pb.GetExtraSpecRequest, call: Call) -> pb.ExtraSpec:
        flavor = self._find(request.flavor_id, call.caller)
        if request.spec_key not in flavor.extra_specs:
            raise _no_spec(request)
        return pb.ExtraSpec(spec={request.spec_key: Value(string_value=flavor.extra_specs[request.spec_key])})

    async def DeleteExtraSpec(self, request: pb.GetExtraSpecRequest, call: Call) -> Empty:
        def change(flavor: FlavorRecord) -> None:
            if request.spec_key not in flavor.extra_specs:
                raise _no_spec(request)
            del flavor.extra_specs[request.spec_key]

        await self._change(request.flavor_id, change)
        return Empty()

    # Access

    async def ListFlavorAccess(self, request: pb.ListFlavorAccessRequest, call: Call) -> pb.ListFlavorAccessResponse:
        flavor = self._find(request.flavor_id, call.caller)
        if flavor.is_public:
            raise NotFound("compute.flavor.access", "Access list not available for public flavors.")
        return _access(flavor)

    async def AddFlavorAccess(self, request: pb.AddFlavorAccessRequest, call: Call) -> pb.ListFlavorAccessResponse:
        project = limits.name(request.access.tenant, "project")

        def change(flavor: FlavorRecord) -> None:
            if flavor.is_public or project in flavor.projects:
                raise Conflict("compute.flavor.access", f"Flavor access already exists for flavor {flavor.id} and project "
                                                        f"{project}.")
            if len(flavor.projects) >= MAX_PROJECTS:
                raise Invalid("compute.flavor.access", f"At most {MAX_PROJECTS} projects share a flavor: make it public.")
            flavor.projects.append(project)

        return _access(await self._change(request.flavor_id, change))

    async def RemoveFlavorAccess(self, request: pb.RemoveFlavorAccessRequest, call: Call) -> pb.ListFlavorAccessResponse:
        def change(flavor: FlavorRecord) -> None:
            if request.access.tenant not in flavor.projects:
                raise NotFound("compute.flavor.access", f"Flavor access not found for flavor {flavor.id} and project "
                                                        f"{request.access.tenant[:80]}.")
            flavor.projects.remove(request.access.tenant)

        return _access(await self._change(request.flavor_id, change))

    async def _change(self, flavor_id: str, change: Callable[[FlavorRecord], None]) -> FlavorRecord:
        def decide(tx: Transaction) -> FlavorRecord:
            flavor = tx.get(FLAVOR, flavor_id)
            if flavor is None:
                raise _missing(flavor_id)
            change(flavor)
            tx.put(FLAVOR, flavor)
            return flavor

        return await self._database.transact(decide)


ORDERS: Mapping[str, Callable[[FlavorRecord], object]] = {
    "flavorid": lambda flavor: flavor.id, "id": lambda flavor: flavor.id, "name": lambda flavor: flavor.name,
    "memory_mb": lambda flavor: flavor.ram_mib, "vcpus": lambda flavor: flavor.vcpus, "root_gb": lambda flavor: flavor.disk_gib,
    "swap": lambda flavor: flavor.swap_mib, "ephemeral_gb": lambda flavor: flavor.ephemeral_gib,
    "is_public": lambda flavor: flavor.is_public, "rxtx_factor": lambda flavor: flavor.rxtx_factor,
    "created_at": lambda flavor: (flavor.created_at.seconds, flavor.created_at.nanos)}


def _missing(flavor_id: str) -> NotFound:
    return NotFound("compute.flavor", f"Flavor {flavor_id[:80]} could not be found.")


def _no_spec(request: pb.GetExtraSpecRequest) -> NotFound:
    return NotFound("compute.flavor.spec",
                    f"Flavor {request.flavor_id[:80]} has no extra specs with key {request.spec_key[:80]}.")


def _may_use(flavor: FlavorRecord, caller: Caller) -> bool:
    return flavor.is_public or caller.is_admin or caller.project_id in flavor.projects


def _publicity(text: str) -> bool | None:
    """What an admin's is_public asks for; None for both."""
    match text.lower():
        case "none":
            return None
        case "" | "true" | "1" | "yes" | "on" | "t":
            return True
        case "false" | "0" | "no" | "off" | "f":
            return False
    raise Invalid("compute.flavor.is_public", f"is_public is true, false or none, not {text[:40]!r}.")


def _new_flavor(new: pb.NewFlavor) -> FlavorRecord:
    flavor_id = new.id if new.HasField("id") and new.id not in ("", "auto") else str(uuid.uuid4())
    if not _ID.match(flavor_id):
        raise Invalid("compute.flavor.id", "A flavor's id has 1 to 255 letters, digits, spaces and '-_.', no space at an end.")
    flavor = FlavorRecord(
        id=flavor_id, name=limits.name(new.name, "flavor"), vcpus=_amount(new.vcpus, "vcpus", 1),
        ram_mib=_amount(new.ram, "ram", 1), disk_gib=_amount(new.disk, "disk", 0),
        ephemeral_gib=_amount(new.ephemeral, "OS-FLV-EXT-DATA:ephemeral", 0),
        swap_mib=_amount(_number(new.swap, "swap", 0), "swap", 0), rxtx_factor=_number(new.rxtx_factor, "rxtx_factor", 1.0),
        is_public=new.is_public if new.HasField("is_public") else True, created_at=clock.now())
    if not 0 < flavor.rxtx_factor < 1e9:
        raise Invalid("compute.flavor.rxtx_factor", "rxtx_factor must be above 0.")
    if new.HasField("description"):
        flavor.description = limits.text(new.description, "description", 65535)
    return flavor


def _amount(value: float, field: str, least: int) -> int:
    if not (least <= value <= LARGEST and float(value).is_integer()):
        raise Invalid(f"compute.flavor.{field}", f"{field} must be a whole number from {least} to {LARGEST}, not {value}.")
    return int(value)


def _number(value: Value, field: str, default: float) -> float:
    """A number, also where it was sent as text; the default for nothing and ""."""
    match value.WhichOneof("kind"):
        case None | "null_value":
            return default
        case "number_value":
            return value.number_value
        case "string_value" if not value.string_value:
            return default
        case "string_value" if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", value.string_value):
            return float(value.string_value)
    raise Invalid(f"compute.flavor.{field}", f"flavor.{field}: expected a number.")


def _spec_text(key: str, value: Value) -> str:
    if not _SPEC_KEY.match(key):
        raise Invalid("compute.flavor.spec", f"A key of extra specs has 1 to 255 letters, digits, spaces and '-_.:'; "
                                             f"not {key[:80]!r}.")
    match value.WhichOneof("kind"):
        case "string_value":
            text = limits.text(value.string_value, f"extra_specs.{key}")
        case "number_value":
            number = value.number_value
            text = str(int(number) if number.is_integer() else number)
        case "bool_value":
            text = str(value.bool_value)
        case _:
            raise Invalid("compute.flavor.spec", f"extra_specs.{key}: expected a string, a number or a boolean.")
    specs.check(key, text)
    return text


def _description(flavor: FlavorRecord) -> str | None:
    return flavor.description if flavor.HasField("description") else None


def _access(flavor: FlavorRecord) -> pb.ListFlavorAccessResponse:
    return pb.ListFlavorAccessResponse(flavor_access=[
        pb.FlavorAccess(flavor_id=flavor.id, tenant_id=project) for project in flavor.projects])


def view(flavor: FlavorRecord, call: Call) -> pb.Flavor:
    empty = Value(number_value=0) if call.microversion is None or call.microversion >= (2, 75) else Value(string_value="")
    return pb.Flavor(
        id=flavor.id, name=flavor.name, ram=flavor.ram_mib, disk=flavor.disk_gib, vcpus=flavor.vcpus,
        swap=Value(number_value=flavor.swap_mib) if flavor.swap_mib else empty, ephemeral=flavor.ephemeral_gib,
        is_public=flavor.is_public, rxtx_factor=flavor.rxtx_factor, extra_specs=flavor.extra_specs,
        description=_description(flavor))
