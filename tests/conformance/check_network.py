"""What any HostNetworking must do, by what it says and not by how: the suite for the real one and its simulated twin."""

from agents.network.driver import HostNetworking
from tests.agents.network.lab import World


class HostNetworkingContract:
    """Subclasses give the fixture `networking`."""

    async def test_a_port_is_wired_when_its_network_is_here(self, networking: HostNetworking):
        world = World()
        network = world.network("10.9.0.0/24")
        port = world.server(network, "10.9.0.5", [world.group()])
        assert await networking.apply(world.objects) == {port.id}

    async def test_a_port_without_its_network_is_not_wired_and_hinders_no_other(self, networking: HostNetworking):
        world = World()
        here, elsewhere = world.network("10.9.0.0/24"), world.network("10.9.1.0/24")
        port, stray = world.server(here, "10.9.0.5"), world.server(elsewhere, "10.9.1.5")
        world.remove("network", elsewhere.id)
        assert await networking.apply(world.objects) == {port.id}
        world.put("network", elsewhere)
        assert await networking.apply(world.objects) == {port.id, stray.id}

    async def test_the_same_wish_again_is_the_same_answer(self, networking: HostNetworking):
        world = World()
        port = world.server(world.network("10.9.0.0/24"), "10.9.0.5")
        assert [await networking.apply(world.objects) for _ in range(3)] == [{port.id}] * 3

    async def test_a_port_that_is_gone_is_not_wired(self, networking: HostNetworking):
        world = World()
        network = world.network("10.9.0.0/24")
        port, stays = world.server(network, "10.9.0.5"), world.server(network, "10.9.0.6")
        assert await networking.apply(world.objects) == {port.id, stays.id}
        world.remove("port", port.id)
        assert await networking.apply(world.objects) == {stays.id}

    async def test_after_a_teardown_everything_can_be_made_again(self, networking: HostNetworking):
        world = World()
        port = world.server(world.network("10.9.0.0/24"), "10.9.0.5")
        await networking.apply(world.objects)
        await networking.teardown()
        await networking.teardown()
        assert await networking.apply(world.objects) == {port.id}
        assert await networking.apply({}) == set()
