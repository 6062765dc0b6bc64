"""Looking into a root filesystem: nothing in it leads out of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from snapshotter.containers.errors import ContainerError
from snapshotter.containers.inside import Question, look
from snapshotter.containers.userns import Mapping
from snapshotter.containers.users import User

pytestmark = pytest.mark.root

SINGLE = Mapping(((0, 1000, 1),), ((0, 1000, 1),))


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    root = tmp_path / "rootfs"
    for name in ("bin", "etc", "srv/bin", "other"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "program").write_text("")
    (root / "bin" / "program").chmod(0o755)
    (root / "bin" / "private").write_text("")
    (root / "bin" / "private").chmod(0o700)
    (root / "bin" / "text").write_text("")
    (root / "bin" / "text").chmod(0o644)
    shutil.copy(root / "bin" / "program", root / "srv" / "bin" / "local")
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:\nwww:x:33:33::/var/www:\n")
    (root / "etc" / "group").write_text("www:x:33:\nmore:x:44:www\n")
    return root


def ask(
    root: Path,
    program: str,
    *,
    user: str = "",
    path: str = "/bin",
    working_dir: str = "",
    mapping: Mapping | None = None,
) -> User:
    question = Question(user=user, program=program, path=path, working_dir=working_dir)
    return look(os.fsencode(root), question, mapping)


def test_the_user_and_the_program_are_found(rootfs: Path) -> None:
    assert ask(rootfs, "program") == User(0, 0, (), "/root")
    assert ask(rootfs, "/bin/program", user="www") == User(33, 33, (44,), "/var/www")
    assert ask(rootfs, "./bin/local", working_dir="/srv").uid == 0
    assert ask(rootfs, "local", path="/nowhere:bin", working_dir="/srv").uid == 0


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        ("nope", 127, 'exec: "nope": executable file not found in $PATH'),
        ("text", 127, 'exec: "text": executable file not found in $PATH'),
        ("/nope", 127, 'exec: "/nope": stat /nope: no such file or directory'),
        ("/bin/text/x", 127, 'exec: "/bin/text/x": stat /bin/text/x: not a directory'),
        ("/etc", 126, 'exec: "/etc": is a directory'),
        ("/bin/text", 126, 'exec: "/bin/text": permission denied'),
        ("", 127, 'exec: "": executable file not found in $PATH'),
        ("/" + "x" * 300, 127, "file name too long"),
    ],
)
def test_a_program_that_cannot_start_has_dockers_exit_code(
    rootfs: Path, program: str, code: int, message: str
) -> None:
    with pytest.raises(ContainerError) as caught:
        ask(rootfs, program)
    assert message in str(caught.value)
    assert caught.value.code == code


def test_a_program_is_judged_as_the_user_who_runs_it(rootfs: Path) -> None:
    assert ask(rootfs, "/bin/private").uid == 0
    with pytest.raises(ContainerError, match="permission denied") as caught:
        ask(rootfs, "/bin/private", user="www")
    assert caught.value.code == 126


def test_symlinks_of_the_image_stay_in_the_image(rootfs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "passwd"
    secret.write_text("outsider:x:77:77::/:\n")
    (rootfs / "etc" / "passwd").unlink()
    (rootfs / "etc" / "passwd").symlink_to(secret)
    with pytest.raises(ContainerError, match="unable to find user outsider"):
        ask(rootfs, "program", user="outsider")
    (rootfs / "etc" / "passwd").unlink()
    (rootfs / "etc" / "passwd").symlink_to("../../../../../../" + str(secret))
    with pytest.raises(ContainerError, match="unable to find user outsider"):
        ask(rootfs, "program", user="outsider")
    (rootfs / "escape").symlink_to("/usr/bin/env")
    with pytest.raises(ContainerError, match="no such file"):
        ask(rootfs, "/escape")


def test_strange_account_files_are_as_good_as_none(rootfs: Path) -> None:
    (rootfs / "etc" / "passwd").unlink()
    os.mkfifo(rootfs / "etc" / "passwd")
    assert ask(rootfs, "program") == User(0, 0, (), "/")
    (rootfs / "etc" / "passwd").unlink()
    (rootfs / "etc" / "passwd").mkdir()
    assert ask(rootfs, "program") == User(0, 0, (), "/")
    (rootfs / "etc" / "passwd").rmdir()
    (rootfs / "etc" / "passwd").symlink_to("passwd")
    with pytest.raises(ContainerError, match="passwd: Too many levels of symbolic links"):
        ask(rootfs, "program")


def test_huge_account_files_are_refused(rootfs: Path) -> None:
    with (rootfs / "etc" / "passwd").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ContainerError, match="larger than"):
        ask(rootfs, "program")


def test_users_outside_the_namespace_are_refused(rootfs: Path) -> None:
    with pytest.raises(ContainerError, match="which has only root") as caught:
        ask(rootfs, "program", user="www", mapping=SINGLE)
    assert caught.value.code == 125
    assert ask(rootfs, "program", mapping=SINGLE).groups == ()
