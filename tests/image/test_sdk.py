"""openstacksdk, unmodified, against the image service."""
import hashlib
import os

import openstack
import pytest
from openstack import exceptions

DATA = os.urandom(2**20 + 5)


@pytest.fixture
def connect(cloud):
    def connection(token: str) -> openstack.connection.Connection:
        return openstack.connection.Connection(
            auth_type="admin_token", auth={"endpoint": cloud.url, "token": token}, image_endpoint_override=cloud.url,
            image_api_version="2", region_name="RegionOne")
    return connection


def test_a_file_is_uploaded_found_by_name_and_downloaded_with_its_checksum_verified(connect, tmp_path):
    image_api = connect("one").image
    (tmp_path / "disk.raw").write_bytes(DATA)
    image = image_api.create_image("i1", filename=str(tmp_path / "disk.raw"), disk_format="raw", container_format="bare",
                                   validate_checksum=True, tags=["t"], hw_disk_bus="virtio", min_ram=64, wait=True)
    assert image.status == "active" and image.checksum == hashlib.md5(DATA).hexdigest()
    found = image_api.find_image("i1")
    assert found.id == image.id and found.hw_disk_bus == "virtio" and found.tags == ["t"] and found.min_ram == 64
    assert image_api.find_image("other") is None
    image_api.download_image(image, output=str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == DATA
    assert image_api.create_image("i1", filename=str(tmp_path / "disk.raw"), disk_format="raw", md5=hashlib.md5(DATA).hexdigest(),
                                  sha256=hashlib.sha256(DATA).hexdigest()).id


def test_an_image_is_changed_tagged_deactivated_and_deleted(connect):
    image_api = connect("one").image
    image = image_api.create_image("i1", data=b"data", disk_format="raw", container_format="bare", wait=True)
    changed = image_api.update_image(image, name="i2", colour="red", min_disk=2, visibility="community", is_protected=True)
    assert (changed.name, changed.min_disk, changed.visibility, changed.is_protected) == ("i2", 2, "community", True)
    assert changed.properties["colour"] == "red"
    image_api.add_tag(image, "t1")
    assert [each.id for each in image_api.images(tag="t1")] == [image.id]
    image_api.remove_tag(image, "t1")
    image_api.deactivate_image(image)
    assert image_api.get_image(image).status == "deactivated"
    image_api.reactivate_image(image)
    with pytest.raises(exceptions.ForbiddenException, match="protected"):
        image_api.delete_image(image)
    image_api.update_image(image_api.get_image(image), is_protected=False)
    image_api.delete_image(image)
    assert list(image_api.images()) == []


def test_every_page_is_read(connect):
    image_api = connect("one").image
    names = {image_api.create_image(f"i{number}", disk_format="raw", allow_duplicates=True).name for number in range(5)}
    assert {image.name for image in image_api.images(limit=2)} == names


def test_an_image_is_shared_and_accepted(connect):
    owner, guest = connect("one").image, connect("two").image
    image = owner.create_image("shared", disk_format="raw", container_format="bare")
    owner.add_member(image, member="two")
    assert list(guest.images()) == []
    guest.update_member("two", image, status="accepted")
    assert [each.name for each in guest.images()] == ["shared"]
    assert [member.status for member in owner.members(image)] == ["accepted"]
    owner.remove_member("two", image=image)
    assert list(guest.images()) == []


def test_data_is_staged_and_imported(connect):
    image_api = connect("one").image
    assert image_api.get_import_info().import_methods["value"] == ["glance-direct"]
    assert [store.id for store in image_api.stores()] == ["file"]
    image = image_api.create_image("i1", disk_format="raw", container_format="bare")
    image_api.stage_image(image, data=b"staged")
    image_api.import_image(image, method="glance-direct")
    assert image_api.get_image(image).status == "active"


def test_schemas_are_read(connect):
    image_api = connect("one").image
    assert "name" in image_api.get_image_schema().properties
    assert image_api.get_members_schema().properties
