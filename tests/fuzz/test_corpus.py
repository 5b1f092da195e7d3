"""The fuzzers' kept inputs, without the fuzzer: whatever was once found stays right."""
from pathlib import Path

import pytest

from tests.fuzz import fuzz_decode, fuzz_transcode

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("harness", [fuzz_transcode, fuzz_decode], ids=lambda harness: harness.__name__.rpartition("_")[2])
def test_every_kept_input_passes(harness):
    kept = sorted((CORPUS / harness.__name__.rpartition("_")[2]).iterdir())
    assert kept
    for path in kept:
        harness.check(path.read_bytes())
