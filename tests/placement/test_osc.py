"""The openstack client with osc-placement, unmodified, over HTTP against identity and placement: every command that it has."""
import contextlib
import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from openstackclient.shell import OpenStackShell
from osc_lib.clientmanager import ClientManager

from tests.placement.conftest import PASSWORD, Cloud

GROUP = "openstack.placement.v1"


class Refused(AssertionError):
    """The client ended with an error."""


class Osc:
    """The client at one microversion: called with a command and its arguments; what it shows is JSON."""

    def __init__(self, cloud: Cloud, microversion: str):
        self._options = [
            "--os-auth-url", f"{cloud.root}/v3", "--os-username", "admin", "--os-password", PASSWORD, "--os-project-name",
            "admin", "--os-user-domain-id", "default", "--os-project-domain-id", "default", "--os-placement-api-version",
            microversion]
        self.used: set[str] = set()

    def __call__(self, command: str, *arguments: str) -> Any:
        self.used.add(command)
        shown = any(command.endswith(verb) for verb in (" list", " show", " create", " set", " unset"))
        words = [*command.split(), *(["-f", "json"] if shown and command not in SILENT else []), *arguments]
        out, err = io.StringIO(), io.StringIO()
        if clients := vars(ClientManager).get("placement"):
            clients._handle = None         # it would keep the first run's client, microversion included, for the whole process
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = OpenStackShell().run([*self._options, *words])
            except SystemExit as end:
                status = end.code
        if status:
            raise Refused(err.getvalue() + out.getvalue())
        return json.loads(out.getvalue()) if out.getvalue().strip().startswith(("[", "{")) else out.getvalue()


#: Commands that show nothing.
SILENT = {"resource class create", "resource class set", "trait create"}


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    running = Cloud(has_identity=True)
    yield running
    running.stop()


def test_every_command_works_at_the_newest_microversion(cloud: Cloud) -> None:
    osc = Osc(cloud, "1.39")
    root = osc("resource provider create", "node-1")
    child = osc("resource provider create", "node-1-numa0", "--parent-provider", root["uuid"])
    assert (child["parent_provider_uuid"], child["root_provider_uuid"]) == (root["uuid"], root["uuid"])
    osc("resource class create", "CUSTOM_GPU")
    osc("resource class set", "CUSTOM_FPGA")
    osc("resource class set", "CUSTOM_FPGA")
    assert osc("resource class show", "CUSTOM_GPU")["name"] == "CUSTOM_GPU"
    assert {"VCPU", "CUSTOM_GPU", "CUSTOM_FPGA"} <= {row["name"] for row in osc("resource class list")}
    osc("resource class delete", "CUSTOM_FPGA")

    osc("resource provider inventory set", root["uuid"], "--resource", "VCPU=8", "--resource", "VCPU:allocation_ratio=2",
        "--resource", "MEMORY_MB=1024", "--resource", "MEMORY_MB:reserved=24")
    osc("resource provider inventory set", root["uuid"], "--amend", "--resource", "CUSTOM_GPU=2")
    osc("resource provider inventory class set", root["uuid"], "MEMORY_MB", "--total", "2048", "--reserved", "48")
    stocks = {row["resource_class"]: row for row in osc("resource provider inventory list", root["uuid"])}
    assert (stocks["VCPU"]["total"], stocks["VCPU"]["allocation_ratio"], stocks["MEMORY_MB"]["reserved"]) == (8, 2.0, 48)
    assert osc("resource provider inventory show", root["uuid"], "CUSTOM_GPU")["total"] == 2
    osc("resource provider inventory set", child["uuid"], "--resource", "SRIOV_NET_VF=4")

    osc("trait create", "CUSTOM_RED")
    osc("trait show", "CUSTOM_RED")
    assert {"name": "CUSTOM_RED"} in osc("trait list")
    assert {"name": "HW_CPU_X86_AVX2"} in osc("trait list", "--name", "startswith:HW_")
    osc("resource provider trait set", root["uuid"], "--trait", "CUSTOM_RED", "--trait", "HW_CPU_X86_AVX2")
    assert {row["name"] for row in osc("resource provider trait list", root["uuid"])} == {"CUSTOM_RED", "HW_CPU_X86_AVX2"}
    assert osc("trait list", "--associated", "--name", "startswith:CUSTOM_") == [{"name": "CUSTOM_RED"}]
    with pytest.raises(Refused, match="409"):
        osc("trait delete", "CUSTOM_RED")
    aggregate = str(uuid.uuid4())
    generation = str(osc("resource provider show", root["uuid"])["generation"])
    osc("resource provider aggregate set", root["uuid"], "--aggregate", aggregate, "--generation", generation)
    assert osc("resource provider aggregate list", root["uuid"]) == [{"uuid": aggregate}]

    filters = ["--required", "CUSTOM_RED", "--member-of", aggregate, "--resource", "VCPU=8", "--in-tree", child["uuid"]]
    assert [row["uuid"] for row in osc("resource provider list", *filters)] == [root["uuid"]]
    assert osc("resource provider list", "--forbidden", "CUSTOM_RED", "--resource", "VCPU=1") == []
    candidates = osc("allocation candidate list", "--resource", "VCPU=4", "--resource", "SRIOV_NET_VF=1", "--required",
                     "CUSTOM_RED", "--member-of", aggregate, "--limit", "5")
    assert {row["resource provider"] for row in candidates} == {root["uuid"], child["uuid"]}
    grouped = osc("allocation candidate list", "--group", "1", "--resource", "VCPU=1", "--group", "2", "--resource",
                  "SRIOV_NET_VF=1", "--group-policy", "isolate")
    assert len(grouped) == 2

    consumer, project, user = str(uuid.uuid4()), uuid.uuid4().hex, uuid.uuid4().hex
    whose = ["--project-id", project, "--user-id", user, "--consumer-type", "INSTANCE"]
    osc("resource provider allocation set", consumer, "--allocation", f"rp={root['uuid']},VCPU=4,MEMORY_MB=512", "--allocation",
        f"rp={child['uuid']},SRIOV_NET_VF=1", *whose)
    held = {row["resource_provider"]: row for row in osc("resource provider allocation show", consumer)}
    assert held[root["uuid"]]["resources"] == {"VCPU": 4, "MEMORY_MB": 512} and held[root["uuid"]]["project_id"] == project
    usages = {row["resource_class"]: row["usage"] for row in osc("resource provider usage show", root["uuid"])}
    assert usages == {"VCPU": 4, "MEMORY_MB": 512, "CUSTOM_GPU": 0}
    assert {row["resource_class"]: row["usage"] for row in Osc(cloud, "1.37")("resource usage show", project)}["VCPU"] == 4
    [mine] = osc("resource usage show", project, "--user-id", user)
    assert mine["resource_class"] == "INSTANCE"
    osc("resource provider allocation unset", consumer, "--provider", child["uuid"])
    assert [row["resource_provider"] for row in osc("resource provider allocation show", consumer)] == [root["uuid"]]
    assert osc("resource provider show", "--allocations", root["uuid"])["allocations"][consumer]["resources"]["VCPU"] == 4
    with pytest.raises(Refused, match="in use"):
        osc("resource provider inventory delete", root["uuid"], "--resource-class", "VCPU")
    osc("resource provider allocation delete", consumer)

    osc("resource provider trait delete", root["uuid"])
    osc("trait delete", "CUSTOM_RED")
    assert osc("resource provider set", child["uuid"], "--name", "moved", "--parent-provider", root["uuid"])["name"] == "moved"
    osc("resource provider inventory delete", root["uuid"])
    osc("resource class delete", "CUSTOM_GPU")
    with pytest.raises(Refused, match="child"):
        osc("resource provider delete", root["uuid"])
    osc("resource provider delete", child["uuid"])
    osc("resource provider delete", root["uuid"])
    assert osc("resource provider list") == []

    [listed] = osc("command list", "--group", GROUP)
    assert set(listed["Commands"]) <= osc.used


