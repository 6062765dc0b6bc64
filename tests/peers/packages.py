"""Debian packages made for tests, and what a system administrator does with them.

Two versions of one package hold what dpkg has to take care of: many small files, conffiles,
hardlinks, special modes and owners, a directory that becomes a symlink and the other way round.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.rootfs import EPOCH

NAME = "union-test"

_CONTROL = f"""\
Package: {NAME}
Version: {{version}}
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: files to unpack
"""

# What replaces a directory by a symlink, or a symlink by a directory, is the maintainer's to do.
_MAINTAINER = f"""\
#!/bin/sh
set -e
export DPKG_MAINTSCRIPT_NAME DPKG_MAINTSCRIPT_PACKAGE
dpkg-maintscript-helper dir_to_symlink /usr/share/{NAME}/manual guide 2 {NAME} -- "$@"
dpkg-maintscript-helper symlink_to_dir /usr/share/{NAME}/themes manual 2 {NAME} -- "$@"
"""
_CONFIGURE = f"""
if [ "$1" = configure ]; then
    mkdir -p /var/lib/{NAME}
    echo configured {{version}} >>/var/lib/{NAME}/history
    chown -R www-data:www-data /var/lib/{NAME}
    update-alternatives --install /usr/bin/unions {NAME} /usr/bin/union-tool {{version}}0
fi
"""


def build(directory: Path, version: int, count: int) -> Path:
    """Build a version, 1 or 2, of the package with ``count`` small files. Needs root."""
    root = directory / f"tree-{version}"
    share, private = root / f"usr/share/{NAME}", root / f"var/spool/{NAME}"
    tool, settings = root / "usr/bin/union-tool", root / f"etc/{NAME}"
    for number in range(count):
        if version == 1 or number % 3:  # an upgrade removes every third
            _write(share / f"many/{number % 40}/{number}", f"{number} {version * (number % 2)}\n")
    _write(tool, f"#!/bin/sh\necho version {version}\n", 0o755)
    for other in (root / "usr/bin/union-again", root / f"usr/lib/{NAME}/union-third"):
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(tool, other)
    _write(root / "usr/bin/union-setuid", f"{version}\n", 0o4755)
    _write(private / "job", f"{version}\n", 0o640)
    private.chmod(0o2770)
    for path in (private, private / "job"):
        os.chown(path, 33, 33)
    private.chmod(0o2770)
    _write(settings / "edited", f"default {version}\n")
    _write(settings / "untouched", f"default {version}\n")
    _write(settings / f"only-{version}", "default\n")
    _write(share / "name with spaces and ümlaut", f"{version}\n")
    _write(share / "unchanged", "same\n")
    (share / "tool").symlink_to("/usr/bin/union-tool")
    _write(share / "guide/text", f"text {version}\n")
    if version == 1:
        _write(share / "manual/chapter/text", "text\n")
        (share / "themes").symlink_to("manual")
        _write(share / "plain", "a file\n")
    else:
        (share / "manual").symlink_to("guide")
        _write(share / "themes/dark", "dark\n")
        _write(share / "plain/inside", "it is a directory now\n")
    _write_control(root, version)
    package = directory / f"{NAME}_{version}.deb"
    command = ["dpkg-deb", "-Znone", "--build", str(root), str(package)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return package


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _write_control(root: Path, version: int) -> None:
    control = root / "DEBIAN"
    _write(control / "control", _CONTROL.format(version=version))
    conffiles = sorted((root / "etc").rglob("*-*/*"))
    _write(control / "conffiles", "".join(f"/{path.relative_to(root)}\n" for path in conffiles))
    for script in ("preinst", "postinst", "postrm"):
        text = _MAINTAINER if version == 2 else "#!/bin/sh\nset -e\n"
        text += _CONFIGURE.format(version=version) if script == "postinst" else ""
        _write(control / script, text, 0o755)
    for path in root.rglob("*"):
        os.utime(path, (EPOCH + version, EPOCH + version), follow_symlinks=False)


ADMINISTER = f"""\
set -eux
export DEBIAN_FRONTEND=noninteractive
options="-y -q -o Dpkg::Options::=--force-confold -o APT::Sandbox::User=root"
apt-get $options install /given/{NAME}_1.deb
echo mine >>/etc/{NAME}/edited
union-again
dpkg-divert --rename --divert /usr/bin/which.moved --add /usr/bin/which
dpkg-statoverride --update --add root www-data 2750 /usr/bin/chage
apt-get $options install /given/{NAME}_2.deb
test "$(unions)" = "version 2"
useradd --create-home --shell /bin/sh somebody
ldconfig
dpkg --verify {NAME} || true
apt-get clean
rm -f /var/log/*.log /var/log/apt/* /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache
touch --date "@$SOURCE_DATE_EPOCH" /tmp
"""
"""Installs version 1 from /given, upgrades it, and changes what the distribution installed.
Logs and caches hold times, and are removed; in /tmp apt makes files only where there is no
O_TMPFILE."""

PURGE = f"""\
dpkg --purge --force-all debconf {NAME} >/dev/null 2>&1
test ! -e /var/lib/dpkg/info/debconf.list
rm -f /var/log/dpkg.log
"""
"""Removes what :data:`ADMINISTER` installed, and a package of the distribution."""
