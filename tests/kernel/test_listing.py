"""Pages together are the list, whatever the sort; filters mean what OpenStack means by them."""
from types import SimpleNamespace

import pytest
from google.protobuf import message_factory
from hypothesis import given
from hypothesis import strategies as st

from control.kernel.errors import Invalid
from control.kernel.listing import MAX_PAGE, page, select
from protos.brume.v1.options_pb2 import QueryParameter
from protos.identity.v1.users_pb2 import User
from protos.internal.v1.hosts_pb2 import DESCRIPTOR as HOSTS
from protos.internal.v1.quota_pb2 import QuotaLedger
from tests.kernel.conftest import thing


def project(row: QuotaLedger) -> str:
    return row.project_id


def service(row: QuotaLedger) -> str:
    return row.service


ledgers = st.lists(st.builds(thing, st.text("abc123", min_size=1, max_size=4), st.sampled_from("xyz")), unique_by=project)


@given(ledgers, st.integers(1, 5),
       st.sampled_from([(), ((service, False),), ((service, True),), ((service, True), (project, True))]))
def test_pages_put_together_are_the_sorted_list(rows, limit, sort):
    whole, end = page(rows, limit=0, marker="", sort=sort, id_of=project)
    assert end == ""
    assert sorted(map(project, whole)) == sorted(map(project, rows))
    for key, descending in sort[:1]:
        assert [key(row) for row in whole] == sorted((key(row) for row in rows), reverse=descending)
    paged, marker = [], ""
    while True:
        some, marker = page(rows, limit=limit, marker=marker, sort=sort, id_of=project)
        assert len(some) <= limit
        paged += some
        if not marker:
            break
    assert paged == whole


def test_a_page_has_no_more_than_the_limit_of_all_pages():
    rows = [thing(f"{i:05}") for i in range(MAX_PAGE + 1)]
    some, marker = page(rows, limit=5 * MAX_PAGE, marker="", id_of=project)
    assert len(some) == MAX_PAGE
    assert marker == some[-1].project_id
    assert page(rows, limit=0, marker=marker, id_of=project) == ([rows[-1]], "")


@pytest.mark.parametrize(("limit", "marker", "text"), [(-1, "", "negative"), (1, "nope", r"\[nope\] not found")])
def test_a_bad_limit_or_marker_is_invalid(limit, marker, text):
    with pytest.raises(Invalid, match=text):
        page([thing("a")], limit=limit, marker=marker, id_of=project)


def names(rows) -> str:
    return "".join(map(project, rows))


def test_a_filter_keeps_rows_with_one_of_its_values_and_several_filters_all_hold():
    rows = [thing("a", "x"), thing("b", "y"), thing("c", "")]
    assert names(select(rows, [QueryParameter(key="service", values=["x", "y"])])) == "ab"
    assert names(select(rows, [QueryParameter(key="service", values=[""])])) == "c"
    both = [QueryParameter(key="service", values=["x"]), QueryParameter(key="project_id", values=["b"])]
    assert names(select(rows, both)) == ""


def test_what_is_no_field_or_no_filter_is_passed_over():
    rows = [thing("a", "x")]
    assert select(rows, [QueryParameter(key="nonsense", values=["1"]), QueryParameter(key="limit", values=["1"])]) == rows
    assert select([], [QueryParameter(key="service", values=["x"])]) == []


def boolean_message():
    """Any message of ours with a boolean field, and that field."""
    for message in HOSTS.message_types_by_name.values():
        for field in message.fields:
            if field.type == field.TYPE_BOOL and not field.is_repeated:
                return message_factory.GetMessageClass(message), field.name
    raise AssertionError("no message with a boolean field")


@pytest.mark.parametrize(("spelling", "kept"), [("true", 1), ("True", 1), ("1", 1), ("yes", 1), ("false", 0), ("0", 0),
                                                ("no", 0)])
def test_booleans_match_any_usual_spelling(spelling, kept):
    message, name = boolean_message()
    rows = [message(), message(**{name: True})]
    assert select(rows, [QueryParameter(key=name, values=[spelling])]) == [rows[kept]]


