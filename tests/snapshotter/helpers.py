"""Making layers and archives, looking into stores, and doing things in other processes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from backports import zstd

from snapshotter import digest
from snapshotter.archive import load, save, save_oci
from snapshotter.errors import Conflict, NoSuchContainer, NoSuchImage
from snapshotter.images import commit, import_rootfs
from snapshotter.store import Container, ContainerConfig, Image, SnapshotKind, Store
from unionfs.pack import Pack, verify

Entry = bytes | tuple[bytes, str] | None
"""A file's content, a (tarfile type, target) pair, or None for a directory."""

TIME = 1_700_000_000


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}


def tar(entries: Mapping[str, Entry]) -> bytes:
    """A tar archive with these entries, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, value in entries.items():
            member = tarfile.TarInfo(name)
            member.mtime = TIME
            member.mode = 0o755 if value is None else 0o644
            content = b""
            if value is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(value, tuple):
                member.type, member.linkname = value
            else:
                content = value
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def small_image(store: Store, name: str | None = "base", **files: bytes) -> Image:
    """An image with one small layer."""
    content = files or {"hello": b"hello\n"}
    entries = {"bin": None, **{f"bin/{key}": value for key, value in content.items()}}
    return import_rootfs(store, io.BytesIO(tar(entries)), reference=name)


def new_container(store: Store, image: Image, **settings: Any) -> Container:
    """A container of an image."""
    config = ContainerConfig(cmd=["sh", "-c", "true"], **settings)
    return store.create_container(image, image_name=str(image.short_id), config=config)


def saved(store: Store, *names: str) -> bytes:
    """An archive of images."""
    out = io.BytesIO()
    save(store, names, out)
    return out.getvalue()


def members_of(archive: bytes) -> dict[str, bytes]:
    """The files of an archive by name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {
            member.name: extracted.read()
            for member in opened.getmembers()
            if (extracted := opened.extractfile(member)) is not None
        }


def sha256(data: bytes) -> str:
    """The hex digits of a digest."""
    return hashlib.sha256(data).hexdigest()


def config_of(layers: Iterable[bytes], **fields: Any) -> bytes:
    """An image configuration for plain layers, with a field this program does not know."""
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "unknown": {"kept": [1, 2.50]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            **fields,
        },
        indent=1,
    ).encode()


