"""Triton model repository: the three Triton models of a served direction, their versions and version policies."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from ctmr.errors import InputError
from ctmr.serving import interface
from ctmr.serving.export import MAX_BATCH, ServedSpec
from ctmr.system.files import new_folder, write_file
from ctmr.tracking.names import Part, candidate_name, is_candidate

GENERATOR_QUEUE = 256
"""Requests that may wait for a generator; more are refused as UNAVAILABLE."""
VOLUME_QUEUE = 16
"""Volumes that may wait; each lies whole in the server's memory."""

GRAPH = "model.onnx"
"""Of generator and range, as Triton wants it named."""
SCRIPT = "model.py"
"""The volume model's program: it follows the installed ctmr, so an upgrade can be deployed under the same number."""
SPEC = "spec.json"
"""What the version is. Its settings of deployment and lineage may be written anew under the same number."""

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
_OPTIONS = re.compile(r"^(?:optimization|model_warmup) .*\n", re.MULTILINE)
_GEOMETRY = re.compile(rf'name: "(?:{interface.ON_GRID}|{interface.TRANSLATION})" data_type: (\w+) dims: \[ ([^]]*) \]')
_POLICY = re.compile(r"^version_policy: \{ specific: \{ versions: \[ ([0-9, ]*) \] \} \}$", re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """One version of one direction, ready to be served.

    Attributes
    ----------
    model
        ``<registered name>_<direction>``, from `ctmr.tracking.names.served_name`.
    version
        MLflow's version number, as text.
    generator, range
        The exported graphs.
    spec
        What the version is.
    """

    model: str
    version: str
    generator: Path
    range: Path
    spec: ServedSpec

    def __post_init__(self) -> None:
        if not _NAME.match(self.model):
            raise InputError(
                f"{self.model!r} cannot be a Triton model; use up to 100 letters, digits, dots, dashes and underscores"
            )
        if not re.fullmatch(r"[1-9][0-9]{0,17}", self.version):
            raise InputError(f"version {self.version!r} is not a whole number above 0; use MLflow's version number")

    def as_candidate(self) -> Release:
        """Return the same version under the name that it is proven under."""
        return replace(self, model=candidate_name(self.model))

    def files(self, part: Part) -> dict[str, bytes]:
        """Return the content of the version's folder of one part; InputError when a graph is not the spec's."""
        if part is Part.VOLUME:
            script = resources.files("ctmr.serving").joinpath("backend", "volume", "model.py").read_bytes()
            return {SCRIPT: script, SPEC: self.spec.to_json().encode()}
        path = self.generator if part is Part.GENERATOR else self.range
        wanted = self.spec.generator_sha256 if part is Part.GENERATOR else self.spec.range_sha256
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); export the model again") from None
        found = hashlib.sha256(content).hexdigest()
        if found != wanted:
            raise InputError(f"{path} has sha256 {found[:12]}…, the spec says {wanted[:12]}…; export the model again")
        return {GRAPH: content}


def write_version(repository: Path, release: Release, *, reshape: bool = False) -> bool:
    """Put a version's folders of all three models into the repository.

    The version policy of a model that exists already stays as it is: the new version is served only once
    `set_versions` names it. A model that is new gets a policy that names this version.

    Parameters
    ----------
    repository
        Made if need be.
    release
        What to write. Each folder appears at once (temporary name, then rename).
    reshape
        It may have another geometry or unit than what is served: `write_configs` comes next.

    Returns
    -------
    bool
        False when the version was there already with the same content. Its script, and the settings of deployment in
        its spec, are brought up to date if need be.

    Raises
    ------
    InputError
        The version is there with other content, or the model is served at another geometry or unit.
    """
    contents = {part: release.files(part) for part in Part}
    missing = _missing_parts(repository, release, contents, reshape)
    written: list[Path] = []
    try:
        for part in missing:
            folder = repository / f"{release.model}{part}"
            folder.mkdir(parents=True, exist_ok=True)
            # Its temporary name is no number, so that no server takes the half-written folder for a version.
            with new_folder(folder / release.version) as version:
                for name, content in contents[part].items():
                    (version / name).write_bytes(content)
            written.append(folder / release.version)
            if not (folder / "config.pbtxt").exists():
                write_file(folder / "config.pbtxt", _config(release, part).encode())
    except BaseException:
        # Half a version would be refused as other content the next time.
        for version in written:
            shutil.rmtree(version, ignore_errors=True)
        raise
    for name, content in contents[Part.VOLUME].items():
        _update(repository / f"{release.model}{Part.VOLUME}" / release.version / name, content)
    _follow_interface(repository, release)
    return bool(missing)


def _follow_interface(repository: Path, release: Release) -> None:
    """Let a model that an earlier ctmr deployed have the inputs and outputs of this one, at its own versions."""
    if is_reshaped(repository, release):
        return
    for part in Part:
        config = repository / f"{release.model}{part}" / "config.pbtxt"
        policy = _POLICY.search(config.read_text())
        if policy:
            _update(config, _POLICY.sub(policy[0], _config(release, part)).encode())


