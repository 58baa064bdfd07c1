"""Operations of `ctmr dataset`: add, list, show, verify, push, pull."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.datasets.build import Built, build
from ctmr.datasets.deid.pseudonyms import DEFAULT_FILE, IdentityFile, refuse_below
from ctmr.datasets.dvc.commands import TRANSFER_LIMIT_S, CommandFailed, dvc
from ctmr.datasets.dvc.objects import Fault, Objects, ObjectState, Where, read_pinned, sentence
from ctmr.datasets.dvc.remotes import preflight, remote_of
from ctmr.datasets.importers import ImportPlan, plan
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.datasets.repository import NAME, DataRepository, same_remote
from ctmr.datasets.scanning import scanned
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.imaging.volume import Modality
from ctmr.io.series_kinds import Kind
from ctmr.system.files import new_folder
from ctmr.system.progress import Progress


@dataclass(frozen=True)
class AddOptions:
    """Choices for taking in a source.

    Attributes
    ----------
    remote, endpoint
        Where a new repository pushes to; empty: a folder beside it, ``<repository>-remote``.
    first
        With layout ``paired`` and folders A and B: the modality of A.
    identity_file
        Key and map, kept by the hospital.
    license, description
        Text for the index, as it is.
    skip_refused
        Leave out what cannot be de-identified, or is neither CT nor MR by its path, instead of refusing the source.
    replace
        Commit a new version of a dataset that is there; the old revision stays.
    keep
        Kinds of series that are taken in although they are no anatomical images of a head.
    """

    layout: FolderLayout = FolderLayout.AUTO
    remote: str = ""
    endpoint: str = ""
    first: Modality | None = None
    dates: Dates = Dates.REMOVE
    identity_file: Path = DEFAULT_FILE
    license: str = ""
    description: str = ""
    skip_refused: bool = False
    replace: bool = False
    keep: frozenset[Kind] = frozenset()


def add(name: str, source: Path, root: Path, options: AddOptions, report: Progress) -> dict[str, Any]:
    """De-identify a folder of images and commit it as a dataset; makes the repository when it is not there.

    Returns
    -------
    dict
        ``name revision md5 size files changed``, the index, and ``named``: path and reason of each series and file that
        was left out, for the person who asked.

    Raises
    ------
    InputError
        A name, source, layout or image that cannot be used.
    EnvironmentFault
        git, DVC or the disk fail; the repository is as it was before.
    """
    source, root = source.absolute(), root.absolute()
    _check_places(name, source, root)
    remote = options.remote or str(root.with_name(f"{root.name}-remote"))
    places = {"data repository": root, "source": source}
    refuse_below(options.identity_file, places if "://" in remote else places | {"remote": Path(remote)})
    exists = root.is_dir() and any(root.iterdir())
    repository = DataRepository.open(root) if exists else None
    if repository is not None:
        if options.remote or options.endpoint:
            same_remote(repository, options.remote, options.endpoint)
        _check_name(repository, name, options.replace)
    identities = IdentityFile(options.identity_file)
    report("looking through the source", 0.0)
    with scanned(source, identities.path) as scan:
        if scan.unreadable and not options.skip_refused:
            raise InputError(
                f"{scan.unreadable[0]} is a damaged DICOM file ({len(scan.unreadable)} in all), which cannot be "
                "de-identified; export it again, or leave such files out with --skip-refused"
            )
        planned = plan(scan, options.layout, first=options.first, skip_unknown=options.skip_refused, keep=options.keep)
        planned.name_alike(identities.subjects)
        if scan.unreadable:
            planned.left_out["damaged DICOM file"] += len(scan.unreadable)
        if repository is not None:
            with repository.locked():
                return _add(repository, name, planned, identities, options, report)
        return _add_to_new(root, remote, name, planned, identities, options, report)


def _add_to_new(
    root: Path,
    remote: str,
    name: str,
    planned: ImportPlan,
    identities: IdentityFile,
    options: AddOptions,
    report: Progress,
) -> dict[str, Any]:
    """Make the repository complete under another name: a killed or failed command leaves none behind."""
    with new_folder(root) as fresh:
        try:
            repository = DataRepository.make(fresh, remote, options.endpoint)
            with repository.locked():
                return _add(repository, name, planned, identities, options, report)
        except OSError as error:
            raise EnvironmentFault(f"{root} could not be made: {error.strerror}; nothing was committed") from None


def _add(
    repository: DataRepository,
    name: str,
    planned: ImportPlan,
    identities: IdentityFile,
    options: AddOptions,
    report: Progress,
) -> dict[str, Any]:
    _check_name(repository, name, options.replace)
    data = repository.staging() / "data"
    try:
        built = _built(planned, data, name, identities, options, report)
        index = built.index | {"license": options.license, "description": options.description}
        report("git + DVC", 0.95)
        verb = "Replace" if name in repository.names() else "Add"
        message = f"{verb} dataset {name}: {index['images']} images of {index['subjects']} subjects"
        changed = repository.commit(name, data, index, message)
    finally:
        repository.discard_staging()
    pinned = read_pinned(repository.root, name)
    return {
        "name": name,
        "revision": repository.revisions(name)[0][0],
        "md5": pinned.md5,
        "size": pinned.size,
        "files": pinned.files,
        "changed": changed,
        "index": index,
        "named": planned.named,
    }


def _built(
    planned: ImportPlan, data: Path, name: str, identities: IdentityFile, options: AddOptions, report: Progress
) -> Built:
    """Build a dataset's folder and note in the identity file who is in it."""
    try:
        built = build(
            planned,
            data,
            name=name,
            key=identities.key,
            dates=options.dates,
            skip_refused=options.skip_refused,
            report=report,
        )
        identities.add(built.originals)
        return built
    except (OSError, EnvironmentFault) as error:
        what = f"dataset {name} could not be written: {error.strerror}" if isinstance(error, OSError) else error
        raise EnvironmentFault(f"{what}; nothing was committed") from None


