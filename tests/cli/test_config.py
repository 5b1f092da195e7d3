"""Settings: what wins over what, and what is refused."""
import json
from pathlib import Path

import pytest

from control.kernel import config
from control.kernel.errors import Invalid


def test_flags_win_over_the_file_which_wins_over_what_was_saved(tmp_path: Path) -> None:
    config.save(config.load(tmp_path, port=6000, region="saved", name="saved"))
    file = tmp_path / "brume.toml"
    file.write_text('region = "file"\nname = "file"\n')
    loaded = config.load(tmp_path, file, name="flag", listen=None)
    assert (loaded.port, loaded.region, loaded.name, loaded.listen) == (6000, "file", "flag", "127.0.0.1")


def test_saved_settings_are_private_and_hold_only_what_differs(tmp_path: Path) -> None:
    config.save(config.load(tmp_path, port=6000))
    saved = tmp_path / "cloud.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert json.loads(saved.read_text()) == {"port": 6000}


@pytest.mark.parametrize("settings, named", [
    ({"name": "much too long a name"}, "name"), ({"port": 70000}, "port"), ({"placement_policy": "heap"}, "placement_policy"),
    ({"lockout_duration": 0}, "lockout_duration"), ({"password_regex": "["}, "password_regex"),
    ({"certificate": "/no/such.pem"}, "certificate"), ({"hypervisor": "vax"}, "hypervisor"), ({"port": "5000"}, "port")])
def test_a_setting_that_makes_no_sense_is_refused_by_its_name(tmp_path: Path, settings: dict, named: str) -> None:
    with pytest.raises(Invalid, match=named):
        config.load(tmp_path, **settings)


def test_security_compliance_may_stand_in_a_section_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "brume.toml"
    file.write_text("region = 'r'\n[security_compliance]\nlockout_failure_attempts = 3\nchange_password_upon_first_use = true\n")
    loaded = config.load(tmp_path, file)
    assert (loaded.region, loaded.lockout_failure_attempts, loaded.change_password_upon_first_use) == ("r", 3, True)


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "brume.toml"
    file.write_text("prot = 5000\n")
    with pytest.raises(Invalid, match="unknown setting 'prot'"):
        config.load(tmp_path, file)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cloud.json").write_text("{")
    with pytest.raises(Invalid, match="is damaged"):
        config.load(tmp_path)
