"""What a new cloud has, so that it can be used at once: a few flavors and the small guest's image.

Each is made once, when the cloud first comes up; what an operator deletes afterwards stays deleted.
"""
from control.cli.session import RestError, Session
from control.cli.steps import Steps
from control.kernel.config import Config

#: id, name, vCPUs, MiB of RAM, GiB of disk.
FLAVORS = (("1", "m1.tiny", 1, 192, 1), ("2", "m1.small", 1, 1024, 10), ("3", "m1.medium", 2, 2048, 20),
           ("4", "m1.large", 4, 4096, 40))


def ensure(config: Config, admin: Session, steps: Steps) -> None:
    """Make the flavors and the image unless that was done before."""
    marker = config.path("seeded")
    done = set(marker.read_text().split()) if marker.exists() else set()
    if "flavors" not in done:
        with steps("make the first flavors"):
            _flavors(admin)
        marker.write_text("flavors\n")
    if "image" not in done:
        from control.cli.images import build_and_upload
        build_and_upload(config, admin, steps)
        marker.write_text("flavors\nimage\n")


def _flavors(admin: Session) -> None:
    for flavor_id, name, vcpus, ram, disk in FLAVORS:
        try:
            admin.request("POST", "compute", "/flavors", {"flavor": {
                "id": flavor_id, "name": name, "vcpus": vcpus, "ram": ram, "disk": disk}})
        except RestError as error:
            if error.status != 409:
                raise