def _update(file: Path, content: bytes) -> None:
    if not file.exists() or file.read_bytes() != content:
        write_file(file, content, replace=True)


def check_version(repository: Path, release: Release, *, reshape: bool = False) -> None:
    """Raise the InputError that `write_version` would raise, and write nothing."""
    _missing_parts(repository, release, {part: release.files(part) for part in Part}, reshape)


def written_spec(repository: Path, model: str, version: str) -> bytes | None:
    """Return the spec that lies beside a version; ``None`` when there is none."""
    file = repository / f"{model}{Part.VOLUME}" / version / SPEC
    return file.read_bytes() if file.exists() else None


def write_spec(repository: Path, model: str, version: str, content: bytes) -> None:
    """Put back a spec that `written_spec` returned."""
    _update(repository / f"{model}{Part.VOLUME}" / version / SPEC, content)


def configs(repository: Path, model: str) -> dict[str, str]:
    """Return part → config.pbtxt of a model; empty when it is not there."""
    files = {part.value: repository / f"{model}{part}" / "config.pbtxt" for part in Part}
    return {part: file.read_text() for part, file in files.items() if file.exists()}


def write_configs(repository: Path, model: str, texts: Mapping[str, str]) -> None:
    """Write config.pbtxt of some parts of a model that is there."""
    for part, text in texts.items():
        _update(repository / f"{model}{part}" / "config.pbtxt", text.encode())


def new_configs(release: Release) -> dict[str, str]:
    """Return part → config.pbtxt for a release alone."""
    return {part.value: _config(release, part) for part in Part}


def is_reshaped(repository: Path, release: Release) -> bool:
    """True when the model is served at another geometry or unit than the release has."""
    found, wanted = configs(repository, release.model), new_configs(release)
    return any(_geometry(part, text) != _geometry(part, wanted[part]) for part, text in found.items())


def _geometry(part: str, config: str) -> object:
    """Return what old and new must share to stand beside each other; other inputs and outputs may come."""
    if part == Part.GENERATOR:
        return without_policy(config)
    if part == Part.RANGE:
        return None
    # The extents of the answer are the image's own, so only its type counts.
    found = _GEOMETRY.findall(config)
    return found[:1], [kind for kind, _ in found[1:]]


def _missing_parts(
    repository: Path, release: Release, contents: dict[Part, dict[str, bytes]], reshape: bool
) -> list[Part]:
    if not reshape and is_reshaped(repository, release):
        raise InputError(
            f"model {release.model} is served with other channels, size or units than version {release.version} has; "
            "register this one under another name (register.name), or let it take that place with "
            "`ctmr deploy --replace-uncompared REASON`"
        )
    missing = []
    for part, files in contents.items():
        version = repository / f"{release.model}{part}" / release.version
        if not version.exists():
            missing.append(part)
        elif _content({p.name: p.read_bytes() for p in version.iterdir() if p.is_file()}) != _content(files):
            raise InputError(
                f"{version} exists with other content, and a version number stands for one content; where two MLflow "
                "registries deploy to one Triton, register under another name (register.name)"
            )
    return missing


def _content(files: Mapping[str, bytes]) -> dict[str, bytes | str]:
    """Return what makes a version, file by file; its script is code of this package."""
    found: dict[str, bytes | str] = {name: content for name, content in files.items() if name != SCRIPT}
    with suppress(InputError):
        found[SPEC] = ServedSpec.from_json(files.get(SPEC, b"").decode()).content
    return found


def versions(repository: Path, model: str) -> tuple[str, ...]:
    """Return the version numbers in the repository that have all three parts, lowest first."""
    folders = [repository / f"{model}{part}" for part in Part]
    found = [{p.name for p in f.iterdir() if p.name.isdecimal()} if f.is_dir() else set() for f in folders]
    return tuple(sorted(set.intersection(*found), key=int))


def served_versions(repository: Path, model: str, part: Part = Part.VOLUME) -> tuple[str, ...]:
    """Return the versions that a model's version policy names; empty when the model is not there."""
    config = repository / f"{model}{part}" / "config.pbtxt"
    if not config.exists():
        return ()
    found = _POLICY.search(config.read_text())
    return tuple(found[1].replace(" ", "").split(",")) if found else ()


def set_versions(repository: Path, model: str, part: Part, wanted: set[str]) -> None:
    """Rewrite the version policy of one model; the server follows at its next load of it."""
    config = repository / f"{model}{part}" / "config.pbtxt"
    text = config.read_text()
    changed = _POLICY.sub(_policy(wanted), text)
    if changed != text:
        write_file(config, changed.encode(), replace=True)


