"""The instructions of --change."""

from __future__ import annotations

from typing import Any

import pytest

from snapshotter.dockerfile import apply
from snapshotter.errors import InvalidChange


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('CMD ["a", "b c"]', {"Cmd": ["a", "b c"]}),
        ("CMD a $X", {"Cmd": ["/bin/sh", "-c", "a $X"]}),
        ("cmd   [a]", {"Cmd": ["/bin/sh", "-c", "[a]"]}),
        ('ENTRYPOINT ["/e"]', {"Entrypoint": ["/e"]}),
        ("ENV A=1 B='x $A' C=\"y $A\" D=e\\ f", {"Env": ["A=1", "B=x $A", "C=y ", "D=e f"]}),
        ("ENV A 1  2", {"Env": ["A=1  2"]}),
        ("EXPOSE 80 53/udp 8000-8001", {"ExposedPorts": {
            "80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}}),
        ('LABEL a=1 "b c"="d e"', {"Labels": {"a": "1", "b c": "d e"}}),
        ("ONBUILD RUN x  y", {"OnBuild": ["RUN x  y"]}),
        ("USER 1:2", {"User": "1:2"}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ('VOLUME ["/a b"]', {"Volumes": {"/a b": {}}}),
        ("WORKDIR /a/../b/", {"WorkingDir": "/b"}),
        ("WORKDIR rel", {"WorkingDir": "/rel"}),
        ("WORKDIR ../..", {"WorkingDir": "/"}),
        ("STOPSIGNAL SIGTERM", {"StopSignal": "SIGTERM"}),
        ("STOPSIGNAL RTMIN+3", {"StopSignal": "RTMIN+3"}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        ("HEALTHCHECK --interval=1m30s --retries=3 CMD true", {"Healthcheck": {
            "Interval": 90 * 10**9, "Retries": 3, "Test": ["CMD-SHELL", "true"]}}),
        ('HEALTHCHECK CMD ["a"]', {"Healthcheck": {"Test": ["CMD", "a"]}}),
    ],
)  # fmt: skip
def test_an_instruction_sets_its_field(change: str, expected: dict[str, Any]) -> None:
    assert apply([change], {}) == expected


def test_changes_add_to_what_is_there_and_keep_unknown_fields() -> None:
    config = {"Env": ["PATH=/bin", "A=1"], "Labels": {"x": "1"}, "WorkingDir": "/srv", "New": 7}
    changed = apply(
        ["ENV PATH=/opt:$PATH B=${A}${none:-2}${A:+3}\nLABEL y=2", "WORKDIR sub", "USER \\\n me"],
        config,
    )
    assert changed == {
        "Env": ["PATH=/opt:/bin", "A=1", "B=123"],
        "Labels": {"x": "1", "y": "2"},
        "WorkingDir": "/srv/sub",
        "User": "me",
        "New": 7,
    }
    assert config["Env"] == ["PATH=/bin", "A=1"]


def test_a_new_entrypoint_drops_the_inherited_command() -> None:
    assert "Cmd" not in apply(['ENTRYPOINT ["e"]'], {"Cmd": ["old"]})
    assert "Cmd" not in apply(['ENTRYPOINT ["e"]', "CMD []"], {"Cmd": ["old"]})
    assert apply(['ENTRYPOINT ["e"]', 'CMD ["c"]'], {"Cmd": ["old"]})["Cmd"] == ["c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("RUN x", "run is not a valid change command"),
        ("FOO x", "foo is not a valid change command"),
        ("CMD", "CMD requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "can't find = in 'B'"),
        ("ENV =1", "names can not be blank"),
        ("ENV A='1", "unfinished quote"),
        ("ENV A=${B", "unsupported variable substitution"),
        ("EXPOSE 0", "invalid containerPort: 0"),
        ("EXPOSE 2-1", "invalid containerPort: 2-1"),
        ("ONBUILD ONBUILD x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "isn't allowed as an ONBUILD trigger"),
        ("USER a b", "USER requires exactly one argument"),
        ('VOLUME [""]', "can not be an empty string"),
        ("STOPSIGNAL NONSENSE", "invalid signal: NONSENSE"),
        ("HEALTHCHECK --interval=3 CMD x", "invalid duration '3'"),
        ("HEALTHCHECK x", "HEALTHCHECK needs NONE or CMD"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(change: str, message: str) -> None:
    with pytest.raises(InvalidChange, match=message):
        apply([change], {})
