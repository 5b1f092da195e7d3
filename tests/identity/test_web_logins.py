"""Users of a real OpenID Connect provider log in with a browser, and a dashboard gets their token."""
import asyncio
import base64
import hashlib
import html
import re
import webbrowser
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests
from keystoneauth1 import session as keystone
from keystoneauth1.identity import v3

from control.kernel.store import MemoryStore
from tests.api.client import Reply
from tests.conftest import free_port
from tests.identity.canaille.provider import SCOPE, WEB_CALLBACK, Canaille
from tests.identity.test_federation import ACME, FEDERATION, Federated, put, running

DASHBOARD = "https://dashboard.example/auth/websso/"
START = "/v3/auth/OS-FEDERATION/identity_providers/acme/protocols/openid/websso"


@pytest.fixture
async def cloud(canaille: Canaille) -> AsyncIterator[Federated]:
    options = canaille.options(trusted_dashboards=[DASHBOARD], scope=SCOPE)
    async with running(MemoryStore(), canaille.cloud_port, **options) as made_cloud:
        await made_cloud.federate()
        yield made_cloud


async def started(cloud: Federated, path: str = START, origin: str = DASHBOARD) -> Reply:
    return await cloud.anybody("GET", f"{path}?{urlencode({'origin': origin})}")


def cookie(reply: Reply) -> str:
    return reply.headers["set-cookie"].partition(";")[0]


async def returned(canaille: Canaille, reply: Reply, name: str = "alice") -> str:
    """Path and query that the provider sends the browser back to."""
    back = urlsplit(await asyncio.to_thread(canaille.browse, reply.headers["location"], name))
    return f"{back.path}?{back.query}"


def form(page: str) -> tuple[str, str]:
    """Where a page's form goes, and the token in it."""
    (action,) = re.findall(r'<form method="post" action="([^"]*)">', page)
    (token,) = re.findall(r'name="token" value="([^"]*)"', page)
    return html.unescape(action), html.unescape(token)


async def test_a_browser_is_sent_to_the_provider_and_brings_a_token_to_the_dashboard(cloud: Federated, canaille: Canaille):
    sent = await started(cloud)
    assert sent.status == 302 and sent.headers["cache-control"] == "no-store" and sent.body == b""
    target = urlsplit(sent.headers["location"])
    query = {key: value for key, (value,) in parse_qs(target.query).items()}
    assert sent.headers["location"].startswith(f"{canaille.issuer}/oauth/authorize?")
    assert query["redirect_uri"] == f"http://cloud.example:5000{WEB_CALLBACK}" and query["code_challenge_method"] == "S256"
    assert "HttpOnly" in sent.headers["set-cookie"] and "SameSite=Lax" in sent.headers["set-cookie"]
    for secret in (canaille.secret_file.read_text().strip(), query["nonce"]):
        assert secret not in sent.headers["set-cookie"]

    back = await returned(canaille, sent)
    done = await cloud.anybody("GET", back, headers={"cookie": f"other=1; {cookie(sent)}"})
    assert done.status == 200 and done.headers["content-type"] == "text/html; charset=utf-8"
    action, token = form(done.body.decode())
    assert action == DASHBOARD
    (script,) = re.findall(r"<script>(.*)</script>", done.body.decode())
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in done.headers["content-security-policy"]
    assert done.headers["cache-control"] == "no-store" and "Max-Age=0" in done.headers["set-cookie"]
    assert (await cloud.in_demo(token)).status == 201
    again = await cloud.anybody("GET", back, headers={"cookie": cookie(sent)})          # the provider takes a code once
    assert again.status == 401


async def test_only_the_browser_that_was_sent_may_come_back(cloud: Federated, canaille: Canaille):
    mine, theirs = await started(cloud), await started(cloud)
    back = await returned(canaille, mine)
    state = parse_qs(urlsplit(back).query)["state"][0]
    other = parse_qs(urlsplit(theirs.headers["location"]).query)["state"][0]
    _, _, sealed = cookie(mine).partition("=")
    for query, sent in ((back, None), (back, cookie(theirs)), (back.replace(state, other), cookie(theirs)),
                        (back.replace(state, other), cookie(mine)), (back, f"{cookie(theirs).partition('=')[0]}={sealed}"),
                        (back, f"{cookie(mine).partition('=')[0]}=nonsense"), (f"{WEB_CALLBACK}?code=x", cookie(mine)),
                        (f"{WEB_CALLBACK}?state={state}", cookie(mine)), (f"{back}&error=access_denied", cookie(mine)),
                        (f"{back.replace('&iss=', '&old=')}&iss=https%3A%2F%2Fevil.test", cookie(mine))):
        reply = await cloud.anybody("GET", query, headers={"cookie": sent} if sent else {})
        assert reply.status == 401 and b"token" not in reply.body, query
    assert (await cloud.client_of(sealed)("GET", "/v3/auth/projects")).status == 401        # a cookie is no token
    token = await cloud.token("demo")
    assert (await cloud.anybody("GET", back, headers={"cookie": f"{cookie(mine).partition('=')[0]}={token}"})).status == 401


