"""What takes the disk, and giving it back: sizes, prune, and Docker's words for them."""

from __future__ import annotations

import io
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snapshotter.archive import load
from snapshotter.images import commit, import_rootfs
from snapshotter.store import Selection, Store
from tests.peers.docker import Docker
from tests.snapshotter.helpers import new_container, small_image, tar, tree_of
from tests.snapshotter.test_blobs import blobs_of, kept, layers, layout, saved_oci
from tests.support.command import Lamina

OLD = datetime(2020, 1, 1, tzinfo=UTC)


def file_sizes(store: Store, room: str) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (store.root / room).iterdir()}


def test_images_take_what_their_files_take_shared_ones_once(store: Store) -> None:
    base = small_image(store, "base", big=os.urandom(500_000))
    container = new_container(store, base)
    (container.upper / "more").write_bytes(os.urandom(300_000))
    made = commit(store, container, reference="made")
    other = small_image(store, "other", own=os.urandom(100_000))
    usage = store.usage()
    taken = {each.image.id: each for each in usage.images}
    sizes = file_sizes(store, "layers")
    assert usage.size == sum(sizes.values())
    assert sum(taken[base.id][1:3]) == sizes[store.layers.path(base.layers[0].diff_id).name]
    assert taken[base.id].unique == 0
    assert taken[made.id].shared == taken[base.id].shared
    assert taken[made.id].unique > 300_000
    assert taken[other.id].shared == 0
    assert taken[other.id].unique == sizes[store.layers.path(other.layers[0].diff_id).name]
    assert [taken[each.id].containers for each in (base, made, other)] == [1, 0, 0]
    assert usage.reclaimable == taken[made.id].unique + taken[other.id].unique
    assert [each.size for each in usage.containers] == [300_000]
    before = store.size()
    store.remove_image("made")
    assert store.size() == before - taken[made.id].unique


def test_a_pack_whose_chunks_another_uses_is_shared(store: Store) -> None:
    shared = os.urandom(400_000)
    one, two = (small_image(store, name, data=shared, n=name.encode()) for name in ("a", "b"))
    taken = {each.image.id: each for each in store.usage().images}
    assert taken[one.id].unique == 0
    assert taken[one.id].shared == taken[two.id].shared > 400_000
    assert taken[two.id].unique > 0
    before = store.size()
    store.remove_image("a")
    assert store.size() == before
    assert tree_of(store, two)["bin/data"] == shared


def test_kept_layers_are_counted_and_given_up_only_on_demand(store: Store) -> None:
    plain = layers()
    (found,) = load(store, io.BytesIO(tar(layout(plain, "gzip"))))
    usage = store.usage()
    assert sorted(each.blob.size for each in usage.blobs) == sorted(
        file_sizes(store, "blobs").values()
    )
    assert {each.images for each in usage.blobs} == {(found.image.id,)}
    before = saved_oci(store, "team/app:1")
    assert store.prune_images(every=False) == []
    assert len(kept(store)) == 2
    assert [each.images for each in store.give_up_blobs()] == [(found.image.id,)] * 2
    assert kept(store) == []
    after = saved_oci(store, "team/app:1")
    assert set(blobs_of(after)) != set(blobs_of(before))
    assert store.verify().findings == []


def test_a_prune_removes_nameless_images_nothing_uses_with_those_they_grew_from(
    store: Store,
) -> None:
    named = small_image(store, "named")
    container = new_container(store, named)
    parent = small_image(store, None, a=b"a")
    work = new_container(store, parent)
    (work.upper / "b").write_bytes(b"b")
    child = commit(store, work)
    store.remove_container(work.id)
    kept_one = small_image(store, None, c=b"c")
    new_container(store, kept_one)
    removed = [str(record) for record in store.prune_images()]
    assert [line for line in removed if line.endswith((parent.id, child.id))] == [
        f"Deleted: {child.id}",
        f"Deleted: {parent.id}",
    ]
    assert {image.id for image in store.images()} == {named.id, kept_one.id}
    small_image(store, "unused:1", d=b"d")
    store.tag("unused:1", "unused:2")
    removed = [str(record) for record in store.prune_images(every=True)]
    assert removed[:2] == ["Untagged: unused:1", "Untagged: unused:2"]
    assert {image.id for image in store.images()} == {named.id, kept_one.id}
    assert [each.container.id for each in store.prune_containers()][-1] == container.id
    assert len(store.prune_images(every=True)) > 0
    assert store.images() == []
    assert file_sizes(store, "layers") == {}


def test_filters_select_by_time_and_labels(store: Store) -> None:
    stream = io.BytesIO(tar({"a": b"a"}))
    old = import_rootfs(store, stream, created=OLD, changes=["LABEL keep=yes kind=x"])
    young = small_image(store, None, b=b"b")
    for selection in (
        Selection(until=OLD - timedelta(seconds=1)),
        Selection(labels=("kind=y",)),
        Selection(labels=("kind", "other")),
        Selection(labels=("kind=x",), without=("keep",)),
    ):
        assert store.prune_images(selection) == []
    assert f"Deleted: {old.id}" in map(
        str, store.prune_images(Selection(until=OLD, labels=("kind=x",), without=("kind=y",)))
    )
    assert [image.id for image in store.images()] == [young.id]
    assert store.prune_images(Selection(without=("kind",)))


def test_a_container_that_runs_is_not_pruned(store: Store) -> None:
    image = small_image(store, "a")
    runs, stopped = new_container(store, image), new_container(store, image)
    fd = store.hold_container(runs)
    store.update_container(runs, status="running", pid=os.getpid())
    assert [each.container.id for each in store.prune_containers()] == [stopped.id]
    os.close(fd)


def _same_words(ours: str, theirs: str) -> None:
    """Ours is Docker's, line by line, but for what lamina does not have."""
    known = iter(theirs.splitlines())
    for line in ours.splitlines():
        assert any(line == other for other in known), (line, theirs)


@pytest.mark.root
@pytest.mark.peer("runc")
def test_df_and_prune_say_what_docker_says(
    docker: Docker, lamina: Lamina, busybox_tar: Path
) -> None:
    ids = []
    for run in (lambda *words: lamina(*words).stdout, docker):
        run("import", str(busybox_tar), "box:1")
        run("tag", "box:1", "box:2")
        ids.append(run("import", "-m", "other", str(busybox_tar)).strip())
    for words in (["df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"], ["df", "-v"]):
        ours, theirs = lamina("system", *words).stdout, docker("system", *words)
        if "-v" in words:
            headings = re.compile(r"^[A-Z ]+$|.*usage:.*", re.MULTILINE)
            ours, theirs = (
                "\n".join(" ".join(line.split()) for line in headings.findall(text))
                for text in (ours, theirs)
            )
        assert ours.startswith(theirs)
    tables = [lamina("system", "df").stdout.splitlines(), docker("system", "df").splitlines()]
    assert tables[0][0].split() == tables[1][0].split()
    for lines in tables:
        assert re.fullmatch(r"Images +2 +0 +[\d.]+[kM]B +[\d.]+[kM]B \(100%\)", lines[1])
    for words in (
        ["image", "prune"],
        ["image", "prune", "-a"],
        ["container", "prune"],
        ["system", "prune"],
        ["system", "prune", "-a", "--filter", "label=x"],
    ):
        refused = lamina(*words, stdin="n\n")
        # This Docker says what it has freed even if it was told not to.
        asked = docker(*words, stdin=b"n\n").removesuffix("Total reclaimed space: 0B\n")
        _same_words(refused.stdout, asked)
        assert refused.stdout.splitlines()[0] == asked.splitlines()[0]
        assert refused.stdout.endswith("Are you sure you want to continue? [y/N] ")
    pruned = [lamina("image", "prune", "-f").stdout, docker("image", "prune", "-f")]
    for text, identity in zip(pruned, ids, strict=True):
        assert text.startswith(f"Deleted Images:\ndeleted: {identity}\n")
        assert re.search(r"\n\nTotal reclaimed space: [\d.]+[kM]?B\n$", text)
    _compare_last(docker, lamina)


def _compare_last(docker: Docker, lamina: Lamina) -> None:
    containers = docker("create", "box:1", "sh").strip(), ""
    ours = lamina("system", "prune", "-a", "-f").stdout
    theirs = docker("system", "prune", "-a", "-f")
    assert theirs.startswith(f"Deleted Containers:\n{containers[0]}\n\nDeleted Images:\nuntagged:")
    for text in (ours, theirs):
        assert re.search(
            r"Deleted Images:\nuntagged: box:1\nuntagged: box:2\ndeleted: sha256:", text
        )
    assert lamina("image", "prune", "-f").stdout == docker("image", "prune", "-f")
