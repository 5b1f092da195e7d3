"""`brume policy`: which rules there are, and what a rule says of a user."""
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from control.cli.session import RestError, Session
from control.kernel import config as settings
from control.kernel.caller import Caller
from control.kernel.config import Config
from control.kernel.errors import Invalid
from control.kernel.policy import Policy, PolicyFile, Verdict, rules_of

config_option = click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                             help="Settings (TOML).")


@click.group()
def policy() -> None:
    """Who may do what: the rules of every call, and what overrides them."""


@policy.command("list")
@click.argument("word", default="")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@config_option
@click.pass_obj
def list_rules(state_dir: Path | None, word: str, as_json: bool, config_file: Path | None) -> None:
    """List all rules, or those that have WORD in their names, with their defaults and overrides."""
    rules = _loaded(settings.load(state_dir, config_file))
    rows = [{"rule": name, "default": rules.defaults.get(name), "override": rules.overrides.get(name)}
            for name in sorted(rules.texts()) if word in name]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max((len(str(row["rule"])) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['rule']:<{width}}  {row['default'] or '(none)'}")
        if row["override"] is not None:
            click.echo(f"{'':<{width}}  overridden: {row['override'] or '@'}")


@policy.command()
@click.argument("rule")
@click.option("--as", "user", required=True, metavar="USER", help="A user, by name or id.")
@click.option("--project", help="The project of their token, by name or id.")
@click.option("--domain", help="The domain of their token, by name or id.")
@click.option("--system", is_flag=True, help="A token for the system.")
@click.option("--user-domain", default="default", show_default=True, help="The domain that the names are of.")
@click.option("--target", "targets", multiple=True, metavar="KEY=VALUE",
              help="What the call is about; the user's own ids where absent.")
@config_option
@click.pass_obj
def check(state_dir: Path | None, rule: str, user: str, project: str | None, domain: str | None, system: bool, user_domain: str,
          targets: tuple[str, ...], config_file: Path | None) -> None:
    """Say whether RULE lets a user through, and which of its checks decide. Ends with 1 where it does not."""
    if sum((project is not None, domain is not None, system)) > 1:
        raise Invalid("policy.scope", "a token has one scope: --project, --domain or --system")
    config = settings.load(state_dir, config_file)
    rules = _loaded(config)
    if rule not in rules.texts():
        raise Invalid("policy.rule", f"there is no rule {rule}: see `brume policy list`")
    caller = _caller(config, user, user_domain, project, domain, system)
    target: dict[str, str] = {
        "user_id": caller.user_id, "project_id": caller.project_id, "domain_id": caller.domain_id,
        "target.user.id": caller.user_id, "target.user.domain_id": caller.user_domain_id,
        "target.project.id": caller.project_id, "target.domain_id": caller.project_domain_id or caller.user_domain_id}
    for each in targets:
        key, equals, value = each.partition("=")
        if not equals:
            raise Invalid("policy.target", f"--target {each}: it must be KEY=VALUE")
        target[key] = value
    verdict = rules.explain(rule, caller, target)
    scope = (f"project {caller.project_name}" if caller.project_id else f"domain {domain}" if caller.domain_id
             else "the system" if caller.system else "no scope")
    click.echo(f"{caller.user_name} in {scope}, roles: {', '.join(sorted(caller.roles)) or 'none'}")
    origin = "policy.yaml" if rules.is_override(rule) else "default"
    click.echo(f"{rule} ({origin}): {rules.texts()[rule] or '@'}")
    for line in explained(verdict):
        click.echo(line)
    click.echo("allowed" if verdict.allowed else "refused")
    if not verdict.allowed:
        raise SystemExit(1)


def explained(verdict: Verdict, depth: int = 1) -> Iterator[str]:
    """One line per check: whether it holds, and what it is made of."""
    yield f"{'  ' * depth}{'yes' if verdict.allowed else 'no '} {verdict.text}"
    for part in verdict.parts:
        yield from explained(part, depth + 1)


def known_rules() -> Policy:
    """The rules of every rpc that there is, as they are without a file."""
    import protos
    rules = Policy()
    for root in map(Path, protos.__path__):
        for file in sorted(root.glob("*/v1/*_pb2.py")):
            module = importlib.import_module(".".join(("protos", *file.relative_to(root).with_suffix("").parts)))
            for service in module.DESCRIPTOR.services_by_name.values():
                for name, default in rules_of(service):
                    rules.add(name, default)
    return rules


def _loaded(config: Config) -> Policy:
    rules = known_rules()
    PolicyFile(rules, config.policy_path).load()
    return rules


def _caller(config: Config, user: str, user_domain: str, project: str | None, domain: str | None, system: bool) -> Caller:
    """Who a token of a user would speak for, as the running cloud has it."""
    session = Session(config, "admin", config.path("admin.password").read_text().strip(), "admin")
    home = _found(session, "domain", user_domain)
    holder = _found(session, "user", user, home["id"])
    if project is not None:
        place = _found(session, "project", project, home["id"])
        where = f"scope.project.id={place['id']}"
    elif domain is not None:
        place = _found(session, "domain", domain)
        where = f"scope.domain.id={place['id']}"
    else:
        place = {}
        where = "scope.system=all"
    roles: frozenset[str] = frozenset()
    if place or system:
        rows = session.request("GET", "identity", f"/role_assignments?user.id={holder['id']}&{where}&effective&include_names")
        roles = frozenset(row["role"]["name"] for row in rows["role_assignments"])
    return Caller(holder["id"], holder["name"], holder["domain_id"], place["id"] if project is not None else "",
                  place.get("name", "") if project is not None else "", place.get("domain_id", "") if project is not None else "",
                  place["id"] if domain is not None else "", system, roles)


def _found(session: Session, noun: str, wanted: str, domain_id: str = "") -> dict[str, Any]:
    """A user, project or domain, by id or by name."""
    try:
        return session.request("GET", "identity", f"/{noun}s/{quote(wanted, safe='')}")[noun]
    except RestError as error:
        if error.status != 404:
            raise
    rows = session.request("GET", "identity", f"/{noun}s?name={quote(wanted, safe='')}"
                           + (f"&domain_id={domain_id}" if domain_id else ""))[f"{noun}s"]
    if not rows:
        raise Invalid(f"policy.{noun}", f"there is no {noun} {wanted}")
    return rows[0]
