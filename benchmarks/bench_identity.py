"""Identity beside Keystone, in one run: token validation, catalog, a list of projects, user create, password authentication.

Both run on this machine with the same load, one after the other. Keystone comes from PyPI into an environment of its own,
behind uwsgi with 2 workers, over SQLite, with its in-process cache; its passwords are bcrypt with the number of rounds whose
time comes nearest to one hash of ours. Requests for each second of the server's CPU compare them per core; ours counts etcd.
Memory is proportional (Pss). The control process has all services of a cloud, not identity alone, and etcd all state:
it is shown by itself. Keystone's database is a file here, which it reads in its own process.
"""
import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from load import Client, as_row, descendants, measure, pss_mib

from control.cli import processes
from control.kernel import config as settings

NAME, PORT = "benchid", 5250
PASSWORD = "benchmark-password"

#: Seconds after the start until a server counts as idle.
IDLE = 10.0

#: Ratios to reach; memory is that of the process which has identity, beside Keystone's without its database's.
AIMS = {"validate": 10.0, "projects": 20.0, "memory": 0.25}


class Server(Protocol):
    port: int
    password: str

    def parts(self) -> dict[str, list[int]]:
        """What answers: processes by name. Memory is counted for each name, CPU for all."""

    def stop(self) -> None: ...


class Brume:
    """A cloud of its own with a simulated host; only etcd and the control plane answer."""

    def __init__(self) -> None:
        self.port = PORT
        self.state_dir = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
        file = self.state_dir / "brume.toml"
        file.write_text('hypervisor = "simulated"\n')
        self._run("up", "--config", str(file), "--port", str(PORT), "--name", NAME, "--no-seed", "--json")
        self.password = (self.state_dir / "admin.password").read_text().strip()

    def parts(self) -> dict[str, list[int]]:
        rows = {row["name"]: row["pid"] for row in processes.status(settings.load(self.state_dir))}
        return {"control": [rows["control"]], "etcd": [rows["etcd"]]}

    def stop(self) -> None:
        self._run("down", "--purge", "--yes")
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "control.cli.main", "--state-dir", str(self.state_dir), *arguments],
                       check=True, capture_output=True)