async def test_a_login_takes_ten_minutes_at_most(cloud: Federated, canaille: Canaille, monkeypatch: pytest.MonkeyPatch):
    import time

    sent = await started(cloud)
    back = await returned(canaille, sent)
    present = time.time
    monkeypatch.setattr(time, "time", lambda: present() + 601)
    assert (await cloud.anybody("GET", back, headers={"cookie": cookie(sent)})).status == 401


async def test_a_token_goes_to_no_page_that_is_not_trusted(cloud: Federated, canaille: Canaille):
    for origin in (DASHBOARD + "x", DASHBOARD.rstrip("/"), "https://evil.test/", DASHBOARD.upper(), "javascript:alert(1)"):
        reply = await started(cloud, origin=origin)
        assert reply.status == 401 and "location" not in reply.headers and "trusted dashboard" in reply.json["error"]["message"]
    assert (await cloud.anybody("GET", START)).status == 400
    assert (await started(cloud, START.replace("openid", "none"))).status == 404
    assert (await cloud.admin("PATCH", ACME, json_body={"identity_provider": {"enabled": False}})).status == 200
    assert (await started(cloud)).status == 403


async def test_a_provider_that_is_disabled_meanwhile_lets_nobody_in(cloud: Federated, canaille: Canaille):
    sent = await started(cloud)
    back = await returned(canaille, sent)
    assert (await cloud.admin("PATCH", ACME, json_body={"identity_provider": {"enabled": False}})).status == 200
    assert (await cloud.anybody("GET", back, headers={"cookie": cookie(sent)})).status == 403


async def test_without_a_name_the_provider_that_trusts_the_dashboard_is_meant(cloud: Federated, canaille: Canaille):
    generic = "/v3/auth/OS-FEDERATION/websso/openid"
    await put(cloud.admin, f"{FEDERATION}/identity_providers/other", "identity_provider", enabled=True)
    await put(cloud.admin, f"{FEDERATION}/identity_providers/other/protocols/openid", "protocol", mapping_id="rules")
    sent = await started(cloud, generic)
    assert sent.status == 302
    done = await cloud.anybody("GET", await returned(canaille, sent, "bob"), headers={"cookie": cookie(sent)})
    assert done.status == 200
    for path, origin in ((generic, "https://evil.test/"), ("/v3/auth/OS-FEDERATION/websso/none", DASHBOARD)):
        assert (await started(cloud, path, origin)).status == 400


async def test_keystoneauth_logs_in_with_a_browser(canaille: Canaille, monkeypatch: pytest.MonkeyPatch):
    port = free_port()
    browsing: list[asyncio.Future] = []
    loop = asyncio.get_running_loop()

    def browse(url: str) -> None:
        browser = requests.Session()
        sent = browser.get(url, timeout=10, allow_redirects=False)
        assert sent.status_code == 302, sent.text
        page = browser.get(canaille.browse(sent.headers["location"], "alice"), timeout=10)
        action, token = form(page.text)
        navigation = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "cross-site",
                      "origin": "null"}
        browser.post(action, data={"token": token}, headers=navigation, timeout=10).raise_for_status()

    def opened(url: str, *_, **__) -> bool:
        browsing.append(loop.run_in_executor(None, browse, url))
        return True

    monkeypatch.setattr(webbrowser, "open", opened)
    monkeypatch.setattr(webbrowser, "open_new_tab", opened)
    trusted = [f"http://localhost:{port}/auth/websso/"]
    async with running(MemoryStore(), canaille.cloud_port, **canaille.options(trusted_dashboards=trusted, scope=SCOPE)) as cloud:
        await cloud.federate()
        plugin = v3.WebSSO(f"{cloud.url}/v3", "acme", "openid", redirect_port=port, project_name="demo",
                           project_domain_id="default")
        held = await asyncio.to_thread(plugin.get_access, keystone.Session())
        await asyncio.gather(*browsing)
    assert (held.username, held.project_name) == ("alice", "demo") and browsing
