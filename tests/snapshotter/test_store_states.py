"""The store under any sequence of operations, against a model of a few dictionaries."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snapshotter.errors import Conflict, NoSuchImage
from snapshotter.images import commit
from snapshotter.store import Deleted, Store
from tests.snapshotter.helpers import check, new_container, small_image, tree_of

NAMES = st.sampled_from(["a:1", "a:2", "b:1"])


class StoreMachine(RuleBasedStateMachine):
    """Images have names and containers; a name belongs to one image.

    Choices are made by age: IDs are different in each run, and a run must be repeatable.
    """

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._store = Store.open(Path(self._directory.name) / "store")
        self._trees: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        self._containers: dict[str, str] = {}

    def teardown(self) -> None:
        self._store.close()
        self._directory.cleanup()

    def _added(self, image_id: str, tree: dict[str, Any], name: str) -> None:
        self._trees[image_id] = tree
        self._names[name] = image_id

    def _users(self, image_id: str) -> list[str]:
        return [container for container, used in self._containers.items() if used == image_id]

    @rule(name=NAMES, content=st.integers(0, 3))
    def import_image(self, name: str, content: int) -> None:
        data = b"%d" % content * 1000
        image = small_image(self._store, name, file=data, same=b"same" * 5000)
        self._added(
            image.id, {"bin": "directory", "bin/file": data, "bin/same": b"same" * 5000}, name
        )

    @rule(source=NAMES, name=NAMES)
    def tag(self, source: str, name: str) -> None:
        if source in self._names:
            self._store.tag(source, name)
            self._names[name] = self._names[source]
        else:
            with pytest.raises(NoSuchImage):
                self._store.tag(source, name)

    @precondition(lambda self: self._names)
    @rule(data=st.data())
    def create_container(self, data: st.DataObject) -> None:
        image_id = self._names[data.draw(st.sampled_from(sorted(self._names)))]
        container = new_container(self._store, self._store.image(image_id))
        self._containers[container.id] = image_id

    @precondition(lambda self: self._containers)
    @rule(data=st.data(), name=NAMES, content=st.integers(0, 3))
    def commit(self, data: st.DataObject, name: str, content: int) -> None:
        container = self._store.container(data.draw(st.sampled_from(list(self._containers))))
        (container.upper / "added").write_bytes(b"%d" % content * 1000)
        image = commit(self._store, container, reference=name)
        tree = {**self._trees[container.image], "added": b"%d" % content * 1000}
        self._added(image.id, tree, name)

    @precondition(lambda self: self._containers)
    @rule(data=st.data())
    def remove_container(self, data: st.DataObject) -> None:
        container = data.draw(st.sampled_from(list(self._containers)))
        self._store.remove_container(container)
        del self._containers[container]

    @rule(name=NAMES, force=st.booleans())
    def remove_name(self, name: str, force: bool) -> None:
        image_id = self._names.get(name)
        if image_id is None:
            with pytest.raises(NoSuchImage):
                self._store.remove_image(name, force=force)
            return
        last = list(self._names.values()).count(image_id) == 1
        if last and self._users(image_id) and not force:
            with pytest.raises(Conflict):
                self._store.remove_image(name)
            return
        records = self._store.remove_image(name, force=force)
        del self._names[name]
        if last and not self._users(image_id):
            assert Deleted(image_id) in records
            del self._trees[image_id]

    @precondition(lambda self: self._trees)
    @rule(data=st.data(), force=st.booleans())
    def remove_image(self, data: st.DataObject, force: bool) -> None:
        image_id = data.draw(st.sampled_from(list(self._trees)))
        own = [name for name, named in self._names.items() if named == image_id]
        used = bool(self._users(image_id))
        if (not force and (used or len(own) > 1)) or (used and not own):
            with pytest.raises(Conflict):
                self._store.remove_image(image_id, force=force)
            return
        self._store.remove_image(image_id, force=force)
        for name in own:
            del self._names[name]
        if not used:
            del self._trees[image_id]

    @rule()
    def reopen(self) -> None:
        self._store.close()
        self._store = Store.open(self._store.root)

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        images = {image.id: image for image in self._store.images()}
        assert set(images) == set(self._trees)
        names = {str(name): image.id for image in images.values() for name in image.references}
        assert names == self._names
        assert {found.id: found.image for found in self._store.containers()} == self._containers
        for image_id, image in images.items():
            assert tree_of(self._store, image) == self._trees[image_id]
        check(self._store)


StoreMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStore = StoreMachine.TestCase
