"""The names of images: ``[domain/]path[:tag][@digest]``, parsed and normalised.

The grammar is that of the distribution project's ``reference`` package. A name without a domain
belongs to ``docker.io``, one of its names without a slash to ``library/``; users read and write
the familiar form, which leaves both out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .errors import InvalidReference

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
NAME_MAX = 255

_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A normalised image name. ``str()`` gives the familiar form, :attr:`full` the stored one."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a name as a user types it; a missing tag stays missing.

        Raises :class:`InvalidReference`, also for 64 hex digits, which are an ID.
        """
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )
        domain, remainder = _split_domain(text)
        repository = remainder.partition(":")[0]
        if repository != repository.lower():
            name = repository.removeprefix(_OFFICIAL)
            raise InvalidReference(
                f"invalid reference format: repository name ({name}) must be lowercase"
            )
        match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
        if match is None:
            raise InvalidReference("invalid reference format")
        if len(match["domain"]) + 1 + len(match["path"]) > NAME_MAX:
            raise InvalidReference(f"repository name must not be more than {NAME_MAX} characters")
        return cls(match["domain"], match["path"], match["tag"], match["digest"])

    @classmethod
    def parse_tagged(cls, text: str) -> Reference:
        """Parse a name that is given to an image: the tag is ``latest`` if missing.

        Raises :class:`InvalidReference`, also for a digest, which cannot be given.
        """
        reference = cls.parse(text)
        if reference.digest is not None:
            raise InvalidReference("refusing to create a tag with a digest reference")
        return reference.tagged()

    def tagged(self) -> Reference:
        """This name with the default tag, unless it has a tag or a digest."""
        if self.tag is None and self.digest is None:
            return replace(self, tag=DEFAULT_TAG)
        return self

    @property
    def repository(self) -> str:
        """The familiar name without tag and digest: ``busybox``, ``example.org/team/app``.

        It is read as this name again, so ``docker.io/example.org/app`` keeps its domain.
        """
        short = self.path.removeprefix(_OFFICIAL)
        short = self.path if "/" in short else short
        if _split_domain(short) == (self.domain, self.path):
            return short
        return f"{self.domain}/{self.path}"

    @property
    def full(self) -> str:
        """The complete name: ``docker.io/library/busybox:latest``."""
        return f"{self.domain}/{self.path}{self._suffix()}"

    def __str__(self) -> str:
        return self.repository + self._suffix()

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{self.digest}" if self.digest is not None else "")


def _split_domain(text: str) -> tuple[str, str]:
    """Split off the domain: a first component with a dot, a colon or capitals, or localhost."""
    first, slash, rest = text.partition("/")
    named = any(mark in first for mark in ".:") or first == "localhost" or first != first.lower()
    domain, remainder = (first, rest) if slash and named else (DEFAULT_DOMAIN, text)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder
