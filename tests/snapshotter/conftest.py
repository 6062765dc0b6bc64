"""An empty store for each test, checked when the test is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.store import Store
from tests.peers.docker import Docker, running
from tests.snapshotter import helpers
from tests.support.machine import REASON_PREFIX, Unavailable


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        opened.sweep()
        helpers.check(opened)


@pytest.fixture(scope="session")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A Docker daemon for all tests of one process."""
    try:
        with running(tmp_path_factory.mktemp("docker")) as docker:
            yield docker
    except Unavailable as reason:
        pytest.skip(f"{REASON_PREFIX}{reason}")


@pytest.fixture
def docker(docker_daemon: Docker) -> Docker:
    """The Docker daemon, without images and containers."""
    docker_daemon.remove_everything()
    return docker_daemon
