"""Archives and layers exchanged with Docker, podman and skopeo."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshotter.archive import load
from snapshotter.images import commit, import_rootfs
from snapshotter.store import ContainerConfig, Image, Store
from tests.peers.docker import Docker
from tests.snapshotter.helpers import new_container, saved, tree_of

Podman = Callable[..., str]


@pytest.fixture
def images(store: Store, busybox_tar: Path) -> tuple[Image, Image]:
    """A root filesystem, and a commit on it with every kind of change."""
    with busybox_tar.open("rb") as stream:
        base = import_rootfs(store, stream, reference="test/base:1", changes=['CMD ["sh"]'])
    container = new_container(store, base)
    upper = container.upper
    (upper / "etc").mkdir()
    os.mknod(upper / "etc" / "passwd", stat.S_IFCHR, 0)
    (upper / "etc" / "new").write_text("new")
    (upper / "bin").mkdir()
    os.setxattr(upper / "bin", "trusted.overlay.opaque", b"y")
    (upper / "bin" / "only").write_bytes(os.urandom(200_000))
    os.link(upper / "bin" / "only", upper / "bin" / "again")
    (upper / "bin" / "link").symlink_to("/etc/new")
    os.mkfifo(upper / "fifo")
    return base, commit(store, container, reference="test/made:2", message="changed")


@pytest.fixture
def podman() -> Iterator[Podman]:
    """podman with a storage of its own; it does not take long paths."""
    with tempfile.TemporaryDirectory(prefix="podman") as directory:

        def run(*arguments: str | Path) -> str:
            command = ["podman", "--root", f"{directory}/root", "--runroot", f"{directory}/run"]
            return _run(*command, "--storage-driver", "vfs", *arguments)

        yield run


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def _ids(store: Store, archive: bytes) -> list[tuple[str, list[str]]]:
    return [
        (found.image.id, list(map(str, found.references)))
        for found in load(store, io.BytesIO(archive))
    ]


def _exported(docker: Docker, image: str, path: Path) -> dict[str, str | bytes]:
    """The tree of an image as Docker sees it, without what it adds to every container."""
    container = docker("create", image, "sh").strip()
    docker("export", "--output", path, container)
    docker("rm", container)
    tree: dict[str, str | bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.isreg() or member.islnk():
                content = archive.extractfile(member)
                assert content is not None
                tree[member.name] = content.read()
            elif member.isdir():
                tree[member.name] = "directory"
            else:
                kind = stat.S_IFLNK if member.issym() else stat.S_IFIFO
                tree[member.name] = f"{kind:o}"
    return _without_mounts(tree)


def _without_mounts(tree: dict[str, str | bytes]) -> dict[str, str | bytes]:
    """A tree without what Docker puts into every container."""
    etc = [f"etc/{name}" for name in ("hosts", "hostname", "resolv.conf", "mtab")]
    added = [".dockerenv", "dev", "proc", "sys", *etc]
    return {
        name: value
        for name, value in tree.items()
        if name not in added and not name.startswith("dev/")
    }


@pytest.mark.root
@pytest.mark.peer("runc")
def test_docker_loads_what_was_saved(
    store: Store, images: tuple[Image, Image], docker: Docker, tmp_path: Path
) -> None:
    printed = docker("load", stdin=saved(store, "test/base", "test/made:2"))
    assert "Loaded image: test/base:1" in printed
    base, made = images
    assert docker.image_id("test/base:1") == base.id
    assert docker.image_id("test/made:2") == made.id
    assert _exported(docker, "test/made:2", tmp_path / "tree.tar") == _without_mounts(
        tree_of(store, made)
    )


@pytest.mark.root
@pytest.mark.peer("runc")
def test_what_docker_committed_and_saved_is_loaded(
    store: Store, images: tuple[Image, Image], docker: Docker, tmp_path: Path
) -> None:
    docker("load", stdin=saved(store, "test/base:1"))
    script = "rm /etc/passwd; rm -r /tmp; mkdir /tmp; ln -s x /tmp/y; cp /bin/busybox /b; ln /b /c"
    docker("run", "--network", "none", "--name", "work", "test/base:1", "sh", "-c", script)
    docker("commit", "-m", "by docker", "work", "docker/made:3")
    docker("rm", "work")
    docker("save", "--output", tmp_path / "saved.tar", "docker/made:3", "test/base:1")
    ids = _ids(store, (tmp_path / "saved.tar").read_bytes())
    assert sorted(ids) == sorted(
        [
            (docker.image_id("docker/made:3"), ["docker/made:3"]),
            (images[0].id, ["test/base:1"]),
        ]
    )
    made = store.image("docker/made:3")
    assert _exported(docker, "docker/made:3", tmp_path / "t.tar") == _without_mounts(
        tree_of(store, made)
    )


@pytest.mark.root
@pytest.mark.peer("podman")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_and_this_store_exchange_archives(
    store: Store, images: tuple[Image, Image], podman: Podman, tmp_path: Path, form: str
) -> None:
    _, made = images
    archive = tmp_path / "ours.tar"
    archive.write_bytes(saved(store, "test/made:2"))
    podman("load", "--input", archive)
    name = "docker.io/test/made:2"
    assert podman("image", "inspect", "--format", "{{.Id}}", name) == made.id[7:]
    podman("save", "--format", form, "--output", tmp_path / "theirs.tar", name)
    with Store.open(tmp_path / "other") as other:
        ids = _ids(other, (tmp_path / "theirs.tar").read_bytes())
        assert ids == [(made.id, ["test/made:2"])]
        assert tree_of(other, other.image(made.id)) == tree_of(store, made)


@pytest.mark.root
@pytest.mark.peer("skopeo")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_skopeo_reads_the_archive_in_both_forms(
    store: Store, images: tuple[Image, Image], tmp_path: Path, form: str
) -> None:
    _, made = images
    archive = tmp_path / "ours.tar"
    archive.write_bytes(saved(store, "test/made:2"))
    source = f"{form}:{archive}"
    assert f"{made.layers[1].diff_id}" in _run("skopeo", "inspect", "--config", source)
    copy = tmp_path / "copy.tar"
    policy = "--insecure-policy"
    _run("skopeo", policy, "copy", source, f"{form}:{copy}:copied/made:4")
    with Store.open(tmp_path / "other") as other:
        assert _ids(other, copy.read_bytes()) == [(made.id, ["copied/made:4"])]
        assert tree_of(other, other.image(made.id)) == tree_of(store, made)


@pytest.mark.root
@pytest.mark.peer("runc")
@pytest.mark.parametrize(
    "changes",
    [
        [],
        ['ENV B=5 D="x y"', "LABEL z=3 y=9", "EXPOSE 443 53/udp", "USER me:us"],
        ['ENTRYPOINT ["/e", "x"]'],
        ['ENTRYPOINT ["/e"]', "CMD run it"],
        ["CMD []", "WORKDIR /a/../b", "WORKDIR c", "VOLUME /v /w", 'VOLUME ["/x y"]'],
        ["ONBUILD RUN make", "HEALTHCHECK --interval=5s --retries=2 CMD ok"],
        ["HEALTHCHECK NONE", "ENV OLD form of it", "LABEL OLD form"],
    ],
)
def test_changes_make_the_configuration_that_docker_makes(
    store: Store, busybox_tar: Path, docker: Docker, changes: list[str]
) -> None:
    base_changes = ["ENV A=1 B=2", 'CMD ["old"]', "LABEL y=1", "EXPOSE 80", "WORKDIR /srv"]
    with busybox_tar.open("rb") as stream:
        base = import_rootfs(store, stream, reference="base:1", changes=base_changes)
    docker("load", stdin=saved(store, "base:1"))
    created = docker("create", "--env", "C=3", "--label", "c=1", "base:1", "sh", "-c", "x").strip()
    options = [part for change in changes for part in ("--change", change)]
    theirs = json.loads(docker("image", "inspect", docker("commit", *options, created).strip()))[0][
        "Config"
    ]
    docker("rm", created)
    container = store.create_container(
        base,
        image_name="base:1",
        config=ContainerConfig(
            cmd=["sh", "-c", "x"],
            env=["C=3", "A=1", "B=2"],
            labels={"c": "1", "y": "1"},
            working_dir="/srv",
        ),
    )
    ours = json.loads(commit(store, container, changes=changes).config_bytes)["config"]
    assert _comparable(ours) == _comparable(theirs)


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what is empty, and what Docker notes of the container itself."""
    noted = ("Hostname", "Image", "AttachStdout", "AttachStderr", "AttachStdin")
    found = {key: value for key, value in config.items() if value and key not in noted}
    return {**found, "Env": sorted(found["Env"])}
