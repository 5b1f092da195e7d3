"""The pages of docs/api are what the protos say now."""
from pathlib import Path

from control.gateway.apidocs import pages, write

DOCS = Path(__file__).parents[2] / "docs" / "api"


def test_the_pages_are_current():
    stale = [name for name, text in pages().items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    gone = [path.name for path in DOCS.glob("*.md") if path.name not in pages()]
    assert not stale + gone, "run: python -m control.gateway.apidocs docs/api"


def test_a_page_has_every_call_with_its_path_and_what_its_comment_says():
    page = pages()["compute.v1.KeyPairs.md"]
    for line in ("## CreateKeyPair", "    POST /compute/v2.1/os-keypairs", "FAILED_PRECONDITION where the name is taken",
                 "| `keypair.name` | string | Required; 1 to 255 letters, digits, spaces and \"-_@.\". Unique for the user. |"):
        assert line in page


def test_pages_of_services_that_are_no_more_go(tmp_path):
    (tmp_path / "gone.v1.Things.md").write_text("# gone.v1.Things\n")
    write(tmp_path)
    assert not (tmp_path / "gone.v1.Things.md").exists() and (tmp_path / "README.md").exists()