def remove_version(repository: Path, model: str, version: str) -> None:
    """Remove a version from all three models, and a model without versions altogether."""
    for part in Part:
        folder = repository / f"{model}{part}"
        shutil.rmtree(folder / version, ignore_errors=True)
        if folder.is_dir() and not any(p.name.isdecimal() for p in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def models(repository: Path) -> tuple[str, ...]:
    """Return every Triton model of the repository that a starting server should load; no leftover candidates."""
    names = {p.parent.name for p in repository.glob("*/config.pbtxt")}
    return tuple(sorted(n for n in names if not is_candidate(n)))


def served_models(repository: Path) -> tuple[str, ...]:
    """Return ``<registered name>_<direction>`` of every model whose version policy names a version."""
    found = (n.removesuffix(Part.VOLUME) for n in models(repository) if n.endswith(Part.VOLUME))
    return tuple(model for model in found if served_versions(repository, model))


def leftover_candidates(repository: Path) -> tuple[str, ...]:
    """Return the Triton models that an interrupted rollout left behind."""
    return tuple(sorted({p.parent.name for p in repository.glob("*/config.pbtxt")} - set(models(repository))))


def _config(release: Release, part: Part) -> str:
    """Return config.pbtxt. Inputs and outputs are explicit, because servers derive them differently."""
    spec = release.spec
    (height, width), c = spec.grid.size, spec.channels
    if part is Part.GENERATOR:
        backend, batch, kind, queue = "onnxruntime", MAX_BATCH, "KIND_AUTO", GENERATOR_QUEUE
        stack = f"{spec.stacked_channels}, {height}, {width}"
        inputs = [("slices", "TYPE_FP32", stack), ("range", "TYPE_FP32", f"{c}, 2")]
        outputs = [("translation", "TYPE_FP32", f"1, {height}, {width}")]
    elif part is Part.RANGE:
        backend, batch, kind, queue = "onnxruntime", 0, "KIND_AUTO", GENERATOR_QUEUE
        # Two free extents would let two negative ones agree with the bytes that were sent.
        inputs = [("volume", "TYPE_FP32", f"{c}, -1, {height}, {width}")]
        outputs = [("range", "TYPE_FP32", f"{c}, 2")]
    else:
        backend, batch, kind, queue = "python", 0, "KIND_CPU", VOLUME_QUEUE
        inputs, outputs = ([_declared(t) for t in side(spec)] for side in (interface.inputs, interface.outputs))
    # What the volume model needs depends on what is asked of it; its program says what is missing.
    optional = " optional: true" if part is Part.VOLUME else ""
    return "\n".join(
        [
            f'name: "{release.model}{part}"',
            f'backend: "{backend}"',
            f"max_batch_size: {batch}",
            *(f'input [ {{ name: "{n}" data_type: {t} dims: [ {d} ]{optional} }} ]' for n, t, d in inputs),
            *(f'output [ {{ name: "{n}" data_type: {t} dims: [ {d} ] }} ]' for n, t, d in outputs),
            f"instance_group [ {{ kind: {kind} count: 1 }} ]",
            *(_options(spec) if part is Part.GENERATOR else ()),
            f"dynamic_batching {{ default_queue_policy {{ timeout_action: REJECT max_queue_size: {queue} }} }}",
            _policy({release.version}),
            "",
        ]
    )


def _options(spec: ServedSpec) -> tuple[str, str]:
    """Return how the generator is run: by TensorRT where the server's ONNX Runtime has it and a GPU, and warmed up.

    The embedded server's backend passes TensorRT over. Building an engine takes minutes, so it is kept in the server's
    own ``/tmp``. A warm-up is answered before a version counts as loaded.
    """
    (height, width), c = spec.grid.size, spec.channels
    # The folder is of the server's container.
    engine = {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp",
    }
    parameters = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in engine.items())
    zeros = {"slices": f"{spec.stacked_channels}, {height}, {width}", "range": f"{c}, 2"}
    inputs = " ".join(
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: [ {dims} ] zero_data: true }} }}'
        for name, dims in zeros.items()
    )
    accelerator = f'gpu_execution_accelerator [ {{ name: "tensorrt" {parameters} }} ]'
    return (
        f"optimization {{ execution_accelerators {{ {accelerator} }} }}",
        f'model_warmup [ {{ name: "one slice" batch_size: 1 {inputs} }} ]',
    )


def _declared(tensor: interface.Tensor) -> tuple[str, str, str]:
    return tensor.name, f"TYPE_{tensor.triton_type}", ", ".join(map(str, tensor.dims))


def _policy(wanted: set[str]) -> str:
    return f"version_policy: {{ specific: {{ versions: [ {', '.join(sorted(wanted, key=int))} ] }} }}"


def without_policy(config: str) -> str:
    """Return a config.pbtxt without the versions that it names, and without how fast it runs: what callers meet."""
    return _POLICY.sub("", _OPTIONS.sub("", config))
