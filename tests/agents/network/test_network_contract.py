"""The contract of HostNetworking, kept by the real one and by its simulated twin."""
import pytest

from agents.network.driver import HostNetworking, SimulatedNetworking
from tests.agents.network.lab import Lab
from tests.conformance.check_network import HostNetworkingContract


class TestSimulated(HostNetworkingContract):
    @pytest.fixture
    def networking(self) -> HostNetworking:
        return SimulatedNetworking()


@pytest.mark.host
class TestLinux(HostNetworkingContract):
    @pytest.fixture
    async def networking(self, lab: Lab) -> HostNetworking:
        return lab.networking
