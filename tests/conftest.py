"""Fixtures that tests of several rooms want, and an account of what this machine cannot run."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support import rootfs
from tests.support.command import Lamina
from tests.support.machine import REASON_PREFIX, Unavailable, obstacles


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reasons = sorted(set(obstacles(item)))
        if reasons:
            item.add_marker(pytest.mark.skip(reason=REASON_PREFIX + ", ".join(reasons)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests this machine could not run, and why."""
    reasons = Counter(
        reason.partition(REASON_PREFIX)[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and REASON_PREFIX in (reason := report.longrepr[2])
    )
    if not reasons:
        return
    terminalreporter.write_sep("-", f"{reasons.total()} tests cannot run on this machine")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5}  {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which every test was skipped has shown nothing, and does not count as passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or session.exitstatus != pytest.ExitCode.OK:
        return  # a worker of a parallel run; or it failed anyway
    ran = any(reporter.stats.get(outcome) for outcome in ("passed", "failed", "error", "xfailed"))
    if not ran and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def _or_skip(make: Callable[[], Path]) -> Path:
    try:
        return make()
    except Unavailable as why:
        pytest.skip(REASON_PREFIX + str(why))


@pytest.fixture(scope="session")
def busybox_tar() -> Path:
    """A small root filesystem, see :func:`tests.support.rootfs.busybox_tar`."""
    return _or_skip(rootfs.busybox_tar)


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """A big root filesystem, see :func:`tests.support.rootfs.debian_tar`."""
    return _or_skip(rootfs.debian_tar)


@pytest.fixture
def lamina(tmp_path: Path) -> Iterator[Lamina]:
    """The command line with an empty store of its own."""
    command = Lamina(tmp_path / "store")
    yield command
    command.close()


@pytest.fixture
def no_umask() -> Iterator[None]:
    """For a tree in the process of the test: an upper wants it to have no umask."""
    before = os.umask(0)
    yield
    os.umask(before)
