r"""The part of Go's template language that ``--format`` is used for.

Actions: ``{{.A.B}}``, ``{{json .A}}``, ``{{range .A}}..{{else}}..{{end}}``, ``{{if .A}}..{{end}}``,
``{{with .A}}..{{end}}``, pipes, parentheses, string and number literals, ``$`` for the root, and
the functions of :data:`_FUNCTIONS`. Values print as Go prints them: ``[a b]``, ``map[k:v]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Data = Any
"""What a template is filled from: dicts, lists, strings, numbers, None."""

NO_VALUE = "<no value>"


class TemplateError(ValueError):
    """A template that cannot be read, or that does not fit the data."""


_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)"""
    r"""|(?P<path>\$?(?:\.[A-Za-z_]\w*)+|\$|\.)|(?P<word>[A-Za-z_]\w*)|(?P<mark>[|()]))"""
)

Expression = Callable[[Data, Data], Data]
"""Takes the root of the data and the current value (the dot), gives a value."""


def render(template: str, data: Data) -> str:
    """Fill ``template`` from ``data`` (dicts, lists, strings, numbers, None).

    Raises :class:`TemplateError`.
    """
    return compile_template(template)(data)


def compile_template(template: str) -> Callable[[Data], str]:
    """Read ``template`` once, to be filled several times. Raises :class:`TemplateError`."""
    pieces = list(_pieces(template))
    nodes, rest, stop = _parse(pieces, 0)
    if stop is not None:
        raise TemplateError(f"unexpected {{{{{stop}}}}}")
    assert rest == len(pieces)
    return lambda data: "".join(_run(nodes, data, data))


def unescape(template: str) -> str:
    r"""Turn ``\t`` and ``\n``, typed literally in a shell, into what they stand for."""
    return template.replace("\\t", "\t").replace("\\n", "\n")


@dataclass(slots=True)
class _Text:
    text: str


@dataclass(slots=True)
class _Action:
    """``keyword`` is empty for a value to print, else range, if or with."""

    keyword: str
    expression: Expression
    body: list[_Node] = field(default_factory=list)
    other: list[_Node] = field(default_factory=list)


_Node = _Text | _Action


def _pieces(template: str) -> Iterator[tuple[bool, str]]:
    """The template as (is an action, text); the trim marks ``{{-`` and ``-}}`` are applied."""
    position = 0
    trim = False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if match[1] else text
        yield True, match[2].strip()
        trim = match[3] is not None
        position = match.end()
    text = template[position:]
    if "{{" in text:
        raise TemplateError("unclosed action")
    yield False, text.lstrip() if trim else text


def _parse(pieces: Sequence[tuple[bool, str]], at: int) -> tuple[list[_Node], int, str | None]:
    """Nodes up to the next ``end`` or ``else``: (nodes, next piece, what stopped)."""
    nodes: list[_Node] = []
    while at < len(pieces):
        is_action, text = pieces[at]
        at += 1
        if not is_action:
            nodes.append(_Text(text))
            continue
        keyword, _, argument = text.partition(" ")
        if keyword in ("end", "else"):
            return nodes, at, keyword
        if keyword in ("range", "if", "with"):
            node, at = _parse_block(pieces, at, keyword, argument)
            nodes.append(node)
        elif not text.startswith("/*"):
            nodes.append(_Action("", _expression(text)))
    return nodes, at, None


def _parse_block(
    pieces: Sequence[tuple[bool, str]], at: int, keyword: str, argument: str
) -> tuple[_Action, int]:
    node = _Action(keyword, _expression(argument))
    node.body, at, stop = _parse(pieces, at)
    if stop == "else":
        node.other, at, stop = _parse(pieces, at)
    if stop != "end":
        raise TemplateError(f"{{{{{keyword}}}}} without {{{{end}}}}")
    return node, at


def _expression(text: str) -> Expression:
    tokens = _tokens(text)
    expression, at = _pipeline(tokens, 0)
    if at != len(tokens):
        raise TemplateError(f"unexpected {tokens[at][1]!r} in {{{{{text}}}}}")
    return expression


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise TemplateError(f"unexpected {text[at:].strip()!r} in {{{{{text}}}}}")
        kind = match.lastgroup or ""
        tokens.append((kind, match[kind]))
        at = match.end()
    return tokens


def _pipeline(tokens: Sequence[tuple[str, str]], at: int) -> tuple[Expression, int]:
    """One or more commands joined by ``|``; each gets the value before it as last argument."""
    expression, at = _command(tokens, at, None)
    while at < len(tokens) and tokens[at] == ("mark", "|"):
        expression, at = _command(tokens, at + 1, expression)
    return expression, at


