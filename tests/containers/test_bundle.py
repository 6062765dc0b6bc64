"""The configuration a runtime gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.containers.bundle import (
    Document,
    Surroundings,
    capabilities,
    environment,
    runtime_config,
)
from snapshotter.containers.skeleton import host_name, make_files, make_skeleton
from snapshotter.containers.users import User
from snapshotter.store import ContainerConfig

PRIVILEGED = Surroundings(
    in_user_namespace=False, has_tty_group=True, unified_cgroups=False, bounding=(1 << 41) - 1
)
SINGLE = Surroundings(
    in_user_namespace=True, has_tty_group=False, unified_cgroups=True, bounding=(1 << 41) - 1
)


def made(surroundings: Surroundings = PRIVILEGED, *, network: str = "none") -> Document:
    return runtime_config(
        rootfs=Path("/x/rootfs"),
        args=["sh"],
        env=["A=1"],
        working_dir="",
        user=User(5, 6, (7,)),
        tty=False,
        hostname="name",
        network=network,
        read_only=True,
        files=Path("/x/etc"),
        surroundings=surroundings,
        cgroup="/lamina-x",
    )


def mounts(document: Document) -> dict[str, Document]:
    return {mount["destination"]: mount for mount in document["mounts"]}


def test_the_process_is_who_and_where_it_should_be() -> None:
    document = made()
    assert document["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    assert document["process"]["cwd"] == "/"
    assert document["root"] == {"path": "/x/rootfs", "readonly": True}
    assert document["process"]["noNewPrivileges"] is False
    assert "rlimits" not in document["process"]


@pytest.mark.parametrize(("network", "isolated"), [("none", True), ("host", False)])
def test_only_the_host_network_is_shared(network: str, isolated: bool) -> None:
    kinds = {namespace["type"] for namespace in made(network=network)["linux"]["namespaces"]}
    assert {"pid", "ipc", "uts", "mount"} <= kinds
    assert ("network" in kinds) is isolated


def test_a_user_namespace_gets_only_what_exists_in_it() -> None:
    assert "gid=5" in mounts(made())["/dev/pts"]["options"]
    assert "gid=5" not in mounts(made(SINGLE))["/dev/pts"]["options"]
    assert mounts(made(SINGLE))["/sys"]["type"] == "sysfs"
    assert mounts(made(SINGLE, network="host"))["/sys"]["source"] == "/sys"
    assert mounts(made(network="host"))["/sys"]["type"] == "sysfs"


def test_the_container_has_its_own_network_files() -> None:
    found = mounts(made())
    for name in ("hosts", "hostname", "resolv.conf"):
        assert found[f"/etc/{name}"]["source"] == f"/x/etc/{name}"


def test_only_root_starts_with_capabilities_and_never_with_more_than_there_are() -> None:
    everything = capabilities(0, (1 << 41) - 1)
    assert len(everything["effective"]) == 14
    assert "CAP_SYS_ADMIN" not in everything["bounding"]
    assert capabilities(0, 1 << 5)["permitted"] == ["CAP_KILL"]
    assert capabilities(33, (1 << 41) - 1)["effective"] == []
    assert capabilities(33, (1 << 41) - 1)["bounding"] == everything["bounding"]


def test_the_environment_of_the_image_wins_over_the_usual() -> None:
    user = User(33, 33, (), "/var/www")
    plain = environment(ContainerConfig(env=["A=1"]), user, "name")
    assert "HOME=/var/www" in plain
    assert "HOSTNAME=name" in plain
    assert not any(text.startswith("TERM=") for text in plain)
    changed = environment(ContainerConfig(env=["HOME=/h", "PATH=/p"], tty=True), user, "name")
    assert {"HOME=/h", "PATH=/p", "TERM=xterm"} <= set(changed)
    assert len({text.partition("=")[0] for text in changed}) == len(changed)


def test_the_skeleton_has_every_mount_point(tmp_path: Path) -> None:
    (tmp_path / "skeleton").mkdir()
    make_skeleton(tmp_path / "skeleton")
    for destination, mount in mounts(made()).items():
        if destination == "/sys/fs/cgroup":
            continue  # lies in the sysfs that is mounted before
        path = tmp_path / "skeleton" / destination.lstrip("/")
        assert path.is_file() if mount["type"] == "bind" else path.is_dir()


def test_the_hosts_resolver_is_only_for_its_network(tmp_path: Path) -> None:
    make_files(tmp_path / "alone", hostname="name", network="none")
    assert (tmp_path / "alone" / "resolv.conf").read_text() == ""
    assert (tmp_path / "alone" / "hostname").read_text() == "name\n"
    assert "127.0.0.1\tlocalhost" in (tmp_path / "alone" / "hosts").read_text()
    make_files(tmp_path / "host", hostname="name", network="host")
    if Path("/etc/resolv.conf").is_file():
        assert (tmp_path / "host" / "resolv.conf").read_text() == Path(
            "/etc/resolv.conf"
        ).read_text()


def test_a_hostname_is_asked_for_or_made() -> None:
    assert host_name("ab" * 32, asked="", network="none") == "ab" * 6
    assert host_name("ab" * 32, asked="mine", network="host") == "mine"
