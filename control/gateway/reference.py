"""The OpenAPI documents and the page to read and try them by, as they are served: made once, then the same bytes to everyone.

They stand below each API's mount and below its endpoint's path, beside what OpenStack has there, and need no token.
"""
import base64
import hashlib
import html
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import orjson

from control.gateway.answers import Answer
from control.gateway.apis import Api
from control.gateway.openapi import document
from control.gateway.routes import Routes

_PAGE = Path(__file__).with_name("page.html")


class Reference:
    """What is served of the documents of one listener's APIs."""

    def __init__(self, routes: Routes):
        self._routes = routes
        self._at: dict[str, Callable[[], Answer]] = {}
        for api in routes.apis:
            made = cache(partial(self._document, api)), cache(partial(self._page, api))
            for below in {api.mount, api.mount + api.endpoint}:
                self._at |= {f"{below}/openapi.json": made[0], f"{below}/docs": made[1]}

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer | None:
        """What a GET of a path is answered with; None where nothing of ours stands there.

        Args:
          headers: the request's, names in lower case.
        """
        made = self._at.get(path)
        if made is None:
            return None
        whole = made()
        etag = dict(whole.headers)["ETag"]
        known = {each.strip().removeprefix("W/") for each in headers.get("if-none-match", "").split(",")}
        if known & {etag, "*"}:
            return Answer(304, [item for item in whole.headers if item[0] != "Content-Type"])
        return Answer(200, list(whole.headers), whole.body)

    def _document(self, api: Api) -> Answer:
        return _cacheable("application/json", orjson.dumps(document(api, self._routes.rules)))

    def _page(self, api: Api) -> Answer:
        apis = {other.type: other.mount + "/docs" for other in self._routes.apis}
        text = _PAGE.read_text(encoding="utf-8")
        script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
        assert script is not None
        digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
        for name, value in (("API", api.type), ("APIS", orjson.dumps(apis).decode())):
            text = text.replace("{{" + name + "}}", html.escape(value))
        answer = _cacheable("text/html; charset=utf-8", text.encode())
        answer.headers += [("Content-Security-Policy",
                            f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
                            f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
                           ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")]
        return answer


def _cacheable(content_type: str, body: bytes) -> Answer:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Answer(200, [("Content-Type", content_type), ("ETag", etag), ("Cache-Control", "no-cache")], body)
