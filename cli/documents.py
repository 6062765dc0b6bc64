"""Images and containers as the JSON documents of ``inspect``, with Docker's keys."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output.units import rfc3339

if TYPE_CHECKING:
    from snapshotter.store import Container, Image, Store

Document = dict[str, Any]

_PROCESS_DEFAULTS: Document = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}


def image_document(store: Store, image: Image) -> Document:
    """Everything about an image. The ``Config`` keeps fields that lamina does not know."""
    config = image.config
    raw = json.loads(image.config_bytes)
    history = config.history or []
    return {
        "Id": image.id,
        "RepoTags": [str(reference) for reference in image.references],
        "RepoDigests": [],
        "Parent": image.parent or "",
        "Comment": (history[-1].comment or "") if history else "",
        "Created": config.created or rfc3339(image.created),
        "DockerVersion": raw.get("docker_version", ""),
        "Author": config.author or "",
        "Config": {**_PROCESS_DEFAULTS, **(raw.get("config") or {})},
        "Architecture": config.architecture,
        **({"Variant": config.variant} if config.variant else {}),
        "Os": config.os,
        "Size": image.size,
        "GraphDriver": {"Name": "lamina", "Data": {"LowerDir": _lowers(store, image)}},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": rfc3339(None)},
    }


def container_document(store: Store, container: Container) -> Document:
    """Everything about a container."""
    config = container.config
    command = [*config.entrypoint, *config.cmd]
    directory = container.directory
    return {
        "Id": container.id,
        "Created": rfc3339(container.created),
        "Path": command[0] if command else "",
        "Args": command[1:],
        "State": _state(container),
        "Image": container.image,
        "ResolvConfPath": str(directory / "etc" / "resolv.conf"),
        "HostnamePath": str(directory / "etc" / "hostname"),
        "HostsPath": str(directory / "etc" / "hosts"),
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "Driver": "lamina",
        "Platform": "linux",
        "HostConfig": {
            "NetworkMode": config.network,
            "AutoRemove": config.auto_remove,
            "ReadonlyRootfs": config.read_only,
        },
        "GraphDriver": {"Name": "lamina", "Data": _graph_data(store, container)},
        "Mounts": [],
        "Config": _process(container),
        "NetworkSettings": {"Networks": {config.network: {}}},
    }


def _state(container: Container) -> Document:
    is_running = container.status == "running"
    return {
        "Status": container.status,
        "Running": is_running,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": False,
        "Dead": False,
        "Pid": (container.pid or 0) if is_running else 0,
        "ExitCode": container.exit_code or 0,
        "Error": "",
        "StartedAt": rfc3339(container.started),
        "FinishedAt": rfc3339(container.finished),
    }


def _graph_data(store: Store, container: Container) -> dict[str, str]:
    return {
        "LowerDir": _lowers(store, store.image(container.image)),
        "MergedDir": str(container.directory / "rootfs"),
        "UpperDir": str(container.upper),
        "WorkDir": str(container.work),
    }


def _lowers(store: Store, image: Image) -> str:
    return ":".join(os.fspath(Path(run)) for run in store.runs(image))


def _process(container: Container) -> Document:
    config = container.config
    return {
        **_PROCESS_DEFAULTS,
        "Hostname": config.hostname,
        "User": config.user,
        "AttachStdin": config.interactive,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": config.tty,
        "OpenStdin": config.interactive,
        "StdinOnce": config.interactive,
        "Env": config.env,
        "Cmd": config.cmd,
        "Image": container.image_name,
        "WorkingDir": config.working_dir,
        "Entrypoint": config.entrypoint or None,
        "Labels": config.labels,
        **({"StopSignal": config.stop_signal} if config.stop_signal else {}),
    }
