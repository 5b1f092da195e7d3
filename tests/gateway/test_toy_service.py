"""A new service with the five standard verbs is one proto and one package: everything else follows from them.

Both are written here, compiled into a directory of their own, and driven through REST over a store.
"""
import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import google.api
import grpc_tools
import pytest
from grpc_tools import protoc
from openapi_spec_validator import OpenAPIV31SpecValidator

from control.gateway.app import Gateway
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore
from tests.api.client import Client
from tests.gateway.conftest import ROOT, Tokens

PROTO = """
syntax = "proto3";

package toyshelf.v1;

import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/field_mask.proto";
import "protos/brume/v1/options.proto";

option (brume.v1.api) = {
  type: "shelf" name: "toyshelf" mount: "/shelf" endpoint: "/v1" family: NEUTRON
  versions: { id: "v1" status: "CURRENT" path: "/v1" updated: "2026-01-01T00:00:00Z" }
};

// Books, and who has them.
service Books {
  rpc CreateBook(CreateBookRequest) returns (BookResponse) {
    option (google.api.http) = {post: "/v1/books" body: "*"};
    option (brume.v1.rest) = {status: 201};
    option (brume.v1.policy) = "member";
  }
  rpc ListBooks(ListBooksRequest) returns (ListBooksResponse) {
    option (google.api.http) = {get: "/v1/books"};
    option (brume.v1.policy) = "reader";
  }
  rpc GetBook(BookRequest) returns (BookResponse) {
    option (google.api.http) = {get: "/v1/books/{id}"};
    option (brume.v1.policy) = "reader";
  }
  rpc UpdateBook(UpdateBookRequest) returns (BookResponse) {
    option (google.api.http) = {put: "/v1/books/{id}" body: "*"};
    option (brume.v1.policy) = "member";
  }
  rpc DeleteBook(BookRequest) returns (google.protobuf.Empty) {
    option (google.api.http) = {delete: "/v1/books/{id}"};
    option (brume.v1.policy) = "member";
  }
}

message Book {
  string id = 1;
  string title = 2;
  int64 pages = 3 [json_name = "shelf:pages"];
  optional string lent_to = 4 [(brume.v1.field) = {nullable: true}];
  string project_id = 5;
}

message CreateBookRequest { Book book = 1; }
message BookRequest { string id = 1; }
message BookResponse { Book book = 1; }
message UpdateBookRequest { string id = 1; Book book = 2; google.protobuf.FieldMask update_mask = 3; }
message ListBooksRequest { int32 limit = 1; string marker = 2; string title = 3; }
message ListBooksResponse { repeated Book books = 1; string next_page_marker = 2; }
"""

SERVICE = '''
"""Books, and who has them. A book's key is its id."""
import uuid

from google.protobuf.empty_pb2 import Empty
from toyshelf.v1 import books_pb2 as pb

from control.kernel import listing
from control.kernel.cache import Kind
from control.kernel.errors import Invalid

BOOK = Kind("/toyshelf/books/", pb.Book, indexes={"project": lambda book: (book.project_id,)})
KINDS = (BOOK,)


class Books:
    """Servicer of toyshelf.v1.Books."""

    def __init__(self, database):
        self._database = database

    async def CreateBook(self, request, call):
        if not request.book.title:
            raise Invalid("toyshelf.title", "A book needs a title.")
        book = pb.Book(id=str(uuid.uuid4()), title=request.book.title, pages=request.book.pages,
                       project_id=call.caller.project_id)
        await self._database.transact(lambda tx: tx.put(BOOK, book))
        return pb.BookResponse(book=book)

    async def ListBooks(self, request, call):
        mine = self._database.cache.by(BOOK, "project", call.caller.project_id)
        wanted = [book for book in mine if request.title in ("", book.title)]
        rows, marker = listing.page(wanted, limit=request.limit, marker=request.marker)
        return pb.ListBooksResponse(books=rows, next_page_marker=marker)

    async def GetBook(self, request, call):
        return pb.BookResponse(book=self._database.require(BOOK, request.id))

    async def UpdateBook(self, request, call):
        def decide(tx):
            book = tx.require(BOOK, request.id)
            for name in request.update_mask.paths:
                if name == "lent_to" and not request.book.HasField(name):
                    book.ClearField(name)
                else:
                    setattr(book, name, getattr(request.book, name))
            tx.put(BOOK, book)
            return book
        return pb.BookResponse(book=await self._database.transact(decide))

    async def DeleteBook(self, request, call):
        def decide(tx):
            tx.require(BOOK, request.id)
            tx.delete(BOOK, request.id)
        await self._database.transact(decide)
        return Empty()
'''


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    """The service's modules: (what protoc makes of its proto, its package)."""
    (tmp_path / "toyshelf" / "v1").mkdir(parents=True)
    (tmp_path / "toyshelf" / "v1" / "books.proto").write_text(PROTO)
    (tmp_path / "toyshelf_service.py").write_text(SERVICE)
    assert protoc.main(["protoc", f"-I{tmp_path}", f"-I{ROOT}", f"-I{Path(next(iter(google.api.__path__))).parents[1]}",
                        f"-I{Path(grpc_tools.__file__).parent / '_proto'}", f"--python_out={tmp_path}",
                        "toyshelf/v1/books.proto"]) == 0
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("toyshelf.v1.books_pb2"), importlib.import_module("toyshelf_service")
    for name in [name for name in sys.modules if name.startswith("toyshelf")]:
        del sys.modules[name]


