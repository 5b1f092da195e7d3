"""What a guest is told about itself: the tree of files that the metadata service answers with and config drives carry.

Pure: the same server, ports and networks give the same bytes. Paths have no leading slash; only files are listed.
`files` is a config drive's content, `tree` that of 169.254.169.254 (the same OpenStack files, and EC2's).
"""
import base64
import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any

from protos.internal.v1.hosts_pb2 import HostNetwork, HostPort, HostServer, HostSubnet

#: OpenStack's dated versions, and the first in which each file exists.
OPENSTACK_VERSIONS = ("2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06", "2017-02-22",
                      "2018-08-27", "2020-10-14")
SINCE = {"meta_data.json": "2012-08-10", "user_data": "2012-08-10", "vendor_data.json": "2013-10-17",
         "network_data.json": "2015-10-15", "vendor_data2.json": "2016-10-06"}

EC2_VERSIONS = ("1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
                "2009-04-04")


def files(server: HostServer, ports: Sequence[HostPort], networks: Mapping[str, HostNetwork], *,
          random_seed: bytes = b"") -> dict[str, bytes]:
    """Return a config drive's files. `ports` are the server's, in the order of its interfaces; `networks` by id.

    A network that is missing leaves out what is known of it only; it is no error.
    """
    found = _openstack(server, ports, networks, random_seed)
    ec2 = _ec2(server, ports, networks, "")
    for version in ("2009-04-04", "latest"):
        found[f"ec2/{version}/meta-data.json"] = _json(_nested(ec2))
        if server.guest.user_data:
            found[f"ec2/{version}/user-data"] = server.guest.user_data
    return found


def tree(server: HostServer, ports: Sequence[HostPort], networks: Mapping[str, HostNetwork], *,
         public_ip: str = "", random_seed: bytes = b"") -> dict[str, bytes]:
    """Return all files of the metadata service; `public_ip` is the server's first floating address, "" without one."""
    found = _openstack(server, ports, networks, random_seed)
    ec2 = _ec2(server, ports, networks, public_ip)
    for version in (*EC2_VERSIONS, "latest"):
        found.update({f"{version}/meta-data/{path}": data for path, data in ec2.items()})
        if server.guest.user_data:
            found[f"{version}/user-data"] = server.guest.user_data
    return found


def listing(found: Mapping[str, bytes], path: str, key_names: Sequence[str] = ()) -> bytes | None:
    """Return what a GET of the folder `path` answers, one entry a line with folders ending in "/"; None where there is none.

    EC2 lists the keys of `public-keys` as "0=name"; OpenStack's folders have no trailing slashes.
    """
    folder = path.strip("/")
    prefix = folder + "/" if folder else ""
    entries: dict[str, bool] = {}
    for name in found:
        if name.startswith(prefix):
            head, slash, _ = name[len(prefix):].partition("/")
            entries[head] = entries.get(head, False) or bool(slash)
    if not entries:
        return None
    if folder == "":
        return "\n".join(entry for entry in entries if entry != "openstack").encode()
    if folder.endswith("/public-keys"):
        return "\n".join(f"{index}={name}" for index, name in enumerate(key_names)).encode()
    slashes = not folder.startswith("openstack")
    return "\n".join(entry + ("/" if deep and slashes else "") for entry, deep in entries.items()).encode()


def _openstack(server: HostServer, ports: Sequence[HostPort], networks: Mapping[str, HostNetwork],
               random_seed: bytes) -> dict[str, bytes]:
    contents = {"meta_data.json": _json(_meta_data(server, random_seed)),
                "network_data.json": _json(network_data(ports, networks)),
                "vendor_data.json": b"{}", "vendor_data2.json": b"{}"}
    if server.guest.user_data:
        contents["user_data"] = server.guest.user_data
    return {f"openstack/{version}/{name}": data
            for version in (*OPENSTACK_VERSIONS, "latest")
            for name, data in contents.items() if version >= SINCE[name]}


