"""The conversations beside this file, each on the toy services."""
from pathlib import Path

import pytest

from tests.api import conversations

FILES = sorted((Path(__file__).parent / "conversations").glob("*.yaml"))
ALL = [pytest.param(steps, id=f"{path.stem}: {name}") for path in FILES for name, steps in conversations.load(path)]


@pytest.mark.parametrize("steps", ALL)
async def test_conversation(client, steps):
    await conversations.run(client, steps)