def _command(
    tokens: Sequence[tuple[str, str]], at: int, piped: Expression | None
) -> tuple[Expression, int]:
    operands: list[Expression] = []
    function: str | None = None
    while at < len(tokens) and tokens[at] not in (("mark", "|"), ("mark", ")")):
        kind, text = tokens[at]
        if kind == "word" and not operands and function is None and text in _FUNCTIONS:
            function, at = text, at + 1
            continue
        operand, at = _operand(tokens, at)
        operands.append(operand)
    if piped is not None:
        operands.append(piped)
    if function is not None:
        return _call(function, operands), at
    if len(operands) != 1:
        raise TemplateError("a value or a function with its arguments is expected between {{ }}")
    return operands[0], at


def _operand(tokens: Sequence[tuple[str, str]], at: int) -> tuple[Expression, int]:
    kind, text = tokens[at]
    if kind == "mark":
        expression, at = _pipeline(tokens, at + 1)
        if at >= len(tokens) or tokens[at] != ("mark", ")"):
            raise TemplateError("unclosed parenthesis")
        return expression, at + 1
    if kind == "word":
        if text in ("true", "false"):
            return _constant(text == "true"), at + 1
        raise TemplateError(f'function "{text}" not defined')
    if kind == "number":
        return _constant(int(text)), at + 1
    if kind == "string":
        return _constant(text[1:-1] if text[0] == "`" else json.loads(text)), at + 1
    return _path(text), at + 1


def _constant(value: Data) -> Expression:
    return lambda root, dot: value


def _path(text: str) -> Expression:
    from_root = text.startswith("$")
    names = [name for name in text.lstrip("$").split(".") if name]

    def follow(root: Data, dot: Data) -> Data:
        value = root if from_root else dot
        for name in names:
            value = _member(value, name)
        return value

    return follow


def _member(value: Data, name: str) -> Data:
    if isinstance(value, dict):
        if name in value:
            return value[name]
        raise TemplateError(f'map has no entry for key "{name}"')
    if value is None:
        return None
    raise TemplateError(f"can't evaluate field {name} in {_go_value(value)}")


def _call(name: str, operands: list[Expression]) -> Expression:
    function = _FUNCTIONS[name]

    def call(root: Data, dot: Data) -> Data:
        try:
            return function(*(operand(root, dot) for operand in operands))
        except TemplateError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(f"error calling {name}: {error}") from error

    return call


def _run(nodes: Sequence[_Node], root: Data, dot: Data) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Text):
            yield node.text
            continue
        value = node.expression(root, dot)
        if not node.keyword:
            yield NO_VALUE if value is None else _go_value(value)
        elif not value:
            yield from _run(node.other, root, dot)
        elif node.keyword == "range":
            for item in _items(value):
                yield from _run(node.body, root, item)
        else:
            yield from _run(node.body, root, value if node.keyword == "with" else dot)


def _items(value: Data) -> Sequence[Data]:
    """What ``range`` goes through: a list's items, a map's values in the order of the keys."""
    if isinstance(value, dict):
        return [item for _, item in sorted(value.items())]
    if isinstance(value, (list, tuple)):
        return value
    raise TemplateError(f"range can't iterate over {_go_value(value)}")


def _go_value(value: Data) -> str:
    """A value as Go's ``%v`` prints it."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        inner = (f"{key}:{_go_value(item)}" for key, item in sorted(value.items()))
        return f"map[{' '.join(inner)}]"
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(map(_go_value, value))}]"
    return str(value)


def _index(value: Data, *keys: Data) -> Data:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif not isinstance(key, int) or not 0 <= key < len(value):
            raise TemplateError(f"error calling index: index out of range: {key}")
        else:
            value = value[key]
    return value


_FUNCTIONS: dict[str, Callable[..., Data]] = {
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "eq": lambda first, *others: any(first == other for other in others),
    "index": _index,
    "join": lambda values, separator: separator.join(map(str, values or ())),
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "len": lambda value: len(value or ()),
    "lower": lambda text: text.lower(),
    "ne": lambda first, second: first != second,
    "not": lambda value: not value,
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "print": lambda *values: "".join(map(_go_value, values)),
    "println": lambda *values: " ".join(map(_go_value, values)) + "\n",
    "split": lambda text, separator: text.split(separator),
    "title": lambda text: text.title(),
    "upper": lambda text: text.upper(),
}
