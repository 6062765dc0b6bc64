"""The instructions of ``--change``: CMD, ENTRYPOINT, ENV, EXPOSE and the others Docker allows.

The syntax is that of a Dockerfile. The changes are made to a configuration *document*, a plain
dictionary as it stands in the image's JSON, so that fields this program does not know survive.
"""

from __future__ import annotations

import json
import posixpath
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .errors import InvalidChange

Config = dict[str, Any]

_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^}]*))?\}")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_UNITS["h"] = 60 * _UNITS["m"]
_SHELL = ["/bin/sh", "-c"]


def apply(changes: Iterable[str], config: Config) -> Config:
    """The configuration after the ``changes``, each of one or more instruction lines.

    Raises :class:`InvalidChange` for an instruction that is unknown, not allowed or malformed.
    """
    result = dict(config)
    given: set[str] = set()
    for line in _lines(changes):
        word, _, rest = line.partition(" ")
        name, rest = word.upper(), rest.strip()
        handler = _HANDLERS.get(name)
        if handler is None:
            raise InvalidChange(f"{name.lower()} is not a valid change command")
        if not rest:
            raise InvalidChange(f"{name} requires at least one argument")
        before = result.get("Cmd")
        handler(result, rest)
        if name != "CMD" or result.get("Cmd") is not before:
            given.add(name)
    if "ENTRYPOINT" in given and "CMD" not in given and result.get("Entrypoint"):
        # The command of the image was meant for its own entrypoint, as Docker sees it.
        result.pop("Cmd", None)
    return result


def _lines(changes: Iterable[str]) -> Iterator[str]:
    """Each instruction on one line: continuations joined, comments and blanks left out."""
    for change in changes:
        joined = re.sub(r"\\[ \t]*\n", " ", change)
        for line in joined.splitlines():
            text = re.sub(r"^(\S+)\s+", r"\1 ", line.strip())
            if text and not text.startswith("#"):
                yield text


def _command(config: Config, text: str) -> list[str]:
    """The exec form (a JSON array of strings), or else a line for the shell."""
    if text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return [*(config.get("Shell") or _SHELL), text]


def _cmd(config: Config, text: str) -> None:
    # As in Docker, an empty one takes nothing away.
    if command := _command(config, text):
        config["Cmd"] = command


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(config, text)


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables of a configuration, in order."""
    return dict(item.partition("=")[::2] for item in config.get("Env") or [])


def _env(config: Config, text: str) -> None:
    variables = environment(config)
    variables.update(_pairs("ENV", text, dict(variables)))
    config["Env"] = [f"{key}={value}" for key, value in variables.items()]


def _label(config: Config, text: str) -> None:
    config["Labels"] = {
        **(config.get("Labels") or {}),
        **dict(_pairs("LABEL", text, environment(config))),
    }


def _pairs(name: str, text: str, variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """``k=v k2="v 2"``, or the old form ``k rest of the line``."""
    words = _split(name, text)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value.strip():
            raise InvalidChange(f"{name} must have two arguments")
        yield expand(key, variables), expand(value.strip(), variables)
        return
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidChange(
                f"Syntax error - can't find = in {word!r}. Must be of the form: name=value"
            )
        if not key:
            raise InvalidChange(f"{name} names can not be blank")
        yield expand(key, variables), expand(value, variables)


def _split(name: str, text: str) -> list[str]:
    """The words of a line; quotes and backslashes stay in them."""
    if _WORD.sub("", text).strip():
        raise InvalidChange(f"{name}: unfinished quote or escape in {text!r}")
    return _WORD.findall(text)


def _unquoted(name: str, config: Config, text: str) -> list[str]:
    variables = environment(config)
    return [expand(word, variables) for word in _split(name, text)]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Remove quotes and escapes, and put in ``$name``, ``${name}``, ``${name:-x}``, ``:+x``.

    Single quotes keep everything; in double quotes a backslash escapes only ``"``, ``$`` and
    itself. Raises :class:`InvalidChange` for a substitution that cannot be read.
    """
    result: list[str] = []
    quote = ""
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == quote:
            quote = ""
        elif quote == "'":
            result.append(char)
        elif char in "'\"" and not quote:
            quote = char
        elif char == "\\" and position < len(text):
            following = text[position]
            position += 1
            result.append(following if not quote or following in '"$\\' else char + following)
        elif char == "$":
            value, position = _substitute(text, position, variables)
            result.append(value)
        else:
            result.append(char)
    return "".join(result)