class Keystone:
    """Keystone from PyPI behind uwsgi."""

    def __init__(self, environment: Path, rounds: int):
        self.password = PASSWORD
        self.directory = Path(tempfile.mkdtemp(prefix="keystone-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        file = self.directory / "keystone.conf"
        file.write_text(
            f"[DEFAULT]\nlog_file={self.directory}/keystone.log\n[database]\nconnection=sqlite:///{self.directory}/keystone.db\n"
            f"[token]\nprovider=fernet\n[fernet_tokens]\nkey_repository={self.directory}/fernet\n"
            f"[credential]\nkey_repository={self.directory}/credential\n[cache]\nenabled=True\nbackend=dogpile.cache.memory\n"
            f"[identity]\npassword_hash_rounds={rounds}\n")
        url = f"http://127.0.0.1:{self.port}/v3/"
        manage = [str(environment / "bin" / "keystone-manage"), "--config-file", str(file)]
        for step in (["db_sync"], ["fernet_setup", "--keystone-user", "root", "--keystone-group", "root"],
                     ["credential_setup", "--keystone-user", "root", "--keystone-group", "root"],
                     ["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-admin-url", url, "--bootstrap-public-url", url,
                      "--bootstrap-internal-url", url, "--bootstrap-region-id", "RegionOne"]):
            subprocess.run(manage + step, check=True, capture_output=True)
        self._process = subprocess.Popen(
            [str(environment / "bin" / "uwsgi"), "--http-socket", f"127.0.0.1:{self.port}", "--processes", "2", "--master",
             "--lazy-apps", "--enable-threads", "--disable-logging", "--need-app", "--buffer-size", "65535", "--virtualenv",
             str(environment), "--module", "keystone.wsgi.api:application", "--add-header", "Connection: close", "--die-on-term"],
            env={**os.environ, "OS_KEYSTONE_CONFIG_DIR": str(self.directory)}, cwd=self.directory,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                if Client(self.port).call("GET", "/v3/", {})[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"keystone did not start; see {self.directory}")

    def parts(self) -> dict[str, list[int]]:
        return {"keystone": descendants(self._process.pid)}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def environment(path: Path, install: bool) -> Path | None:
    """Keystone's environment, made if it may be; None where there is none."""
    if not (path / "bin" / "keystone-manage").exists():
        if not install:
            return None
        print(f"installing keystone into {path}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        subprocess.run([str(path / "bin" / "pip"), "install", "-q", "keystone", "uwsgi"], check=True)
    return path


def bcrypt_rounds(path: Path) -> tuple[int, float, float]:
    """The rounds whose time is nearest to one hash of ours; both times in milliseconds."""
    from argon2 import PasswordHasher

    from control.identity import passwords
    hasher = PasswordHasher(time_cost=passwords.PASSES, memory_cost=passwords.MEMORY_KIB, parallelism=passwords.LANES)
    started = time.perf_counter()
    for _ in range(5):
        hasher.hash(PASSWORD)
    ours = (time.perf_counter() - started) / 5 * 1000
    program = ("import bcrypt, json, time\nout = {}\nfor rounds in range(6, 13):\n t = time.perf_counter()\n"
               " bcrypt.hashpw(b'benchmark', bcrypt.gensalt(rounds))\n out[rounds] = (time.perf_counter() - t) * 1000\n"
               "print(json.dumps(out))")
    times = json.loads(subprocess.run([str(path / "bin" / "python"), "-c", program], check=True, capture_output=True).stdout)
    rounds = min(times, key=lambda key: abs(times[key] - ours))
    return int(rounds), round(ours, 1), round(times[rounds], 1)


def auth(password: str) -> bytes:
    return json.dumps({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": "admin", "domain": {"id": "default"}, "password": password}}},
        "scope": {"project": {"name": "admin", "domain": {"id": "default"}}}}}).encode()


def memory(server: Server) -> dict[str, float]:
    """MiB (Pss) of each part."""
    return {name: pss_mib(pids) for name, pids in server.parts().items()}


def run(server: Server, projects: int, seconds: float, clients: int) -> dict[str, Any]:
    client = Client(server.port)
    time.sleep(IDLE)
    idle = memory(server)
    pids = [pid for part in server.parts().values() for pid in part]
    body = auth(server.password)
    headers, _ = client.json("POST", "/v3/auth/tokens", json.loads(body))
    token = headers["X-Subject-Token"]
    for number in range(projects):
        client.json("POST", "/v3/projects", {"project": {"name": f"p{number}", "domain_id": "default"}}, token)
    own, typed = {"X-Auth-Token": token}, {"X-Auth-Token": token, "Content-Type": "application/json"}
    loads = {
        "validate": lambda n: ("GET", "/v3/auth/tokens", {**own, "X-Subject-Token": token}, None),
        "catalog": lambda n: ("GET", "/v3/auth/catalog", own, None),
        "projects": lambda n: ("GET", "/v3/projects", own, None),
        "user_create": lambda n: ("POST", "/v3/users", typed, json.dumps({"user": {
            "name": f"u{n}", "domain_id": "default", "password": PASSWORD}}).encode()),
        "password": lambda n: ("POST", "/v3/auth/tokens", {"Content-Type": "application/json"}, body),
    }
    rows: dict[str, Any] = {name: as_row(measure(server.port, request, pids, clients=clients, seconds=seconds))
                            for name, request in loads.items()}
    return {**rows, "idle_mib": idle, "loaded_mib": memory(server)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="a short run; Keystone only if it is installed")
    parser.add_argument("--keystone", type=Path, default=Path("/var/tmp/brume-bench-keystone"), metavar="DIR",
                        help="Keystone's environment, made when it is not there  [default: %(default)s]")
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("a cloud needs root: run with sudo")
    projects, seconds = (50, 0.5) if options.quick else (1000, 6.0)
    figures: dict[str, Any] = {"projects": projects, "clients": options.clients}
    place = environment(options.keystone, install=not options.quick)
    servers: list[tuple[str, Any]] = [("brume", Brume)]
    if place:
        rounds, argon2_ms, bcrypt_ms = bcrypt_rounds(place)
        figures["hash_ms"] = {"argon2id": argon2_ms, f"bcrypt, {rounds} rounds": bcrypt_ms}
        servers.append(("keystone", lambda: Keystone(place, rounds)))
    for name, start in servers:
        server = start()
        try:
            figures[name] = run(server, projects, seconds, options.clients)
        finally:
            server.stop()
    if place:
        ours, theirs = figures["brume"], figures["keystone"]
        figures["ratio_per_core"] = {load: round(row["per_cpu_second"] / theirs[load]["per_cpu_second"], 1)
                                     for load, row in ours.items() if "per_cpu_second" in row}
        of_keystone = figures["keystone"]["idle_mib"]["keystone"]
        figures["ratio_memory"] = {
            "control": round(ours["idle_mib"]["control"] / of_keystone, 2),
            "control and etcd": round(sum(ours["idle_mib"].values()) / of_keystone, 2)}
        figures["aims"] = AIMS
    if options.json:
        print(json.dumps(figures))
        return
    for name, _ in servers:
        print(name)
        for load, row in figures[name].items():
            print(f"  {load:<12}", row if "per_cpu_second" not in row else
                  f"{row['per_second']:9.1f}/s  p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:7.2f} ms  "
                  f"{row['per_cpu_second']:9.1f} per CPU second  {row['errors']} errors")
    print(json.dumps({key: figures[key] for key in ("hash_ms", "ratio_per_core", "ratio_memory") if key in figures}))


if __name__ == "__main__":
    main()
