"""`ctmr dataset`: datasets in a git + DVC repository, de-identified on the way in."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctmr.cli.options import AsJson, Keep, Revision
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.errors import InputError

if TYPE_CHECKING:
    from ctmr.cli.console import Console
    from ctmr.imaging.volume import Modality

app = typer.Typer(
    help="Datasets in a git + DVC repository: de-identified on the way in, pinned by revision.", no_args_is_help=True
)


class CheckedStore(StrEnum):
    """Places where objects are looked at."""

    CACHE = "cache"
    REMOTE = "remote"
    BOTH = "both"


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset.")]
Repo = Annotated[Path, typer.Option("--repo", help="The git + DVC repository.")]


@app.command()
def add(
    name: Name,
    source: Annotated[Path, typer.Argument(metavar="SOURCE_FOLDER", help="Folder of images; it is only read.")],
    repo: Repo,
    layout: Annotated[FolderLayout, typer.Option(help="How the source is laid out.")] = FolderLayout.AUTO,
    first: Annotated[
        str, typer.Option(metavar="CT|MR", help="With --layout paired and folders A and B: what A holds.")
    ] = "",
    remote: Annotated[
        str, typer.Option(help="Of a new repository: folder or s3://bucket/prefix; default REPO-remote.")
    ] = "",
    endpoint_url: Annotated[str, typer.Option(help="Address of an S3 store other than Amazon's.")] = "",
    dates: Annotated[
        Dates, typer.Option(help="Remove dates, or move a patient's by one secret number of days.")
    ] = Dates.REMOVE,
    identity_file: Annotated[
        Path | None, typer.Option(help="Who is who, kept by the hospital; default ~/.ctmr-identities.")
    ] = None,
    license_file: Annotated[Path | None, typer.Option(help="Licence of the data, for the index.")] = None,
    description: Annotated[str, typer.Option(help="One line for the index.")] = "",
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="Leave out what cannot be de-identified or told apart, and count it.")
    ] = False,
    keep: Keep = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Commit a new version of a dataset that is there already.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """De-identify a folder of images and commit it as a dataset; prints the revision."""
    from ctmr.datasets.deid.pseudonyms import DEFAULT_FILE
    from ctmr.datasets.operations import AddOptions
    from ctmr.datasets.operations import add as run
    from ctmr.io.series_kinds import kinds_of

    licence = _text_of(license_file)
    console, identities = _console(json_), identity_file or DEFAULT_FILE
    done = run(
        name,
        source,
        repo,
        AddOptions(
            layout=layout,
            remote=remote,
            endpoint=endpoint_url,
            first=_modality_of(first),
            dates=dates,
            identity_file=identities,
            license=licence,
            description=description,
            skip_refused=skip_refused,
            replace=replace,
            keep=kinds_of(keep.split(",")),
        ),
        console.report_for("dataset"),
    )
    if json_:
        console.document(done)
        return
    _added(console, name, done)
    console.say(f"  who is who: {identities.expanduser()}, to be kept by the hospital alone")
    console.say(f"  next: ctmr dataset push {name} --repo {repo}; ctmr run --dataset {repo} --path {name}")


@app.command(name="list")
def list_(repo: Repo, json_: AsJson = False) -> None:
    """The datasets of a repository with their revisions."""
    from ctmr.datasets.operations import list_datasets

    console = _console(json_)
    rows = list_datasets(repo)
    if json_:
        console.document({"datasets": rows})
        return
    for row in rows:
        held = "" if row["images"] is None else f"{_of(row)}, "
        console.say(f"  {row['name']:<20} {row['revision'][:12]}  {row['date'][:10]}  {held}{_bytes(row['size'])}")
        for revision in row["revisions"][1:]:
            console.say(f"  {'':<20} {revision[:12]}  (before)")


@app.command()
def show(name: Name, repo: Repo, revision: Revision = "", json_: AsJson = False) -> None:
    """Show what a dataset holds: counts by split, modality and sequence, revision, md5, size."""
    from ctmr.datasets.build import NOT_STATED
    from ctmr.datasets.operations import show as look

    console = _console(json_)
    found = look(name, repo, revision)
    if json_:
        console.document(found)
        return
    console.say(f"dataset {name}: revision {found['revision']}")
    console.say(f"  md5 {found['md5']}, {_number(found['files'], 'file')}, {_bytes(found['size'])}")
    index = found["index"]
    if not index:
        console.say(f"  no index: {name}.json is not in this revision, so `ctmr dataset add` did not make it")
        return
    _counts(console, index)
    done = index["deidentification"]
    faces, unknown = (done["recognizable_visual_features"].get(k, 0) for k in ("YES", NOT_STATED))
    console.say(f"  layout {index['layout']}; dates {done['dates']}")
    if faces:
        show_faces = f"{faces} series {'shows a face' if faces == 1 else 'show faces'} that can be recognised"
        console.say(f"  {show_faces}: deface before giving images away")
    if unknown:
        volumes = _number(unknown, "volume")
        console.say(f"  {volumes} cannot say whether faces were removed: look before giving any away")
    for text in (index.get("description"), *str(index.get("license", "")).strip().splitlines()[:1]):
        if text:
            console.say(f"  {text}")


@app.command()
def verify(
    name: Name,
    repo: Repo,
    revision: Revision = "",
    where: Annotated[
        CheckedStore, typer.Option(help="Look in DVC's cache, in the remote, or in both.")
    ] = CheckedStore.BOTH,
    json_: AsJson = False,
) -> None:
    """Look at every object in cache and remote; exit code 1 when one is missing or corrupted, and its name."""
    from ctmr.datasets.dvc.objects import Where, sentence
    from ctmr.datasets.operations import verify as run

    console = _console(json_)
    places = tuple(Where) if where is CheckedStore.BOTH else (Where(where.value),)
    found, files, faults = run(name, repo, console.report_for("verify"), revision=revision, places=places)
    if json_:
        rows = [f.to_json() for f in faults]
        console.document({"name": name, "revision": found, "files": files, "places": places, "faults": rows})
    elif not faults:
        console.say(f"dataset {name} at {found[:12]}: {files} files present and whole in {' and '.join(places)}")
    if faults:
        for fault in faults if not json_ else []:
            console.say(f"  {fault.state:<10} {fault.where:<7} {fault.path}  {fault.object}")
        print(f"ctmr: {sentence(name, faults)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def push(
    name: Name,
    repo: Repo,
    revision: Revision = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Read the remote, and send again what is corrupted there.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Send a dataset to the remote; a push that was stopped goes on where it was."""
    from ctmr.datasets.operations import push as run

    console = _console(json_)
    again = run(name, repo, console.report_for("push"), revision=revision, repair=repair)
    _done(console, json_, name, "pushed", {"sent_again": again})


