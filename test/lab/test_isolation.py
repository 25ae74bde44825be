import socket

from semla_ros.lab.isolation import HIGHEST_DOMAIN, free_domain, is_free, isolated_environment, participant_port


def test_a_domain_in_use_is_not_taken() -> None:
    domain = free_domain()
    assert 1 <= domain <= HIGHEST_DOMAIN
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", participant_port(domain)))
        assert not is_free(domain)
    assert is_free(domain)


def test_ports_of_neighbouring_domains_do_not_meet() -> None:
    assert participant_port(0) == 7410
    assert participant_port(3, participant=2) == 7410 + 3 * 250 + 4
    assert participant_port(HIGHEST_DOMAIN, participant=50) < 32768  # from there on Linux hands out ports by itself


def test_the_demos_processes_see_only_this_machine(monkeypatch) -> None:
    monkeypatch.setenv("ROS_LOCALHOST_ONLY", "0")
    monkeypatch.setenv("ROS_STATIC_PEERS", "10.0.0.7")
    monkeypatch.setenv("HOME_MADE", "kept")
    environment = isolated_environment(42)
    assert environment["ROS_DOMAIN_ID"] == "42"
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_LOCALHOST_ONLY" not in environment
    assert "ROS_STATIC_PEERS" not in environment
    assert environment["HOME_MADE"] == "kept"


def test_the_users_own_dds_profile_is_kept(monkeypatch) -> None:
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/mine.xml")
    assert isolated_environment(42)["FASTRTPS_DEFAULT_PROFILES_FILE"] == "/mine.xml"
