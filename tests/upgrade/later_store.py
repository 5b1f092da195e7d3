"""A store in which every record was made by a later version: each has a field that no code here knows, and must not lose."""
from collections.abc import Sequence

from control.kernel.store import Guard, MemoryStore, Record

#: The field: number 20000, "from a later version".
LATER = bytes([*b"\x82\xe2\x09", 20]) + b"from a later version"


class LaterStore(MemoryStore):
    """Gives the field to what is created. Raises AssertionError where a record that has it is written without."""

    async def commit(self, *writes: Record, guards: Sequence[Guard] = ()) -> int:
        made = []
        for write in writes:
            if write.value is not None and write.key.startswith("/"):
                before = self._records.get(write.key)
                if before is None or before.value is None or LATER not in before.value:
                    write = Record(write.key, write.value + LATER, write.revision, lease=write.lease)
                elif LATER not in write.value and write.revision == before.revision:
                    raise AssertionError(f"{write.key} was written without what a later version had put there")
            made.append(write)
        return await super().commit(*made, guards=guards)
