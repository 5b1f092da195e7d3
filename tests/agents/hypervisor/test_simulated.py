"""The simulated hypervisor, by the suite that libvirt's passes too."""
import pytest

from agents.hypervisor.simulated import SimulatedHypervisor
from tests.conformance.check_hypervisor import CheckHypervisor


class SimulatedBench:
    def __init__(self):
        self.hypervisor = SimulatedHypervisor()

    async def guest_leaves(self, server_id):
        self.hypervisor.guest_leaves(server_id)

    async def kill(self, server_id):
        self.hypervisor.kill(server_id)

    async def pause(self, server_id):
        self.hypervisor.pause(server_id)

    async def make_deaf(self, server_id):
        self.hypervisor.deaf.add(server_id)


class TestSimulatedHypervisor(CheckHypervisor):
    @pytest.fixture
    async def bench(self):
        return SimulatedBench()
