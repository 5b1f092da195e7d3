"""An OpenID Connect provider: canaille, with the users and clients that standard input names, until it is ended.

Run by canaille's own interpreter. Canaille has no device flow (RFC 8628), so the one of the library that it is made of is added.
And its memory finds what fits any of several attributes, where an authorization code has to fit all.
"""
import asyncio
import json
import sys

from asgiref.wsgi import WsgiToAsgi
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant, DeviceCredentialDict
from canaille import create_app
from canaille.app import models
from canaille.app.flask import csrf
from canaille.backends import Backend
from canaille.backends.memory.backend import MemoryBackend
from canaille.oidc.provider import authorization
from flask import request
from hypercorn.asyncio import serve
from hypercorn.config import Config

#: What devices wait for, by device code; and by user code, whose consent there is.
DEVICES: dict[str, dict] = {}
GRANTS: dict[str, str] = {}


def query(self, model, *args, any_of=MemoryBackend.do_query, **wanted):
    found = [any_of(self, model, **{name: value}) for name, value in wanted.items()]
    if len(found) < 2:
        return any_of(self, model, *args, **wanted)
    common = set.intersection(*({each.id for each in some} for some in found))
    return [each for each in found[0] if each.id in common]


MemoryBackend.do_query = query


class DeviceEndpoint(DeviceAuthorizationEndpoint):
    INTERVAL = 1

    def get_verification_uri(self) -> str:
        return f"{request.url_root}device"

    def save_device_credential(self, client_id, scope, data) -> None:
        DEVICES[data["device_code"]] = {"client_id": client_id, "scope": scope, "expires_at": 2 ** 40, **data}


class DeviceGrant(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")

    def query_device_credential(self, device_code):
        return DeviceCredentialDict(DEVICES[device_code]) if device_code in DEVICES else None

    def query_user_grant(self, user_code):
        if user_code not in GRANTS:
            return None
        return Backend.instance.get(models.User, user_name=GRANTS[user_code]), True

    def should_slow_down(self, credential) -> bool:
        return False


def ask_for_codes():
    return authorization.create_endpoint_response("device_authorization")


def consent(code: str, name: str) -> str:
    """In place of a person in a browser, who enters the code that their device shows."""
    GRANTS[code] = name
    return ""


def main() -> None:
    wanted = json.load(sys.stdin)
    address = f"127.0.0.1:{wanted['port']}"
    app = create_app({
        "SECRET_KEY": "of the test", "SERVER_NAME": address, "PREFERRED_URL_SCHEME": "http",
        "CANAILLE": {"DATABASE": "memory", "LOGGING": None},
        "CANAILLE_OIDC": {"REQUIRE_NONCE": False, "ACTIVE_JWKS": wanted["keys"]}}, env_file="")
    authorization.register_grant(DeviceGrant)
    authorization.register_endpoint(DeviceEndpoint)
    app.add_url_rule("/oauth/device", "device", csrf.exempt(ask_for_codes), methods=["POST"])
    app.add_url_rule("/device/<code>/<name>", "consent", csrf.exempt(consent), methods=["POST"])
    with app.app_context():
        users = {}
        for user in wanted["users"]:
            users[user["user_name"]] = made = models.User(
                formatted_name=user["user_name"].title(), family_name=user["user_name"], emails=[f"{user['user_name']}@idp.test"],
                **user)
            Backend.instance.save(made)
        for name, members in wanted["groups"].items():
            Backend.instance.save(models.Group(display_name=name, members=[users[member] for member in members]))
        for client in wanted["clients"]:
            made = models.Client(client_name=client["client_id"], client_uri=f"http://{address}", **client)
            Backend.instance.save(made)
            made.audience = [made]
            Backend.instance.save(made)
    config = Config()
    config.bind = [address]
    config.accesslog = None
    asyncio.run(serve(WsgiToAsgi(app), config))


main()
