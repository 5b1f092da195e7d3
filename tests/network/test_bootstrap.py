"""What a new cloud begins with."""

from control.kernel.interfaces import PortRequest
from control.network import service
from control.network.model import NETWORK, ROUTER
from tests.network.conftest import Cloud, caller_of


async def found(cloud: Cloud) -> None:
    await service.bootstrap(cloud.database, admin_project_id="admin", demo_project_id="one", public_cidr="172.24.4.0/24")


async def test_the_public_and_the_private_network_are_made_once(cloud: Cloud) -> None:
    await found(cloud)
    revision = cloud.database.cache.revision
    await found(cloud)
    assert cloud.database.cache.revision == revision
    networks = {network["name"]: network for network in (await cloud.one.get("/networks"))["networks"]}
    assert set(networks) == {"public", "private"}
    public = networks["public"]
    assert (public["router:external"], public["shared"], public["is_default"], public["project_id"]) == (
        True,
        False,
        True,
        "admin",
    )
    [subnet] = (await cloud.admin.get(f"/subnets?network_id={public['id']}"))["subnets"]
    assert (subnet["cidr"], subnet["gateway_ip"], subnet["enable_dhcp"]) == ("172.24.4.0/24", "172.24.4.1", False)
    [router] = (await cloud.one.get("/routers"))["routers"]
    assert (router["name"], router["external_gateway_info"]["network_id"]) == ("router", public["id"])


async def test_what_was_taken_away_stays_away(cloud: Cloud) -> None:
    await found(cloud)
    [router] = cloud.database.cache.by(ROUTER, "project", "one")
    [network] = cloud.database.cache.by(NETWORK, "project", "one")
    assert (await cloud.one.interface("remove", router.id, subnet_id=network.subnets[0])).status == 200
    assert await cloud.one.delete("router", router.id) == 204
    assert await cloud.one.delete("network", network.id) == 204
    await found(cloud)
    assert [each["name"] for each in (await cloud.one.get("/networks"))["networks"]] == ["public"]


async def test_a_server_on_the_private_network_gets_a_floating_ip(cloud: Cloud) -> None:
    await found(cloud)
    [network] = cloud.database.cache.by(NETWORK, "project", "one")
    assert cloud.ports.automatic(caller_of("one")) == [PortRequest(network_id=network.id)]
    [port] = await cloud.boot("one", "vm", PortRequest(network_id=network.id), host="host-1")
    floating = await cloud.one.create("floatingip", floating_network_id=cloud.public, port_id=port)
    assert [(address.ip, address.type) for address in cloud.ports.addresses("vm")][1] == (
        floating["floating_ip_address"],
        "floating",
    )
    await cloud.shut("vm")
    assert (await cloud.one.show("floatingip", floating["id"]))["status"] == "DOWN"