@pytest.mark.parametrize(("how", "value", "kept"), [
    ("contains", "oh", "ab"), ("contains", "OH", ""), ("icontains", "OH", "ab"), ("contains", "", "abc"),
    ("startswith", "Jo", "ab"), ("startswith", "jo", ""), ("istartswith", "jO", "ab"),
    ("endswith", "na", "b"), ("endswith", "NA", ""), ("iendswith", "NA", "b")])
def test_texts_may_be_compared_by_a_part(how, value, kept):
    rows = [thing("a", "John"), thing("b", "Johanna"), thing("c", "Eve")]
    assert names(select(rows, [QueryParameter(key=f"service__{how}", values=[value])])) == kept


def test_a_part_may_be_one_of_several_and_several_filters_all_hold():
    rows = [thing("a", "John"), thing("b", "Johanna"), thing("c", "Eve")]
    assert names(select(rows, [QueryParameter(key="service__contains", values=["hn", "ev", "Ev"])])) == "ac"
    both = [QueryParameter(key="service__startswith", values=["Jo"]), QueryParameter(key="service__endswith", values=["n"])]
    assert names(select(rows, both)) == "a"


@pytest.mark.parametrize("key", ["service__like", "service__", "__contains", "nonsense__contains", "service__i"])
def test_a_comparison_that_is_none_is_passed_over(key):
    assert names(select([thing("a", "x")], [QueryParameter(key=key, values=["nothing"])])) == "a"


def users(*days: int) -> list[User]:
    """Users whose passwords expire on these days of a month; 0: never."""
    rows = [User(id=str(day)) for day in days]
    for row, day in zip(rows, days, strict=True):
        if day:
            row.password_expires_at.FromJsonString(f"2026-01-{day:02}T12:00:00Z")
    return rows


@pytest.mark.parametrize(("values", "kept"), [
    (["lt:2026-01-02T12:00:00Z"], "1"), (["lte:2026-01-02T12:00:00Z"], "12"), (["gt:2026-01-02T12:00:00Z"], "3"),
    (["gte:2026-01-02T12:00:00.000000Z"], "23"), (["eq:2026-01-02T13:00:00+01:00"], "2"), (["2026-01-02T12:00:00Z"], "2"),
    (["neq:2026-01-02T12:00:00Z"], "13"), (["gt:2026-01-01T12:00:00Z", "lt:2026-01-03T12:00:00Z"], "2")])
def test_times_are_compared_and_a_row_without_one_is_not_kept(values, kept):
    rows = select(users(0, 1, 2, 3), [QueryParameter(key="password_expires_at", values=values)])
    assert "".join(row.id for row in rows) == kept


@pytest.mark.parametrize("value", ["lt:", "tomorrow", "like:2026-01-02T12:00:00Z", "lt:2026-13-02T12:00:00Z", ""])
def test_a_time_that_is_none_is_invalid(value):
    with pytest.raises(Invalid, match="password_expires_at"):
        select(users(1), [QueryParameter(key="password_expires_at", values=[value])])


def _key(name):
    return lambda row: getattr(row, name)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=14), st.integers(0, 6), st.randoms(),
       st.sampled_from([[], [("a", True)], [("a", False), ("b", True)], [("b", False)]]))
def test_pages_are_the_whole_order_cut_in_pieces_with_ties_by_id(pairs, limit, random, names):
    rows = [SimpleNamespace(id=f"{number:02d}", a=a, b=b) for number, (a, b) in enumerate(pairs)]
    sort = [(_key(name), descending) for name, descending in names]
    whole = sorted(rows, key=_key("id"))
    for key, descending in reversed(sort):
        whole.sort(key=key, reverse=descending)
    found, marker = [], ""
    while True:
        random.shuffle(rows)
        here, marker = page(rows, limit=limit, marker=marker, sort=sort)
        found += here
        assert len(here) <= (limit or MAX_PAGE) and (not marker or marker == here[-1].id)
        if not marker:
            break
    assert [row.id for row in found] == [row.id for row in whole]