@pytest.mark.parametrize("microversion", ["1.0", "1.8", "1.14", "1.28"])
def test_providers_inventories_and_allocations_work_at_older_microversions(cloud: Cloud, microversion: str) -> None:
    osc, minor = Osc(cloud, microversion), int(microversion.split(".")[1])
    provider = osc("resource provider create", "old")
    assert ("root_provider_uuid" in provider) == (minor >= 14)
    osc("resource provider inventory set", provider["uuid"], "--resource", "VCPU=8")
    osc("resource provider inventory class set", provider["uuid"], "VCPU", "--total", "16")
    assert osc("resource provider inventory show", provider["uuid"], "VCPU")["total"] == 16
    consumer = str(uuid.uuid4())
    whose = ["--project-id", "p", "--user-id", "u"] if minor >= 8 else []
    osc("resource provider allocation set", consumer, "--allocation", f"rp={provider['uuid']},VCPU=4", *whose)
    osc("resource provider allocation set", consumer, "--allocation", f"rp={provider['uuid']},VCPU=6", *whose)
    [held] = osc("resource provider allocation show", consumer)
    assert held["resources"] == {"VCPU": 6} and ("project_id" in held) == (minor >= 12)
    assert osc("resource provider usage show", provider["uuid"]) == [{"resource_class": "VCPU", "usage": 6}]
    with pytest.raises(Refused, match="exceed the capacity"):
        osc("resource provider allocation set", str(uuid.uuid4()), "--allocation", f"rp={provider['uuid']},VCPU=11", *whose)
    osc("resource provider allocation delete", consumer)
    osc("resource provider inventory delete", provider["uuid"], "--resource-class", "VCPU")
    assert osc("resource provider set", provider["uuid"], "--name", "older")["name"] == "older"
    assert [row["name"] for row in osc("resource provider list")] == ["older"]
    osc("resource provider delete", provider["uuid"])
    assert osc("resource provider list") == []