def docker_archive(config: bytes, layers: Sequence[bytes], *tags: str) -> bytes:
    """An archive as ``docker save`` wrote it up to version 24."""
    names = [f"{sha256(b'%d' % number)}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": f"{sha256(config)}.json", "RepoTags": tags or None, "Layers": names}]
    return tar(
        {
            **dict(zip(names, layers, strict=True)),
            f"{sha256(config)}.json": config,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def with_layer(store: Store, base: Image, layer: bytes) -> Image:
    """An image of a base of one layer and one layer more."""
    blobs = members_of(saved(store, base.id))
    lower = blobs[f"blobs/{base.layers[0].diff_id.replace(':', '/')}"]
    archive = docker_archive(config_of([lower, layer]), [lower, layer])
    return load(store, io.BytesIO(archive))[0].image


def tree_of(store: Store, image: Image) -> dict[str, str | bytes]:
    """The merged tree of an image: contents, link targets, or the kind of anything else."""
    merged: dict[str, str | bytes] = {}
    for path in reversed(store.runs(image)):
        with Pack(path) as pack:
            _overlay(pack, 0, "", merged)
    return merged


def _overlay(pack: Pack, directory: int, prefix: str, merged: dict[str, str | bytes]) -> None:
    for raw, kind, row in pack.names(directory):
        name = prefix + os.fsdecode(raw)
        inode = pack.inode(row) if kind else None
        opaque = inode is not None and inode.flags & 1
        if kind != stat.S_IFDIR or opaque or merged.get(name) != "directory":
            for below in [key for key in merged if key == name or key.startswith(name + "/")]:
                del merged[below]
        if kind == stat.S_IFDIR:
            merged[name] = "directory"
            _overlay(pack, row, name + "/", merged)
        elif kind == stat.S_IFREG and inode is not None:
            merged[name] = pack.read(row, 0, inode.size)
        elif kind:
            merged[name] = f"{kind:o}"


def check(store: Store) -> None:
    """Raise unless everything the store shows is whole, and nothing else is in it."""
    images = store.images()
    files: set[str] = set()
    for image in images:
        assert image.id == f"sha256:{sha256(image.config_bytes)}"
        assert [layer.diff_id for layer in image.layers] == (image.config.rootfs.diff_ids or [])
        for layer in image.layers:
            files.add(store.layers.path(layer.diff_id).name)
        for run in store.runs(image):
            files.add(run.name)
            with Pack(run) as pack:
                list(pack.names(0))
    for snapshot in store.snapshots.walk(kind=SnapshotKind.COMMITTED):
        layers = store.snapshots.layers_of(snapshot.name)
        chain = list(digest.chain(layer.diff_id for layer in layers))[-1]
        files.update(store.layers.path(layer.diff_id).name for layer in layers)
        files.update(store.layers.run_files(chain))
    for name in files:
        with Pack(store.root / "layers" / name) as pack:
            if name.endswith(".pack"):
                verify(pack)
            files = files | {f"{source.hex()}.pack" for source in pack.sources}
    blobs = {blob.digest.removeprefix("sha256:"): blob for blob in store.blobs.all()}
    kept = {name for name, blob in blobs.items() if blob.recipe is None}
    assert {path.name for path in (store.root / "blobs").iterdir()} == kept
    for name, blob in blobs.items():
        assert sha256(b"".join(store.blobs.read(blob))) == name
    containers = {container.id for container in store.containers()}
    assert {path.name for path in (store.root / "containers").iterdir()} == containers
    assert list((store.root / "tmp").iterdir()) == []
    assert len(list((store.root / "snapshots").iterdir())) == sum(
        snapshot.kind is not SnapshotKind.COMMITTED for snapshot in store.snapshots.walk()
    )
    assert {path.name for path in (store.root / "layers").iterdir()} == files


_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def start(operation: str, root: Path, *arguments: object) -> ForkServerProcess:
    """Start an operation of :data:`OPERATIONS` in another process."""
    process = _PROCESSES.Process(target=_run, args=(operation, root, arguments))
    process.start()
    return process


def _run(operation: str, root: Path, arguments: Sequence[Any]) -> None:
    with Store.open(root) as store:
        OPERATIONS[operation](store, *arguments)


def _import(store: Store, path: Path, name: str) -> None:
    with path.open("rb") as stream:
        import_rootfs(store, stream, reference=name)


def _commit(store: Store, container: str, name: str) -> None:
    commit(store, store.container(container), reference=name)


def _load(store: Store, path: Path) -> None:
    with path.open("rb") as stream:
        load(store, stream)


def _save(store: Store, path: Path, *names: str) -> None:
    with path.open("wb") as stream:
        save(store, names, stream)


def _remove(store: Store, name: str) -> None:
    store.remove_image(name)


def _remove_container(store: Store, name: str) -> None:
    store.remove_container(name)


def _create_container(store: Store, image: str) -> None:
    new_container(store, store.image(image))


def _busy(store: Store, path: Path, number: int) -> None:
    """What a busy user does; others may take away what this one has just made."""
    for step in range(4):
        name = f"shared:{(number + step) % 3}"
        try:
            with path.open("rb") as stream:
                image = import_rootfs(store, stream, reference=name)
            container = new_container(store, store.image(name))
            (container.upper / f"file-{number}-{step}").write_bytes(os.urandom(200_000))
            made = commit(store, container, reference=f"mine:{number}")
            save(store, [made.id], io.BytesIO())
            store.remove_container(container.id)
            store.tag(image.id, f"other:{number}")
            store.remove_image(f"mine:{number}")
            store.remove_image(name)
        except (NoSuchImage, NoSuchContainer, Conflict):
            continue


def _repair(store: Store) -> None:
    store.verify(repair=True)


def _prune(store: Store) -> None:
    store.prune_containers()
    store.prune_images(every=True)


def _save_oci(store: Store, path: Path, *names: str) -> None:
    with path.open("wb") as stream:
        save_oci(store, names, stream)


OPERATIONS: dict[str, Callable[..., None]] = {
    "import": _import,
    "commit": _commit,
    "load": _load,
    "save": _save,
    "remove": _remove,
    "remove-container": _remove_container,
    "create-container": _create_container,
    "busy": _busy,
    "repair": _repair,
    "prune": _prune,
    "save-oci": _save_oci,
}