@pytest.fixture
async def client(shelf: tuple) -> AsyncIterator[Client]:
    """A client of a gateway that has nothing but the toy."""
    books, service = shelf
    store = MemoryStore()
    database = Database(store, service.KINDS)
    following = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    dispatcher = Dispatcher(Tokens())
    dispatcher.add(service.Books(database), books.DESCRIPTOR.services_by_name["Books"])
    yield Client(Gateway(dispatcher), {"x-auth-token": "member"})
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    await store.close()


async def test_a_new_service_is_one_proto_and_one_package(client):
    made = await client("POST", "/shelf/v1/books", json_body={"book": {"title": "Emma", "shelf:pages": 474}})
    book = made.json["book"]
    assert made.status == 201 and made.headers["x-openstack-request-id"]
    assert book == {"id": book["id"], "title": "Emma", "shelf:pages": 474, "lent_to": None, "project_id": "p1"}
    for title in ("Persuasion", "Sanditon"):
        assert (await client("POST", "/shelf/v1/books", json_body={"book": {"title": title}})).status == 201

    seen, target = [], "/shelf/v1/books?limit=2"
    while target:
        listed = (await client("GET", target)).json
        seen += [each["title"] for each in listed["books"]]
        target = next((link["href"].removeprefix("http://cloud.example:5000") for link in listed.get("books_links", [])), "")
    assert sorted(seen) == ["Emma", "Persuasion", "Sanditon"]
    only = (await client("GET", "/shelf/v1/books?title=Emma&fields=id")).json
    assert only == {"books": [{"id": book["id"]}]}

    path = f"/shelf/v1/books/{book['id']}"
    lent = await client("PUT", path, json_body={"book": {"lent_to": "Jane"}})
    assert lent.json["book"] == book | {"lent_to": "Jane"}
    assert (await client("PUT", path, json_body={"book": {"lent_to": None}})).json["book"] == book
    assert (await client("GET", path)).json["book"] == book
    assert (await client("DELETE", path)).status == 204
    assert (await client("GET", path)).status == 404

    wrong = await client("POST", "/shelf/v1/books", json_body={"book": {"title": 7}})
    assert wrong.status == 400 and wrong.json["NeutronError"]["message"] == "book.title: expected a string, not a number"
    denied = await client("POST", "/shelf/v1/books", json_body={"book": {"title": "Emma"}}, headers={"x-auth-token": "reader"})
    assert denied.status == 403


async def test_its_description_and_version_documents_are_there_too(client):
    document = (await client("GET", "/shelf/openapi.json")).json
    assert not list(OpenAPIV31SpecValidator(document).iter_errors())
    assert {path: sorted(verbs) for path, verbs in document["paths"].items()} == {
        "/shelf/v1/books": ["get", "post"], "/shelf/v1/books/{id}": ["delete", "get", "put"]}
    assert "shelf:pages" in document["components"]["schemas"]["toyshelf.v1.Book"]["properties"]
    assert (await client("GET", "/shelf/")).json["versions"][0]["id"] == "v1"
    assert (await client("GET", "/shelf/docs")).status == 200
