"""Serves domains' configurations: kept sealed, shown without passwords. Only options that may differ per domain can be set.

With identity.driver = "ldap" the domain's users are those of the directory that the group ldap says (see `directories`).
"""
import json
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from control.identity import access
from control.identity.model import (
    DEFAULT_DOMAIN,
    DIRECTORY_ENTRY,
    DOMAIN_CONFIG,
    ENTRY,
    GROUP,
    PROJECT,
    USER,
    missing,
    require_domain,
)
from control.identity.vault import seal, unseal
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.rpc import Call
from protos.identity.v1 import domain_configs_pb2 as pb
from protos.identity.v1.records_pb2 import DomainConfigRecord

Config = dict[str, dict[str, Any]]

#: What counts without configuration, by group; None: not set. These are the options that a domain may set.
DEFAULTS: Config = {
    "identity": {"driver": "sql", "list_limit": None},
    "ldap": {
        "url": "ldap://localhost", "user": None, "password": None, "suffix": "cn=example,cn=com", "query_scope": "one",
        "page_size": 0, "alias_dereferencing": "default", "chase_referrals": None,
        "user_tree_dn": None, "user_filter": None, "user_objectclass": "inetOrgPerson", "user_id_attribute": "cn",
        "user_name_attribute": "sn", "user_description_attribute": "description", "user_mail_attribute": "mail",
        "user_pass_attribute": "userPassword", "user_enabled_attribute": "enabled", "user_enabled_invert": False,
        "user_enabled_mask": 0, "user_enabled_default": "True", "user_attribute_ignore": "default_project_id",
        "user_default_project_id_attribute": None, "user_enabled_emulation": False, "user_enabled_emulation_dn": None,
        "user_enabled_emulation_use_group_config": False, "user_additional_attribute_mapping": [],
        "group_tree_dn": None, "group_filter": None, "group_objectclass": "groupOfNames", "group_id_attribute": "cn",
        "group_name_attribute": "ou", "group_member_attribute": "member", "group_members_are_ids": False,
        "group_desc_attribute": "description", "group_attribute_ignore": "", "group_additional_attribute_mapping": [],
        "group_ad_nesting": False, "tls_cacertfile": None, "tls_cacertdir": None, "use_tls": False, "tls_req_cert": "demand",
        "connection_timeout": -1, "use_pool": True, "pool_size": 10, "pool_retry_max": 3, "pool_retry_delay": 0.1,
        "pool_connection_timeout": -1, "pool_connection_lifetime": 600, "use_auth_pool": True, "auth_pool_size": 100,
        "auth_pool_connection_lifetime": 60},
}

#: Shown to everybody, set for the whole cloud alone.
COMPLIANCE = "security_compliance"
PASSWORD_RULES = ("password_regex", "password_regex_description")

#: The value of identity.driver that makes a domain a directory's. What else it may say is the store.
DIRECTORY_DRIVER = "ldap"

#: Never shown.
SENSITIVE = {("ldap", "password")}

MAX_CONFIG = 64 * 1024


