"""Traces as they are read from files; playing one is tried against a whole cloud in tests/e2e."""
import gzip

import pytest

from control.cli.replay import Arrival, read_trace


def test_a_trace_is_read_in_order_of_time_with_or_without_names_and_gzipped(tmp_path):
    text = "arrival,lifetime,vcpus,ram\n20,5,2,4096\n\n0.5,1e3,1,768\n"
    plain, packed = tmp_path / "trace.csv", tmp_path / "trace.csv.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_trace(plain) == read_trace(packed) == [Arrival(0.5, 1000.0, 1, 768), Arrival(20.0, 5.0, 2, 4096)]


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,5", "1,x,1,1", "-1,2,1,1", "1,-2,1,1", "1,2,0,1", "1,2,1,0", "nan,1,1,1",
                                  "1,1,99999,1"])
def test_a_line_that_makes_no_sense_is_named(tmp_path, line):
    path = tmp_path / "trace.csv"
    path.write_text(f"0,1,1,1\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_trace(path)


def test_a_trace_without_arrivals_is_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival,lifetime,vcpus,ram\n")
    with pytest.raises(ValueError, match="no arrivals"):
        read_trace(path)