def _check_name(repository: DataRepository, name: str, replace: bool) -> None:
    is_new = name not in repository.names()
    if not is_new and not replace:
        raise InputError(
            f"{repository.root} has a dataset {name} already; with --replace a new version is committed beside the old"
        )
    if is_new and (repository.root / name).exists():
        raise InputError(f"{repository.root / name} is there but no dataset; choose another name or remove it")


def list_datasets(root: Path) -> list[dict[str, Any]]:
    """Return every dataset of a repository with its current revision, md5, size and number of revisions."""
    repository = DataRepository.open(root.absolute())
    rows = []
    for name in repository.names():
        pinned, revisions = read_pinned(root, name), repository.revisions(name)
        index = repository.index(name)
        rows.append(
            {
                "name": name,
                "revision": revisions[0][0],
                "date": revisions[0][1],
                "md5": pinned.md5,
                "size": pinned.size,
                "files": pinned.files,
                "images": index.get("images"),
                "subjects": index.get("subjects"),
                "revisions": [r for r, _ in revisions],
            }
        )
    return rows


def show(name: str, root: Path, revision: str = "") -> dict[str, Any]:
    """Return what a dataset holds at a revision: md5, size, counts and the rest of its index."""
    repository = DataRepository.open(root.absolute())
    pinned = read_pinned(root, name, revision or "HEAD")
    resolved = _resolved(repository, name, revision)
    return {
        "name": name,
        "revision": resolved,
        "md5": pinned.md5,
        "size": pinned.size,
        "files": pinned.files,
        "index": repository.index(name, revision or "HEAD"),
    }


def verify(
    name: str, root: Path, report: Progress, *, revision: str = "", places: tuple[Where, ...] = tuple(Where)
) -> tuple[str, int, list[Fault]]:
    """Look at every object of a dataset in DVC's cache and in the remote.

    Returns
    -------
    tuple
        Revision, number of files, and every object that is missing or corrupted.

    Raises
    ------
    InputError, EnvironmentFault
        No such dataset; a remote that cannot be read.
    """
    repository = DataRepository.open(root.absolute())
    pinned = read_pinned(root, name, revision or "HEAD")
    objects = Objects(root, pinned)
    return (
        _resolved(repository, name, revision),
        pinned.files,
        [fault for where in places for fault in objects.check(where, report)],
    )