class DomainConfigs:
    """identity.v1.DomainConfigs. `password_rules`: the values of PASSWORD_RULES, where the cloud has them."""

    def __init__(self, db: Database, password_rules: dict[str, Any] | None = None):
        self._db = db
        self._password_rules = {name: (password_rules or {}).get(name) for name in PASSWORD_RULES}

    async def SetDomainConfig(self, request: pb.SetDomainConfigRequest, call: Call) -> pb.DomainConfigResponse:
        wanted = _checked(MessageToDict(request.config))

        def decide(transaction: Transaction) -> bool:
            existed = transaction.get(DOMAIN_CONFIG, request.domain_id) is not None
            self._put(transaction, request.domain_id, wanted)
            return existed

        call.status = 200 if await self._db.transact(decide) else 201
        return _answer(_public(wanted))

    async def GetDomainConfig(self, request: pb.GetDomainConfigRequest, call: Call) -> pb.DomainConfigResponse:
        if request.group == COMPLIANCE:
            require_domain(self._db, request.domain_id)
            return _answer(_part({COMPLIANCE: self._password_rules}, request.group, request.option))
        access.require_reader(call, "get_domain_config")
        _check_place(request.group, request.option)
        return _answer(_part(_public(self._held(self._db, request.domain_id)), request.group, request.option))

    async def UpdateDomainConfig(self, request: pb.UpdateDomainConfigRequest, call: Call) -> pb.DomainConfigResponse:
        wanted = MessageToDict(request.config)
        _check_place(request.group, request.option)
        if request.option:
            if set(wanted) != {request.option}:
                raise _refused(f"only {request.option} is named in the path")
            wanted = {request.group: wanted}
        elif request.group and set(wanted) != {request.group}:
            raise _refused(f"only {request.group} is named in the path")
        wanted = _checked(wanted)

        def decide(transaction: Transaction) -> Config:
            held = self._held(transaction, request.domain_id)
            if request.group:
                _part(held, request.group, request.option)
            merged = {group: held.get(group, {}) | wanted.get(group, {}) for group in (*held, *wanted)}
            self._put(transaction, request.domain_id, merged)
            return merged

        return _answer(_public(await self._db.transact(decide)))

    async def DeleteDomainConfig(self, request: pb.DeleteDomainConfigRequest, call: Call) -> Empty:
        _check_place(request.group, request.option)

        def decide(transaction: Transaction) -> None:
            held = self._held(transaction, request.domain_id)
            _part(held, request.group, request.option)
            if request.option:
                del held[request.group][request.option]
            elif request.group:
                del held[request.group]
            held = {group: options for group, options in held.items() if options} if request.group else {}
            if held:
                self._put(transaction, request.domain_id, held)
            else:
                transaction.delete(DOMAIN_CONFIG, request.domain_id)

        await self._db.transact(decide)
        return Empty()

    async def GetDefaultConfig(self, request: pb.GetDefaultConfigRequest, call: Call) -> pb.DomainConfigResponse:
        if request.group == COMPLIANCE:
            return _answer(_part({COMPLIANCE: self._password_rules}, request.group, request.option))
        _check_place(request.group, request.option)
        return _answer(_part(_public(DEFAULTS), request.group, request.option))

    def _held(self, reader: Database | Transaction, domain_id: str) -> Config:
        require_domain(reader, domain_id)
        record = reader.get(DOMAIN_CONFIG, domain_id)
        if record is None:
            raise missing("domain configuration", f"of domain {domain_id}")
        return json.loads(unseal(reader, record.sealed_config))

    def _put(self, transaction: Transaction, domain_id: str, config: Config) -> None:
        require_domain(transaction, domain_id)
        if _has_directory(config):
            if domain_id == DEFAULT_DOMAIN:
                raise _refused("the default domain has the cloud's own users; make another for a directory's")
            present = [*(record.user.id for record in transaction.rows(USER, "domain", domain_id)),
                       *(group.id for group in transaction.rows(GROUP, "domain", domain_id))]
            if any(transaction.get(DIRECTORY_ENTRY, identifier) is None for identifier in present):
                raise Conflict("identity.config.users", "The domain has users or groups of its own, whose place those of a "
                                                        "directory would take. Delete them first.")
            for noun in ("user", "group"):
                transaction.guard_empty(ENTRY, noun, domain_id)
        transaction.guard_exists(PROJECT, domain_id)
        sealed = seal(transaction, json.dumps(config))
        transaction.put(DOMAIN_CONFIG, DomainConfigRecord(domain_id=domain_id, sealed_config=sealed))


def directory_options(db: Database, domain_id: str) -> tuple[dict[str, Any], Any] | None:
    """What a domain's configuration says of its directory: options with their defaults, and its list_limit; None for none."""
    record = db.get(DOMAIN_CONFIG, domain_id)
    if record is None:
        return None
    config: Config = json.loads(unseal(db, record.sealed_config))
    return (DEFAULTS["ldap"] | config.get("ldap", {}), config["identity"].get("list_limit")) if _has_directory(config) else None


def _has_directory(config: Config) -> bool:
    return config.get("identity", {}).get("driver") == DIRECTORY_DRIVER


def _checked(wanted: Any) -> Config:
    """A configuration that may be set. Raises Denied for what may not differ per domain, Invalid for what is none."""
    if not wanted or len(json.dumps(wanted)) > MAX_CONFIG:
        raise Invalid("identity.config", f"Invalid input for field 'config': groups of options, at most {MAX_CONFIG} bytes.")
    for group, options in wanted.items():
        _check_place(group)
        if not isinstance(options, dict) or not options:
            raise Invalid("identity.config.group", f"Invalid input for field 'config': {group} has to hold options.")
        for option in options:
            _check_place(group, option)
    return wanted


def _check_place(group: str, option: str = "") -> None:
    if option and not group:
        raise Invalid("identity.config.place", "Invalid input for field 'option': it is named together with its group.")
    if group and (group not in DEFAULTS or (option and option not in DEFAULTS[group])):
        raise _refused(f"{group}{'.' if option else ''}{option} cannot be set per domain")


def _refused(why: str):
    return access.forbidden("identity.config.place", f"invalid domain specific configuration: {why}")


def _public(config: Config) -> Config:
    return {group: {option: value for option, value in options.items() if (group, option) not in SENSITIVE}
            for group, options in config.items()}


def _part(config: Config, group: str, option: str) -> dict[str, Any]:
    """All, a group, or an option by its name. Raises NotFound for what is not set."""
    if group and (group not in config or (option and option not in config[group])):
        raise NotFound("identity.config.missing", f"Could not find {'option ' + option if option else 'group ' + group} in the "
                                                  f"domain's configuration.")
    return {option: config[group][option]} if option else {group: config[group]} if group else config


def _answer(config: dict[str, Any]) -> pb.DomainConfigResponse:
    answer = pb.DomainConfigResponse(config=Struct())
    answer.config.update(config)
    return answer
