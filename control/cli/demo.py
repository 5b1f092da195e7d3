"""`brume demo`: the first virtual machine, made as any user of the cloud would make it, and the line that logs in to it."""
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from control.cli import credentials
from control.cli.session import RestError, Session
from control.cli.steps import Steps, console
from control.kernel import config as settings
from control.kernel.config import Config, write_private

NAME = "demo"

#: Seconds to wait for ACTIVE, for the guest's ready line and for SSH: several times what emulation needs here.
ACTIVE_WITHIN, READY_WITHIN, SSH_WITHIN = 120.0, 180.0, 120.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def demo(state_dir: Path | None, as_json: bool) -> None:
    """Make a server named demo in the demo project, with a floating address, and show how to log in to it.

    What is there already is used as it is.
    """
    config = settings.load(state_dir)
    session = credentials.ensure(config)["demo"].session(config)
    steps = Steps(quiet=as_json)
    key = _key(config, session)
    with steps("allow ICMP and SSH"):
        _allow_access(session)
    with steps("make the server, until ACTIVE"):
        server = _server(session)
    with steps("give it a floating address"):
        address = _floating_address(session, server)
    with steps("wait for the guest's ready line"):
        _wait_for_ready(session, server)
    login = ["ssh", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "LogLevel=ERROR", f"root@{address}"]
    with steps("log in over SSH"):
        _wait_for_ssh(login)
    if as_json:
        click.echo(json.dumps({"server": server["id"], "address": address, "login": login, "seconds": steps.seconds}))
    else:
        console.print("\nThe server [bold]demo[/] runs. Log in with")
        click.echo(f"  {' '.join(login)}")


def _key(config: Config, session: Session) -> Path:
    """The demo key's file; a key pair that the cloud has but this machine has not is made anew."""
    path = config.path("demo-key")
    pairs = [pair["keypair"]["name"] for pair in session.request("GET", "compute", "/os-keypairs")["keypairs"]]
    if path.exists() and NAME in pairs:
        return path
    if NAME in pairs:
        session.request("DELETE", "compute", f"/os-keypairs/{NAME}")
    pair = session.request("POST", "compute", "/os-keypairs", {"keypair": {"name": NAME}})["keypair"]
    write_private(path, pair["private_key"].encode())
    return path


def _allow_access(session: Session) -> None:
    groups = session.request("GET", "network", "/v2.0/security-groups?name=default")["security_groups"]
    for rule in ({"protocol": "icmp"}, {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}):
        try:
            session.request("POST", "network", "/v2.0/security-group-rules", {"security_group_rule": {
                "security_group_id": groups[0]["id"], "direction": "ingress", "ethertype": "IPv4", **rule}})
        except RestError as error:
            if error.status != 409:
                raise


def _server(session: Session) -> dict[str, Any]:
    servers = session.request("GET", "compute", f"/servers/detail?name=^{NAME}$")["servers"]
    if servers:
        server = servers[0]
        if server["status"] == "SHUTOFF":
            session.request("POST", "compute", f"/servers/{server['id']}/action", {"os-start": None})
    else:
        image = session.request("GET", "image", "/v2/images?name=tiny&status=active")["images"]
        flavor = [flavor for flavor in session.request("GET", "compute", "/flavors")["flavors"] if flavor["name"] == "m1.tiny"]
        network = session.request("GET", "network", "/v2.0/networks?name=private")["networks"]
        for things, what in ((image, "an image named tiny: run `brume images build`"), (flavor, "a flavor named m1.tiny"),
                             (network, "a network named private")):
            if not things:
                raise click.ClickException(f"the demo needs {what}")
        server = session.request("POST", "compute", "/servers", {"server": {
            "name": NAME, "imageRef": image[0]["id"], "flavorRef": flavor[0]["id"], "key_name": NAME,
            "networks": [{"uuid": network[0]["id"]}]}})["server"]
    limit = time.monotonic() + ACTIVE_WITHIN
    while True:
        server = session.request("GET", "compute", f"/servers/{server['id']}")["server"]
        if server["status"] == "ACTIVE":
            return server
        if server["status"] == "ERROR":
            raise click.ClickException(f"the server could not be made: {server.get('fault', {}).get('message')}")
        if time.monotonic() > limit:
            raise click.ClickException(f"the server is still {server['status']} after {ACTIVE_WITHIN:.0f} s")
        time.sleep(0.1)


def _floating_address(session: Session, server: dict[str, Any]) -> str:
    port = session.request("GET", "network", f"/v2.0/ports?device_id={server['id']}")["ports"][0]
    own = session.request("GET", "network", f"/v2.0/floatingips?port_id={port['id']}")["floatingips"]
    if own:
        return own[0]["floating_ip_address"]
    external = session.request("GET", "network", "/v2.0/networks?router:external=True")["networks"][0]
    return session.request("POST", "network", "/v2.0/floatingips", {"floatingip": {
        "floating_network_id": external["id"], "port_id": port["id"]}})["floatingip"]["floating_ip_address"]


def _wait_for_ready(session: Session, server: dict[str, Any]) -> None:
    limit = time.monotonic() + READY_WITHIN
    output = ""
    while "guest ready" not in output:
        if time.monotonic() > limit:
            raise click.ClickException("the guest did not print its ready line; the end of its console:\n" + output[-1000:])
        time.sleep(0.2)
        output = session.request("POST", "compute", f"/servers/{server['id']}/action", {"os-getConsoleOutput": {}})["output"]


def _wait_for_ssh(login: list[str]) -> None:
    limit = time.monotonic() + SSH_WITHIN
    while True:
        tried = subprocess.run([*login[:1], "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", *login[1:], "true"],
                               capture_output=True, text=True, check=False, env={**os.environ, "SSH_AUTH_SOCK": ""})
        if tried.returncode == 0:
            return
        if time.monotonic() > limit:
            raise click.ClickException(f"SSH does not answer: {tried.stderr.strip()}")
        time.sleep(0.3)
