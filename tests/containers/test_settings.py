"""What a container runs: the image's settings and the user's, put together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from snapshotter.containers.errors import ContainerError
from snapshotter.containers.settings import Request, container_config, merge_env
from snapshotter.models import ImageConfig, ProcessConfig, RootFS
from snapshotter.store import ContainerConfig, Image


def config(process: ProcessConfig | None = None, **request: Any) -> ContainerConfig:
    image = SimpleNamespace(config=ImageConfig(rootfs=RootFS(), config=process))
    return container_config(cast("Image", image), Request(**request))


IMAGE = ProcessConfig(
    entrypoint=["/entry", "-x"],
    cmd=["serve"],
    env=["PATH=/bin", "A=1"],
    working_dir="/srv",
    user="www",
    labels={"k": "v"},
    stop_signal="SIGQUIT",
)


def test_the_image_decides_what_nobody_asked_otherwise() -> None:
    made = config(IMAGE)
    assert (made.entrypoint, made.cmd) == (["/entry", "-x"], ["serve"])
    assert (made.env, made.working_dir, made.user) == (["PATH=/bin", "A=1"], "/srv", "www")
    assert (made.labels, made.stop_signal, made.network) == ({"k": "v"}, "SIGQUIT", "none")


@pytest.mark.parametrize(
    ("request_", "entrypoint", "cmd"),
    [
        ({"command": ["other", "args"]}, ["/entry", "-x"], ["other", "args"]),
        ({"entrypoint": "/mine"}, ["/mine"], []),
        ({"entrypoint": "/mine", "command": ["a"]}, ["/mine"], ["a"]),
        ({"entrypoint": "", "command": ["a"]}, [], ["a"]),
    ],
)
def test_a_new_entrypoint_drops_the_command_of_the_image(
    request_: dict[str, Any], entrypoint: list[str], cmd: list[str]
) -> None:
    made = config(IMAGE, **request_)
    assert (made.entrypoint, made.cmd) == (entrypoint, cmd)


def test_variables_of_the_user_take_the_place_of_the_images() -> None:
    assert config(IMAGE, env=["A=2", "B=3"]).env == ["PATH=/bin", "A=2", "B=3"]
    assert merge_env(["A=1", "B=2"], ["A=", "C=x=y"]) == ["A=", "B=2", "C=x=y"]


@pytest.mark.parametrize(
    ("process", "request_", "message"),
    [
        (None, {}, "no command specified"),
        (IMAGE, {"entrypoint": ""}, "no command specified"),
        (IMAGE, {"working_dir": "relative"}, "'relative' is invalid"),
        (IMAGE, {"network": "bridge"}, "network bridge not found"),
        (IMAGE, {"hostname": "-x"}, "invalid hostname"),
        (IMAGE, {"hostname": "a" * 65}, "invalid hostname"),
        (IMAGE, {"hostname": "a\nb"}, "invalid hostname"),
    ],
)
def test_contradictions_are_refused(
    process: ProcessConfig | None, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContainerError, match=message) as caught:
        config(process, **request_)
    assert caught.value.code == 125