def push(name: str, root: Path, report: Progress, *, revision: str = "", repair: bool = False) -> int:
    """Send a dataset's objects to the remote and look that each arrived; goes on where a stopped push was.

    Parameters
    ----------
    repair
        Compare every object of the remote with its md5, and put the cache's copy in place of corrupted ones.

    Returns
    -------
    int
        Objects that DVC took for present and that had to be sent again.

    Raises
    ------
    CtmrError
        The cache itself lacks an object or holds a corrupted one: it is named, and nothing is sent.
    EnvironmentFault
        The remote cannot be written.
    """
    repository = DataRepository.open(root.absolute())
    pinned = read_pinned(root, name, revision or "HEAD")
    with repository.locked():
        preflight(remote_of(root), write=True)
        objects = Objects(root, pinned)
        damaged = objects.check(Where.CACHE, report)
        if damaged:
            raise CtmrError(f"{sentence(name, damaged)}; nothing was pushed: pull it from a remote that is whole")
        if not revision:
            _transfer(repository, "push", name)
        # DVC remembers what it once saw in the remote, and does not look whether it is still there.
        faults = objects.check(Where.REMOTE, report, content=repair)
        objects.mend_remote(faults, report)
        left = objects.check(Where.REMOTE, report, content=False)
        if left:
            raise EnvironmentFault(f"{sentence(name, left)} after the push; try again")
        return len(faults)


def pull(name: str, root: Path, report: Progress) -> None:
    """Get a dataset's objects from the remote, and check each; goes on where a stopped pull was.

    Raises
    ------
    CtmrError
        The remote lacks an object or holds a corrupted one: it is named, and does not stay in the cache.
    EnvironmentFault
        The remote cannot be read.
    """
    repository = DataRepository.open(root.absolute())
    objects = Objects(root, read_pinned(root, name))
    with repository.locked():
        preflight(remote_of(root), write=False)
        for fault in objects.check(Where.CACHE, report):
            if fault.state is ObjectState.CORRUPTED:
                objects.forget(fault)
        try:
            _transfer(repository, "pull", name)
        except CommandFailed:
            faults = objects.check(Where.REMOTE, report)
            if not faults:
                raise
            raise CtmrError(f"{sentence(name, faults)}; push it again from a copy that is whole") from None
        faults = objects.check(Where.CACHE, report)
        if faults:
            for fault in faults:
                objects.forget(fault)
            raise CtmrError(f"{sentence(name, faults)} as it came from the remote; push it again from a whole copy")


def _transfer(repository: DataRepository, verb: str, name: str) -> None:
    dvc(repository.root, verb, "--quiet", f"{name}.dvc", limit_s=TRANSFER_LIMIT_S)


def _resolved(repository: DataRepository, name: str, revision: str) -> str:
    """The full hash of a revision; without one, of the commit that last changed the dataset."""
    from ctmr.datasets.dvc.commands import git

    if revision:
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        return git(repository.root, *words).strip()
    return repository.revisions(name)[0][0]


def _check_places(name: str, source: Path, root: Path) -> None:
    if not NAME.fullmatch(name):
        raise InputError(f"dataset name {name!r}: a letter, then letters, digits, - and _, all lower case, at most 63")
    if not source.is_dir():
        raise InputError(f"there is no folder {source}; give the folder that holds the images")
    here, there = source.resolve(), root.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise InputError(f"source {source} and repository {root} lie in each other; keep originals apart from it")
    if root.is_dir() and any(root.iterdir()) and not (root / ".dvc").is_dir():
        raise InputError(f"{root} is not empty and no git + DVC repository; give one, or a new folder")
