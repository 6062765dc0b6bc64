"""``lamina info`` and ``lamina version``: what lamina stands on."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata

import click

from .. import __version__
from ..environment import search_path
from ..output.text import printable
from ..session import Session, pass_session

_LIBRARIES = ("pyfuse3", "trio", "msgspec", "lz4", "isal")


@click.command()
@click.option("--format", "template", type=click.Choice(["json"]), help="Print JSON.")
@pass_session
def info(session: Session, template: str | None) -> None:
    """Show what lamina finds on this machine and in the store."""
    facts = {**_store_facts(session), **_machine_facts(session)}
    _show(facts, template)


@click.command()
@click.option("--format", "template", type=click.Choice(["json"]), help="Print JSON.")
def version(template: str | None) -> None:
    """Show the versions of lamina and of what it stands on."""
    _show(
        {
            "Version": __version__,
            "Python": platform.python_version(),
            **{name: _version_of(name) for name in _LIBRARIES},
            "Kernel": platform.release(),
            "OS/Arch": f"{platform.system().lower()}/{platform.machine()}",
        },
        template,
    )


def _show(facts: dict[str, object], template: str | None) -> None:
    if template == "json":
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        click.echo(f"{name}: {printable(str(value))}")


def _store_facts(session: Session) -> dict[str, object]:
    with session.store() as store:
        containers = store.containers()
        running = sum(container.status == "running" for container in containers)
        return {
            "Containers": len(containers),
            "Running": running,
            "Stopped": len(containers) - running,
            "Images": len(store.images()),
            "Root": str(store.root),
            "Free space": _free_space(session),
        }


def _free_space(session: Session) -> str:
    from ..output.units import human_size  # noqa: PLC0415

    return human_size(shutil.disk_usage(session.root).free)


def _machine_facts(session: Session) -> dict[str, object]:
    from snapshotter.containers.runtime import installed  # noqa: PLC0415

    runtimes = [f"{found.version()} ({found.path})" for found in installed(search_path())]
    return {
        "Lamina version": __version__,
        "Kernel": platform.release(),
        "Architecture": platform.machine(),
        "FUSE": _fuse(),
        "Rootless": os.geteuid() != 0,
        "Runtimes": ", ".join(runtimes) or "none: install the package runc or crun",
    }


def _fuse() -> str:
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse"
    helper = shutil.which("fusermount3")
    return f"through {helper}" if helper else "not available: install the package fuse3"


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