def _meta_data(server: HostServer, random_seed: bytes) -> dict[str, Any]:
    guest = server.guest
    data: dict[str, Any] = {
        "uuid": guest.uuid or server.id,
        "name": guest.name,
        "hostname": guest.hostname,
        "launch_index": guest.launch_index,
        "availability_zone": guest.availability_zone,
        "project_id": guest.project_id,
        "devices": [],
        "dedicated_cpus": [],
    }
    if guest.metadata:
        data["meta"] = dict(sorted(guest.metadata.items()))
    if guest.keys:
        data["public_keys"] = {key.name: key.data for key in guest.keys}
        data["keys"] = [{"name": key.name, "type": key.type or "ssh", "data": key.data} for key in guest.keys]
    if random_seed:
        data["random_seed"] = base64.b64encode(random_seed).decode()
    return data


def network_data(ports: Sequence[HostPort], networks: Mapping[str, HostNetwork]) -> dict[str, Any]:
    """Return network_data.json: a link per port, a network per address of it, DNS servers as services."""
    links: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    services: list[dict[str, Any]] = []
    for port in ports:
        network = networks.get(port.network_id)
        link = f"tap{port.id[:11]}"
        links.append({"id": link, "vif_id": port.id, "type": "bridge", "ethernet_mac_address": port.mac,
                      "mtu": port.mtu or (network.mtu if network else None) or None})
        subnets = {subnet.id: subnet for subnet in network.subnets} if network else {}
        for address in port.addresses:
            subnet = subnets.get(address.subnet_id)
            if subnet is None:
                continue
            entry, servers = _network_entry(subnet, address.ip)
            found.append({"id": f"network{len(found)}", "link": link, "network_id": port.network_id, **entry,
                          "services": servers})
            services += [service for service in servers if service not in services]
    return {"links": links, "networks": found, "services": services}


def _network_entry(subnet: HostSubnet, ip: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    cidr = ipaddress.ip_network(subnet.cidr, strict=False)
    family = f"ipv{cidr.version}"
    resolvers = list(subnet.dns_nameservers) or ([subnet.dhcp_ip] if subnet.dhcp_ip else [])
    servers = [{"type": "dns", "address": resolver} for resolver in resolvers]
    if subnet.dhcp and cidr.version == 4:
        return {"type": "ipv4_dhcp"}, servers
    routes = [(route.destination, route.next_hop) for route in subnet.routes]
    if subnet.gateway_ip:
        routes.append(("0.0.0.0/0" if cidr.version == 4 else "::/0", subnet.gateway_ip))
    entry: dict[str, Any] = {"type": family, "ip_address": ip, "netmask": str(cidr.netmask), "routes": []}
    for destination, gateway in routes:
        target = ipaddress.ip_network(destination, strict=False)
        entry["routes"].append({"network": str(target.network_address), "netmask": str(target.netmask), "gateway": gateway})
    return entry, servers


def _ec2(server: HostServer, ports: Sequence[HostPort], networks: Mapping[str, HostNetwork], public_ip: str) -> dict[str, bytes]:
    guest = server.guest
    local = next((address.ip for port in ports for address in port.addresses if ":" not in address.ip), "")
    hostname = guest.hostname
    # EC2's identifiers are an "i-" and hexadecimal digits; seventeen are what its newer ones have
    texts = {
        "ami-id": f"ami-{server.image.id.replace('-', '')[:17]}" if server.image.id else "None",
        "ami-launch-index": str(guest.launch_index),
        "ami-manifest-path": "unknown",
        "block-device-mapping/ami": "vda",
        "block-device-mapping/root": "/dev/vda",
        "hostname": hostname,
        "instance-action": "none",
        "instance-id": f"i-{server.id.replace('-', '')[:17]}",
        "instance-type": guest.instance_type,
        "local-hostname": hostname,
        "local-ipv4": local,
        "placement/availability-zone": guest.availability_zone,
        "public-hostname": hostname,
        "public-ipv4": public_ip,
        "reservation-id": guest.reservation_id,
        "security-groups": guest.security_groups,
    }
    if ports:
        texts["mac"] = ports[0].mac
    for index, key in enumerate(guest.keys):
        texts[f"public-keys/{index}/openssh-key"] = key.data
    return {path: text.encode() for path, text in texts.items()}


def _nested(flat: Mapping[str, bytes]) -> dict[str, Any]:
    """EC2's tree as the JSON that config drives have it in."""
    root: dict[str, Any] = {}
    for path, data in flat.items():
        *folders, leaf = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = data.decode()
    return root


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
