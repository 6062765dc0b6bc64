"""``lamina verify``: is everything in the store as it should be?"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import FAILURE
from ..output.progress import progress_for
from ..output.text import printable
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.progress import Progress
    from snapshotter.store import Store
    from snapshotter.store.verify import Finding, Report


@click.command()
@click.argument("names", metavar="[IMAGE]...", nargs=-1)
@click.option("--repair", is_flag=True, help="Mend what can be mended from what the store has.")
@click.option(
    "--from",
    "archive",
    type=click.Path(path_type=Path),
    help="Repair also with the layers of this archive, of any form that load reads.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show only what is wrong.")
@click.option("--format", "form", type=click.Choice(["json"]), help="Print JSON.")
@pass_session
def verify(
    session: Session,
    *,
    names: tuple[str, ...],
    repair: bool,
    archive: Path | None,
    quiet: bool,
    form: str | None,
) -> None:
    """Check every digest, chunk, index and row of the store, or of what IMAGEs need.

    Nothing is changed without --repair. The exit code is 0 if nothing is wrong (any more).
    """
    from snapshotter.store import Store  # noqa: PLC0415

    progress: Progress | None = progress_for(sys.stderr) or _tell
    if quiet or form == "json":
        progress = None
    # Nothing is swept before it is known what belongs to something.
    with Store.open(session.root, sweeping=False) as store, _layers_of(archive, store) as spare:
        wanted = repair or archive is not None
        report = store.verify(names, repair=wanted, spare=spare, progress=progress)
    if form == "json":
        click.echo(json.dumps(_document(report), ensure_ascii=False))
    else:
        for finding in report.findings:
            click.echo(_line(finding))
        if not quiet:
            click.echo(_summary(report))
    if not report.is_sound:
        raise click.exceptions.Exit(FAILURE)


@contextmanager
def _layers_of(archive: Path | None, store: Store) -> Iterator[Store | None]:
    """A store for this while, with what an archive holds."""
    from snapshotter.archive import load  # noqa: PLC0415
    from snapshotter.store import Store  # noqa: PLC0415

    if archive is None:
        yield None
        return
    with store.session() as session, Store.open(session.directory / "spare") as spare:
        with archive.open("rb") as stream:
            load(spare, stream)
        yield spare


def _tell(layer: str, action: str, done: int, total: int | None) -> None:
    """Progress where there is no terminal: a line for each layer that is done."""
    if done == total:
        click.echo(f"{layer}: Verified", err=True)


def _line(finding: Finding) -> str:
    concerned = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (
            ("images", finding.images),
            ("containers", finding.containers),
            ("snapshots", finding.snapshots),
        )
        if names
    ]
    about = f" ({'; '.join(concerned)})" if concerned else ""
    return printable(f"{finding.state.value}: {finding.place}: {finding.problem}{about}")


def _summary(report: Report) -> str:
    states = Counter(finding.state.value for finding in report.findings)
    outcome = ", ".join(f"{count} {state}" for state, count in states.items())
    return (
        f"Verified {report.images} images, {report.containers} containers, {report.layers} layers, "
        f"{report.blobs} compressed layers: {outcome or 'nothing is wrong'}"
    )


def _document(report: Report) -> dict[str, object]:
    return {
        "Images": report.images,
        "Containers": report.containers,
        "Layers": report.layers,
        "CompressedLayers": report.blobs,
        "Findings": [
            {
                "Place": finding.place,
                "Problem": finding.problem,
                "State": finding.state.value,
                "Images": finding.images,
                "Containers": finding.containers,
                "Snapshots": finding.snapshots,
            }
            for finding in report.findings
        ],
    }
