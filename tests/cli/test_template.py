"""Go templates, compared with Docker's own where it is installed."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output.template import TemplateError, compile_template, render, unescape

DATA = {
    "Id": "sha256:abc",
    "RepoTags": ["a:1", "b:2"],
    "Size": 12,
    "Config": {"Cmd": ["sh", "-c", "x"], "Env": None, "Labels": {"b": "2", "a": "1"}, "Tty": False},
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{{.Id}}", "sha256:abc"),
        ("{{ .Id }} {{.Size}}", "sha256:abc 12"),
        ("{{.Config.Cmd}}", "[sh -c x]"),
        ("{{.Config.Env}}", "<no value>"),
        ("{{.Config.Tty}}", "false"),
        ("{{.Config.Labels}}", "map[a:1 b:2]"),
        ("{{json .Config.Cmd}}", '["sh","-c","x"]'),
        ("{{.Config.Cmd | json}}", '["sh","-c","x"]'),
        ("{{json .Config.Env}}", "null"),
        ("{{index .RepoTags 1}}", "b:2"),
        ('{{index .Config.Labels "a"}}', "1"),
        ("{{len .RepoTags}}", "2"),
        ('{{join .RepoTags ", "}}', "a:1, b:2"),
        ("{{range .RepoTags}}<{{.}}>{{end}}", "<a:1><b:2>"),
        ("{{range .RepoTags}}{{$.Size}} {{end}}", "12 12 "),
        ("{{range .Config.Env}}x{{else}}none{{end}}", "none"),
        ("{{if .Config.Tty}}yes{{else}}no{{end}}", "no"),
        ("{{if eq .Size 12}}twelve{{end}}", "twelve"),
        ("{{with .Config}}{{.Cmd}}{{end}}", "[sh -c x]"),
        ("{{range .RepoTags}}{{if eq . `a:1`}}first{{end}}{{end}}", "first"),
        ("{{upper .Id}} {{.Id | lower | upper}}", "SHA256:ABC SHA256:ABC"),
        ("{{(index .RepoTags 0)}}", "a:1"),
        ("{{println .Size}}", "12\n"),
        ("a {{- .Size -}} b", "a12b"),
        ("{{/* nothing */}}x", "x"),
    ],
)
def test_a_template_is_filled(template: str, expected: str) -> None:
    assert render(template, DATA) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{{.Id",
        "{{}}",
        "{{end}}",
        "{{range .RepoTags}}",
        "{{if .Id}}{{else}}",
        "{{nonsense .Id}}",
        "{{.Id .Size}}",
        "{{.Nope}}",
        "{{.Id.Nope}}",
        "{{index .RepoTags 5}}",
        "{{index .RepoTags -1}}",
        "{{join .Size}}",
        "{{(.Id}}",
        "{{.Id)}}",
        '{{"unclosed}}',
        "{{range .Size}}{{end}}",
    ],
)
def test_a_template_that_cannot_be_used_says_so(template: str) -> None:
    with pytest.raises(TemplateError):
        render(template, DATA)


@given(st.text(alphabet='{}.|() "`-$ Idrangejsonfend\\'))
def test_no_template_raises_anything_else(template: str) -> None:
    with suppress(TemplateError):
        compile_template(template)(DATA)


def test_escapes_typed_in_a_shell_are_understood() -> None:
    assert unescape(r"{{.ID}}\t{{.Size}}\n") == "{{.ID}}\t{{.Size}}\n"


@pytest.mark.peer("docker")
@pytest.mark.parametrize(
    "template",
    [
        "{{.Name}}",
        "{{json .Name}}",
        "{{len .Name}}",
        "{{ upper .Name }} {{lower .Name}}",
        "{{.Name | upper | json}}",
        "{{if .Name}}a{{else}}b{{end}}",
        "{{if eq .Name `default`}}same{{end}}",
        "{{with .Name}}<{{.}}>{{end}}",
        "x {{- .Name -}} y",
        "{{and .Name `x`}} {{or .Name `x`}} {{not .Name}}",
        "{{print .Name `x` 1}}",
        "{{println .Name}}",
    ],
)
def test_a_template_means_what_it_means_to_docker(template: str) -> None:
    argv = ["docker", "context", "inspect", "default", "--format", template]
    peer = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert render(template, {"Name": "default"}) + "\n" == peer.stdout


def test_json_in_a_template_is_json() -> None:
    assert json.loads(render("{{json .}}", DATA)) == DATA
