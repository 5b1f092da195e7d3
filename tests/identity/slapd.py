"""A real slapd on loopback ports with two directories: one of inetOrgPersons, and one with an Active Directory's attributes."""
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import ldap3

from control.kernel import pki
from tests.conftest import free_port

PLAIN, AD = "dc=plain,dc=test", "dc=ad,dc=test"
READER, READER_PASSWORD = "cn=reader", "r3ader"
ROOT_PASSWORD = "r00t"

#: What of Active Directory's schema is needed, with rules to match by.
SCHEMA = """
attributetype ( 1.2.840.113556.1.4.221 NAME 'sAMAccountName' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.8 NAME 'userAccountControl' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.2 NAME 'objectGUID' EQUALITY octetStringMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.782 NAME 'objectCategory' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
objectclass ( 1.2.840.113556.1.5.9 NAME 'user' SUP top AUXILIARY
  MAY ( sAMAccountName $ userAccountControl $ objectGUID $ objectCategory ) )
objectclass ( 1.2.840.113556.1.5.8 NAME 'group' SUP top STRUCTURAL
  MUST cn MAY ( sAMAccountName $ objectGUID $ member $ description ) )
"""

DATABASE = """
database mdb
suffix "{suffix}"
rootdn "cn=root,{suffix}"
rootpw {password}
directory {directory}
maxsize 67108864
index objectClass,uid,cn,member eq
access to attrs=userPassword by anonymous auth by * none
access to * by users read by anonymous auth
{overlay}
"""


class Slapd:
    """One slapd process; it may be stopped, as a directory that is silent, and go on."""

    def __init__(self, directory: Path):
        self.port, self.tls_port = free_port(), free_port()
        self.ca = pki.ensure_ca(directory / "pki").certificate
        leaf = pki.ensure_leaf(directory / "pki", "slapd", ["127.0.0.1", "localhost"], server=True)
        (directory / "ad.schema").write_text(SCHEMA)
        lines = [*(f"include /etc/ldap/schema/{name}.schema" for name in ("core", "cosine", "inetorgperson")),
                 f"include {directory}/ad.schema", "modulepath /usr/lib/ldap", "moduleload back_mdb", "moduleload memberof",
                 f"pidfile {directory}/slapd.pid", f"TLSCACertificateFile {self.ca}", f"TLSCertificateFile {leaf.certificate}",
                 f"TLSCertificateKeyFile {leaf.key}", "sizelimit 10000", "threads 4"]
        for suffix, overlay in ((PLAIN, ""), (AD, "overlay memberof\nmemberof-group-oc group")):
            data = directory / suffix
            data.mkdir()
            lines.append(DATABASE.format(suffix=suffix, password=ROOT_PASSWORD, directory=data, overlay=overlay))
        (directory / "slapd.conf").write_text("\n".join(lines))
        with (directory / "slapd.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["/usr/sbin/slapd", "-d", "0", "-f", directory / "slapd.conf",
                 "-h", f"ldap://127.0.0.1:{self.port} ldaps://127.0.0.1:{self.tls_port}"], stdout=log, stderr=log)
        for suffix in (PLAIN, AD):
            self._fill(suffix)

    def root(self, suffix: str) -> ldap3.Connection:
        """A connection that may change a directory."""
        for attempt in range(100):
            try:
                server = ldap3.Server("127.0.0.1", self.port, get_info=ldap3.NONE)
                return ldap3.Connection(server, f"cn=root,{suffix}", ROOT_PASSWORD, auto_bind=True, raise_exceptions=True)
            except ldap3.core.exceptions.LDAPException:
                if attempt == 99 or self.process.poll() is not None:
                    raise
                time.sleep(0.05)
        raise AssertionError("unreachable")

    def _fill(self, suffix: str) -> None:
        with self.root(suffix) as root:
            root.add(suffix, ["domain"])
            for unit in ("people", "groups", "elsewhere"):
                root.add(f"ou={unit},{suffix}", ["organizationalUnit"])
            root.add(f"{READER},{suffix}", ["person"], {"sn": "reader", "userPassword": READER_PASSWORD})

    def add_user(self, suffix: str, name: str, password: str | None, *, enabled: bool = True, unit: str = "people",
                 **attributes: Any) -> str:
        """The DN of a new user."""
        dn = f"cn={ldap3.utils.dn.escape_rdn(name)},ou={unit},{suffix}"
        values: dict[str, Any] = {"sn": name, "uid": name, "mail": "someone@plain.test"} | attributes
        classes = ["inetOrgPerson"]
        if password is not None:
            values["userPassword"] = password
        if suffix == AD:
            classes.append("user")
            values |= {"sAMAccountName": name, "userAccountControl": 512 if enabled else 514, "objectCategory": "person",
                       "objectGUID": uuid.uuid4().bytes_le}
        with self.root(suffix) as root:
            root.add(dn, classes, values)
        return dn

    def add_group(self, suffix: str, name: str, members: list[str]) -> str:
        """The DN of a new group."""
        dn = f"cn={ldap3.utils.dn.escape_rdn(name)},ou=groups,{suffix}"
        values: dict[str, Any] = {"description": f"all {name}", "member": members or [f"{READER},{suffix}"]}
        if suffix == AD:
            values |= {"sAMAccountName": name, "objectGUID": uuid.uuid4().bytes_le}
        with self.root(suffix) as root:
            root.add(dn, ["group" if suffix == AD else "groupOfNames"], values)
        return dn

    def remove(self, suffix: str, *names: str) -> None:
        with self.root(suffix) as root:
            for name in names:
                root.delete(name)

    def options(self, suffix: str, directory: Path, **changes: Any) -> dict[str, Any]:
        """Settings of a domain whose users are in a directory of this one."""
        secret = directory / "reader.password"
        secret.write_text(READER_PASSWORD + "\n")
        return {"kind": "ad" if suffix == AD else "ldap", "url": f"ldap://127.0.0.1:{self.port}", "plaintext": True,
                "user": f"{READER},{suffix}", "password_file": str(secret), "user_tree_dn": f"ou=people,{suffix}",
                "group_tree_dn": f"ou=groups,{suffix}", "page_size": 3, "timeout": 2.0} | changes

    def silence(self) -> None:
        """It keeps its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
