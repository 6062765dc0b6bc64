"""Images through the command line, as a user meets them."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Lamina, environment

pytestmark = pytest.mark.timeout(100)

ID = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[Lamina]:
    """A store with one image that is never changed: ``box:1``."""
    command = Lamina(tmp_path_factory.mktemp("box") / "store")
    command("import", "-m", "from a tar", "-c", 'CMD ["sh"]', "-c", "ENV A=1", busybox_tar, "box:1")
    yield command
    command.close()


def test_an_import_prints_the_id_and_nothing_else(lamina: Lamina, busybox_tar: Path) -> None:
    done = lamina("import", busybox_tar, "box")
    assert ID.fullmatch(done.stdout.strip())
    assert done.stderr == ""
    assert lamina("images", "-q", "--no-trunc").stdout == done.stdout


def test_an_import_reads_compressed_standard_input(lamina: Lamina, busybox_tar: Path) -> None:
    plain = lamina("import", busybox_tar, environ={"SOURCE_DATE_EPOCH": "1"}).stdout
    packed = lamina.run(
        "import",
        "-",
        stdin=gzip.compress(busybox_tar.read_bytes(), 1),
        environ={"SOURCE_DATE_EPOCH": "1"},
    )
    layers = [
        lamina("inspect", "-f", "{{.RootFS.Layers}}", image.strip()).stdout
        for image in (plain, packed.stdout.decode())
    ]
    assert layers[0] == layers[1]


def test_the_table_of_images_looks_like_dockers(box: Lamina) -> None:
    heading, row = box("images").stdout.splitlines()
    assert heading.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert re.fullmatch(r"box +1 +[0-9a-f]{12} +.* ago +[\d.]+MB", row)
    assert heading.index("SIZE") == row.rindex(" ") + 1


def test_images_are_selected_and_shown_in_any_form(box: Lamina) -> None:
    assert box("images", "nothing").stdout.count("\n") == 1
    assert box("images", "box:2").stdout.count("\n") == 1
    assert box("image", "ls", "box").stdout.count("\n") == 2
    shown = box("images", "--format", "{{.Repository}}:{{.Tag}}").stdout
    assert shown == "box:1\n"
    document = json.loads(box("images", "--format", "json").stdout)
    assert document["Repository"] == "box"
    table = box("images", "--format", r"table {{.Tag}}\t{{.ID}}").stdout.splitlines()
    assert table[0] == "TAG       IMAGE ID"
    assert "<none>" in box("images", "--digests").stdout
    wrong = box("images", "--format", "{{.Nope}}", check=False)
    assert (wrong.returncode, wrong.stdout) == (64, "")
    assert wrong.stderr.startswith("lamina: template parsing error: ")


def test_a_history_tells_what_made_the_image(box: Lamina) -> None:
    heading, row = box("history", "box:1").stdout.splitlines()
    assert heading.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert row.endswith("from a tar")
    assert (
        box("history", "-q", "--no-trunc", "box:1").stdout
        == box("images", "-q", "--no-trunc").stdout
    )


def test_inspect_shows_an_image_with_dockers_keys(box: Lamina) -> None:
    text = box("inspect", "box:1").stdout
    assert text.startswith('[\n    {\n        "Id": "sha256:')
    (document,) = json.loads(text)
    assert document["RepoTags"] == ["box:1"]
    assert document["Comment"] == "from a tar"
    assert document["Config"]["Cmd"] == ["sh"]
    assert "A=1" in document["Config"]["Env"]
    assert document["RootFS"]["Type"] == "layers"
    assert len(document["RootFS"]["Layers"]) == 1
    assert {"Architecture", "Os", "Size", "Created", "Parent", "GraphDriver"} <= set(document)
    assert box("inspect", "-f", "{{json .Config.Cmd}}", "box:1").stdout == '["sh"]\n'
    assert box("inspect", "-f", "{{.Id}}", document["Id"][7:19]).stdout.strip() == document["Id"]


def test_inspect_shows_what_there_is_and_complains_about_the_rest(box: Lamina) -> None:
    done = box("inspect", "nope", "box:1", "Bad:Name", check=False)
    assert done.returncode == 1
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr.splitlines() == [
        "Error: No such object: nope",
        "Error: No such object: Bad:Name",
    ]
    done = box("inspect", "--type", "container", "box:1", check=False)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert done.stderr == "Error: No such container: box:1\n"


def test_names_come_and_go(lamina: Lamina, busybox_tar: Path) -> None:
    image = lamina("import", busybox_tar, "one:1").stdout.strip()
    lamina("tag", "one:1", "two:2")
    assert lamina("rmi", "one:1").stdout == "Untagged: one:1\n"
    removed = lamina("image", "rm", "two:2").stdout.splitlines()
    assert removed[0] == "Untagged: two:2"
    assert f"Deleted: {image}" in removed
    assert lamina("images", "-aq").stdout == ""
    assert not list((lamina.root / "layers").iterdir())


def test_errors_are_dockers_words(box: Lamina) -> None:
    cases = [
        (["rmi", "nope"], "lamina: No such image: nope:latest\n"),
        (["tag", "nope", "x"], "lamina: No such image: nope:latest\n"),
        (["history", "nope"], "lamina: No such image: nope:latest\n"),
        (["save", "-o", "/dev/null/x", "nope"], "lamina: No such image: nope:latest\n"),
        (
            ["tag", "box:1", "Case"],
            "lamina: invalid reference format: repository name (Case) must be lowercase\n",
        ),
        (["rm", "nope"], "lamina: No such container: nope\n"),
        (["commit", "nope"], "lamina: No such container: nope\n"),
        (["import", "/nonexistent"], "lamina: /nonexistent: No such file or directory\n"),
        (["load", "-i", "/nonexistent"], "lamina: /nonexistent: No such file or directory\n"),
    ]
    for arguments, message in cases:
        done = box(*arguments, check=False)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert done.stderr == message


def test_every_name_is_tried_although_one_is_wrong(lamina: Lamina, busybox_tar: Path) -> None:
    lamina("import", busybox_tar, "one")
    done = lamina("rmi", "nope", "one", check=False)
    assert done.returncode == 1
    assert "Untagged: one:latest" in done.stdout
    assert done.stderr == "lamina: No such image: nope:latest\n"
    assert lamina("rmi", "-f", "nope").returncode == 0
    assert lamina("rm", "-f", "nope").returncode == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 1000, gzip.compress(b"x" * 5000, mtime=0)[:-10], b"\x1f\x8b"],
    ids=["empty", "garbage", "cut gzip", "only a gzip magic"],
)
def test_a_tar_that_is_none_leaves_nothing_behind(lamina: Lamina, content: bytes) -> None:
    for command in (["import", "-"], ["load"]):
        done = lamina.run(*command, stdin=content, check=False)
        if content == b"" and command[0] == "import":
            continue  # an empty tar is an empty image, as it is for tar itself
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr.count(b"\n") == 1
        assert done.stderr.startswith(b"lamina: ")
    assert lamina("images", "-aq").stdout.count("\n") <= 1
    assert not list((lamina.root / "tmp").iterdir())


def test_saved_images_are_loaded_elsewhere(box: Lamina, lamina: Lamina, tmp_path: Path) -> None:
    archive = tmp_path / "box.tar"
    box("tag", "box:1", "other/box:2")
    assert box("save", "-o", archive, "box:1", "other/box:2").stdout == ""
    assert archive.stat().st_mode & 0o777 == 0o600
    done = lamina("load", "-i", archive)
    assert sorted(done.stdout.splitlines()) == [
        "Loaded image: box:1",
        "Loaded image: other/box:2",
    ]
    assert done.stderr == ""
    image = box("images", "-q", "--no-trunc").stdout
    assert lamina("images", "-q", "--no-trunc").stdout == image
    box("rmi", "other/box:2")
    piped = box.run("save", image.strip()).stdout
    assert lamina.run("load", "-q", stdin=piped).stdout == f"Loaded image ID: {image}".encode()
    with tarfile.open(archive) as tar:
        assert "manifest.json" in tar.getnames()


def test_a_save_that_fails_leaves_no_file(box: Lamina, tmp_path: Path) -> None:
    target = tmp_path / "x.tar"
    assert box("save", "-o", target, "box:1", "nope", check=False).returncode == 1
    assert not list(tmp_path.iterdir())
    done = box("save", "-o", tmp_path / "no" / "x.tar", "box:1", check=False)
    assert done.stderr.startswith("lamina: failed to save image: invalid output path: ")
    with open("/dev/full", "wb") as full:
        failed = subprocess.run(
            box.argv("save", "box:1"),
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert failed.returncode == 1
    assert failed.stderr == b"lamina: No space left on device\n"


def test_archives_do_not_go_to_or_come_from_a_terminal(box: Lamina) -> None:
    controller, terminal = pty.openpty()
    try:
        for arguments, words in (
            (["save", "box:1"], b"cowardly refusing to save to a terminal"),
            (["load"], b"stdin is a terminal"),
        ):
            done = subprocess.run(
                box.argv(*arguments),
                env=environment(),
                stdin=terminal,
                stdout=terminal,
                stderr=subprocess.PIPE,
                check=False,
            )
            assert done.returncode == 1
            assert words in done.stderr
    finally:
        os.close(controller)
        os.close(terminal)


def test_progress_is_drawn_on_a_terminal_only(box: Lamina, lamina: Lamina, tmp_path: Path) -> None:
    archive = tmp_path / "box.tar"
    box("save", "-o", archive, "box:1")
    controller, terminal = pty.openpty()
    with open(terminal, "wb") as stream:
        subprocess.run(
            lamina.argv("load", "-i", archive),
            env=environment(COLUMNS="120"),
            stdout=subprocess.PIPE,
            stderr=stream,
            check=True,
        )
    shown = b""
    try:
        while data := os.read(controller, 65536):
            shown += data
    except OSError:
        pass  # the end of a terminal nobody has open any more
    os.close(controller)
    assert re.search(rb"\x1b\[2K\r[0-9a-f]{12}: Loading layer \[=+> *\] +[\d.]+.?B/", shown)


def test_names_of_images_cannot_steer_the_terminal(lamina: Lamina, busybox_tar: Path) -> None:
    lamina("import", "-m", "evil \x1b[2J\x07", busybox_tar, "box")
    assert "\x1b" not in lamina("history", "box").stdout
    assert "evil \\x1b[2J\\x07" in lamina("history", "box").stdout
    assert "\x1b" not in lamina("inspect", "-f", "{{.Comment}}", "box").stdout
    assert "\x1b" not in lamina("inspect", "box").stdout


def test_a_root_that_cannot_be_used_says_so(lamina: Lamina, tmp_path: Path) -> None:
    lamina.root = tmp_path / "full"
    lamina.root.mkdir()
    (lamina.root / "something").touch()
    done = lamina("images", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"lamina: {lamina.root} is neither empty nor a lamina store")
    lamina.root = Path("/proc/lamina")
    done = lamina("images", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("lamina: cannot use the store /proc/lamina: ")
    lamina.root = tmp_path / "unused"


def test_info_and_version_tell_what_there_is(box: Lamina) -> None:
    shown = box("info").stdout
    assert "Images: 1\n" in shown
    assert f"Root: {box.root}\n" in shown
    facts = json.loads(box("version", "--format", "json").stdout)
    assert {"Version", "Python", "pyfuse3", "Kernel"} <= set(facts)