def _substitute(text: str, position: int, variables: Mapping[str, str]) -> tuple[str, int]:
    """The value of the variable named at ``position``, and where the text goes on."""
    if match := _VARIABLE.match(text, position):
        return variables.get(match[0], ""), match.end()
    if not text.startswith("{", position):
        return "$", position
    match = _BRACED.match(text, position)
    if match is None:
        raise InvalidChange(f"unsupported variable substitution in {text!r}")
    value = variables.get(match[1], "")
    if match[2] == "-" and not value:
        value = expand(match[3], variables)
    elif match[2] == "+":
        value = expand(match[3], variables) if value else ""
    return value, match.end()


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _unquoted("EXPOSE", config, text):
        match = _PORTS.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 0 < first <= last <= 65535:
            raise InvalidChange(f"invalid containerPort: {word}")
        protocol = (match[3] or "tcp").lower()
        ports.update({f"{port}/{protocol}": {} for port in range(first, last + 1)})
    config["ExposedPorts"] = ports


def _onbuild(config: Config, text: str) -> None:
    trigger = text.split(maxsplit=1)[0].upper()
    if trigger == "ONBUILD":
        raise InvalidChange("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise InvalidChange(f"{trigger} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _single(name: str, config: Config, text: str) -> str:
    words = _unquoted(name, config, text)
    if len(words) != 1:
        raise InvalidChange(f"{name} requires exactly one argument")
    return words[0]


def _user(config: Config, text: str) -> None:
    config["User"] = _single("USER", config, text)


def _volume(config: Config, text: str) -> None:
    value = _command({"Shell": []}, text)
    names: Sequence[str] = value if text.startswith("[") else _unquoted("VOLUME", config, text)
    if not all(name.strip() for name in names):
        raise InvalidChange("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{name: {} for name in names}}


def _workdir(config: Config, text: str) -> None:
    path = expand(text, environment(config))
    joined = posixpath.join("/", config.get("WorkingDir") or "/", path)
    config["WorkingDir"] = "/" + posixpath.normpath(joined).lstrip("/")


def _stopsignal(config: Config, text: str) -> None:
    value = _single("STOPSIGNAL", config, text)
    name = value.upper().removeprefix("SIG")
    known = any(f"SIG{name}" == known.name for known in signal.Signals)
    real_time = re.fullmatch(r"RTM(IN(\+\d+)?|AX(-\d+)?)", name)
    if not known and not real_time and not (value.isdigit() and 0 < int(value) <= 64):
        raise InvalidChange(f"invalid signal: {value}")
    config["StopSignal"] = value


def _healthcheck(config: Config, text: str) -> None:
    if text.upper() == "NONE":
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    check: Config = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s*", text):
        field = _HEALTH_OPTIONS.get(match[1])
        if field is None:
            raise InvalidChange(f"unknown flag: {match[1]}")
        check[field] = _count(match[2]) if field == "Retries" else _nanoseconds(match[2])
        text = text[match.end() :]
    kind, _, command = text.partition(" ")
    if kind.upper() != "CMD" or not command.strip():
        raise InvalidChange("HEALTHCHECK needs NONE or CMD and a command")
    words = _command({"Shell": ["CMD-SHELL"]}, command.strip())
    check["Test"] = words if words[:1] == ["CMD-SHELL"] else ["CMD", *words]
    config["Healthcheck"] = check


def _count(text: str) -> int:
    if not text.isdigit():
        raise InvalidChange(f"--retries must be a number, not {text!r}")
    return int(text)


def _nanoseconds(text: str) -> int:
    """A duration such as ``1m30s``, as Go writes it, in nanoseconds."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidChange(f"invalid duration {text!r}: want for example 30s or 1m30s")
    return sum(round(float(number) * _UNITS[unit]) for number, unit in parts)


_HEALTH_OPTIONS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
    "retries": "Retries",
}
_HANDLERS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
