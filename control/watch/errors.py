"""How a watch ends that cannot go on."""
import grpc

from control.kernel.errors import Error


class TooOld(Error):
    """What changed since the revision is not known any more, or the revision is none of this cloud's."""

    status = grpc.StatusCode.OUT_OF_RANGE
    http = 410

    def __init__(self, reason: str, text: str, revision: int):
        super().__init__(reason, text)
        self.headers = (("X-Brume-Oldest-Revision", str(revision)),)


class Slow(Error):
    """The reader did not take what was sent for it."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http = 429

    def __init__(self, text: str, revision: int):
        super().__init__("watch.slow", text)
        self.headers = (("X-Brume-Resume-From", str(revision)),)


class TooMany(Error):
    """More watches at once than there may be."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http = 429


def oldest(revision: int, kept: int) -> TooOld:
    return TooOld("watch.too_old", f"Revision {revision} is too old: changes are kept from revision {kept} on. List again, and "
                                   f"watch from that list's revision.", kept)