@app.command()
def pull(name: Name, repo: Repo, json_: AsJson = False) -> None:
    """Get a dataset from the remote and check it; a pull that was stopped goes on where it was."""
    from ctmr.datasets.operations import pull as run

    console = _console(json_)
    run(name, repo, console.report_for("pull"))
    _done(console, json_, name, "pulled", {})


def _console(as_json: bool) -> Console:
    from ctmr.cli.console import Console
    from ctmr.system.home import quiet_libraries

    quiet_libraries()
    return Console(as_json=as_json)


def _done(console: Console, as_json: bool, name: str, what: str, more: Mapping[str, Any]) -> None:
    if as_json:
        console.document({"name": name, "done": what, **more})
    else:
        console.say(f"dataset {name} {what}, every object is there")


def _modality_of(first: str) -> Modality | None:
    from ctmr.imaging.volume import Modality

    if first not in ("", *Modality):
        raise InputError(f"--first {first!r}: folder A holds CT or MR")
    return Modality(first) if first else None


def _text_of(license_file: Path | None) -> str:
    if license_file is None:
        return ""
    if not license_file.is_file():
        raise InputError(f"--license-file {license_file} is no file; give the licence as text")
    return license_file.read_text(encoding="utf-8", errors="replace")


def _added(console: Console, name: str, done: Mapping[str, Any]) -> None:
    from ctmr.io.series_kinds import kind_of_reason

    console.say(f"dataset {name} {'added' if done['changed'] else 'unchanged'}: revision {done['revision']}")
    _counts(console, done["index"])
    for reason, count in done["index"]["left_out"].items():
        console.say(f"  left out: {count} × {reason}")
        for where, why in done["named"]:
            if why == reason:
                console.say(f"    {where}")
    if any(kind_of_reason(reason) for reason in done["index"]["left_out"]):
        console.say("  --keep KIND takes a kind in all the same (docs/datasets.md lists them)")


def _counts(console: Console, index: Mapping[str, Any]) -> None:
    rows: Sequence[Mapping[str, Any]] = index["counts"]
    for row in rows:
        what = f"{row['modality']} {row['sequence']}".strip()
        console.say(f"  {row['split'] or 'no split':<9} {what:<9} {_of(row)}")
    more = ", ".join(_number(index[k], k[:-1]) for k in ("pairs", "masks") if index[k] or k == "pairs")
    phantoms = f", {_number(index['phantoms'], 'image')} of phantoms" if index.get("phantoms") else ""
    console.say(f"  together {_of(index)}, {more}{phantoms}")
    if (studies := index.get("studies_as_subjects", 0)) > 1:
        console.say(f"  {studies} subjects are studies without a PatientID of their own: one person may be several")


def _of(row: Mapping[str, Any]) -> str:
    return f"{_number(row['images'], 'image')} of {_number(row['subjects'], 'subject')}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
