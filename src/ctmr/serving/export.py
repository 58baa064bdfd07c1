"""Export of a translator to the two ONNX graphs that are served, and the spec that travels with them."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctmr.errors import CtmrError, InputError
from ctmr.imaging.calibration import SLICES, Calibration
from ctmr.imaging.grid import Grid
from ctmr.imaging.volume import Direction, Modality, Unit

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ctmr.networks.translator import Translator

OPSET = 18
"""Highest ONNX opset that the official Triton images in use understand."""
MAX_BATCH = 64
MAX_EXTENT = 4096
"""Longest axis of a volume whose range is measured."""
PARITY_TOLERANCE = 1e-4
"""Largest difference of ONNX Runtime from PyTorch, as a share of the target's range: 0.3 HU on a range of 3024 HU."""
PARITY_SEED = 20261121

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class ServedModality(BaseModel):
    """One end of a translation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality
    unit: Unit
    sequences: tuple[str, ...] = ()
    """MR sequence of each channel, in order; empty for CT or where unknown."""


class ServedUncertainty(BaseModel):
    """Figure of a series: what it is taken of, what it means, and which one is too large."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: int = Field(default=SLICES, ge=1)
    calibration: Calibration | None = None
    """``None``: figures are given as they are, and nothing is flagged or refused."""
    flag_above: float | None = Field(default=None, gt=0)
    """Expected error, in the target's unit, above which a finding says so."""
    refuse_above: float | None = Field(default=None, gt=0)
    """Expected error above which there is no answer."""

    @property
    def limited(self) -> bool:
        """True when every answer is held against a limit."""
        return self.calibration is not None and (self.flag_above is not None or self.refuse_above is not None)


class ServedSpec(BaseModel):
    """Description of a served version: enough to prepare an image for it and to read its answer.

    It lies beside the version in the model repository (``spec.json``) and the server itself hands it out, so that a
    client never works with the grid of another version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    direction: Direction
    source: ServedModality
    target: ServedModality
    grid: Grid
    channels: int = Field(default=1, ge=1, le=64)
    """Images a subject, which the volume model takes."""
    neighbours: int = Field(default=0, ge=0)
    """Slices on either side that the generator takes beside each one; the volume model puts the stacks together."""
    chunk: int = Field(default=8, ge=1, le=MAX_BATCH)
    """Slices that the volume model sends to the generator at a time."""
    max_voxels: int = Field(default=64 * 1024 * 1024, ge=1)
    """Larger volumes (C·D·H·W) are refused, because memory grows with the message."""
    generator_sha256: str = Sha256
    range_sha256: str = Sha256
    precision: Literal["fp32"] = "fp32"
    uncertainty: ServedUncertainty = ServedUncertainty()
    lineage: dict[str, str] = {}
    """model_name, run_id, dataset_revision, dataset_md5, code_revision, recipe, validation."""

    @model_validator(mode="after")
    def _sides_fit_the_direction(self) -> ServedSpec:
        for side, modality in ((self.source, self.direction.source), (self.target, self.direction.target)):
            if side.modality is not modality:
                raise ValueError(f"{self.direction} has {modality} there, not {side.modality}")
            if side.unit is Unit.HU and modality is not Modality.CT:
                raise ValueError("unit HU belongs to CT")
        if self.source.sequences and len(self.source.sequences) != self.channels:
            raise ValueError(f"{self.channels} channels need as many sequences, not {len(self.source.sequences)}")
        return self

    def to_json(self) -> str:
        """Return the content of ``spec.json``; equal specs give equal text."""
        # Left out where they say nothing, so that versions that are served already keep their bytes.
        silent = {"neighbours": not self.neighbours, "uncertainty": self.uncertainty == ServedUncertainty()}
        return self.model_dump_json(indent=2, exclude={key for key, left_out in silent.items() if left_out}) + "\n"

    def with_limits(self, flag_above: float | None, refuse_above: float | None) -> ServedSpec:
        """Return the same with other limits of uncertainty."""
        limits = {"flag_above": flag_above, "refuse_above": refuse_above}
        return self.model_copy(update={"uncertainty": self.uncertainty.model_copy(update=limits)})

    @property
    def content(self) -> str:
        """JSON of what a version is, without what may be set anew: how much at a time, limits, and its lineage."""
        return self.model_dump_json(exclude={"chunk", "max_voxels", "lineage", "uncertainty"})

    @property
    def stacked_channels(self) -> int:
        """Channels that the generator takes."""
        return self.channels * (2 * self.neighbours + 1)

    @classmethod
    def from_json(cls, text: str, *, where: str = "spec.json") -> ServedSpec:
        """Read ``spec.json``, or raise InputError naming the first key that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"]) or "content"
            raise InputError(f"{where}: {key}: {first['msg']}; export the model again") from None


@dataclass(frozen=True)
class ExportedFiles:
    """The exported graphs.

    Attributes
    ----------
    generator, range
        ``generator.onnx`` and ``range.onnx``.
    generator_sha256, range_sha256
        Their digests; equal weights give equal digests.
    difference
        Largest difference from PyTorch on the check's random slices, in physical units of the target.
    """

    generator: Path
    range: Path
    generator_sha256: str
    range_sha256: str
    difference: float


def export_translator(translator: Translator, channels: int, size: tuple[int, int], folder: Path) -> ExportedFiles:
    """Write ``generator.onnx`` and ``range.onnx`` and check them against PyTorch.

    Parameters
    ----------
    translator
        Any device and mode; it is copied, not changed.
    channels
        Channels C of the source.
    size
        Pixels (H, W) of the grid; the generator's graph is fixed to them.
    folder
        Made if need be; files of the same names are replaced.

    Returns
    -------
    ExportedFiles
        ``generator.onnx``: `slices` ``[N, S * C, H, W]`` (stacks of S slices, see `ctmr.networks.stacks`) and `range`
        ``[N, C, 2]`` → `translation` ``[N, 1, H, W]``, all float32 in physical units, N from 1 to 64. ``range.onnx``:
        `volume` ``[C, D, H, W]`` float32 → `range` ``[C, 2]``, any D, H, W. No path of this machine stands in the
        files.

    Raises
    ------
    CtmrError
        When ONNX Runtime differs from PyTorch by more than `PARITY_TOLERANCE` of the target's range.
    """
    import torch
    from torch.export import Dim

    from ctmr.networks.translator import RangeMeter

    height, width = size
    model = copy.deepcopy(translator).cpu().float().eval()
    meter = RangeMeter(model.source).eval()
    volume, slices, limits = _check_inputs(meter, channels, height, width, model.neighbours)
    batch = Dim("batch", min=1, max=MAX_BATCH)
    extents = {axis: Dim(name, min=1, max=MAX_EXTENT) for axis, name in ((1, "depth"), (2, "height"), (3, "width"))}
    generator_bytes = _onnx(
        model, (slices[:2], limits[:2]), ["slices", "range"], ["translation"], ({0: batch}, {0: batch})
    )
    range_bytes = _onnx(meter, (volume,), ["volume"], ["range"], (extents,))

    with torch.no_grad():
        wanted, wanted_limits = model(slices, limits).numpy(), meter(volume).numpy()
    got = _run(generator_bytes, {"slices": slices.numpy(), "range": limits.numpy()})
    got_limits = _run(range_bytes, {"volume": volume.numpy()})
    low, high = (float(x) for x in model.target_range.flatten())
    difference = float(abs(got - wanted).max())
    _require_parity("generator.onnx", difference, (high - low) * PARITY_TOLERANCE)
    span = float(abs(wanted_limits).max())
    _require_parity("range.onnx", float(abs(got_limits - wanted_limits).max()), span * PARITY_TOLERANCE)

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("generator.onnx", generator_bytes), ("range.onnx", range_bytes)):
        (folder / name).write_bytes(content)
    return ExportedFiles(
        folder / "generator.onnx",
        folder / "range.onnx",
        hashlib.sha256(generator_bytes).hexdigest(),
        hashlib.sha256(range_bytes).hexdigest(),
        difference,
    )


def _check_inputs(
    meter: nn.Module, channels: int, height: int, width: int, neighbours: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random whole numbers over the values that the units share with their storage types, and their range."""
    import torch

    from ctmr.networks.stacks import gather_stacks, stack_rows

    generator = torch.Generator().manual_seed(PARITY_SEED)
    volume = torch.randint(0, 2000, (channels, 5, height, width), generator=generator).float()
    slices = volume.transpose(0, 1).contiguous()
    if neighbours:
        # Not always: the exporter's names of nodes follow the strides, and digests follow the names.
        slices = gather_stacks(slices, stack_rows(len(slices), neighbours))
    limits: Tensor = meter(volume).expand(slices.shape[0], channels, 2).contiguous()
    return volume, slices, limits


def _onnx(
    module: nn.Module, args: tuple[Tensor, ...], inputs: list[str], outputs: list[str], shapes: tuple[Any, ...]
) -> bytes:
    import onnx
    import torch

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise CtmrError("PyTorch's ONNX exporter gave no program; install the torch and onnxscript of constraints.txt")
    proto = program.model_proto
    _scrub(proto)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _scrub(proto: Any) -> None:
    """Remove what the exporter notes for debugging: stack traces with this machine's paths, and object names."""
    graph = proto.graph
    for owner in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")


def _run(content: bytes, feed: dict[str, Any]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def _require_parity(name: str, difference: float, tolerance: float) -> None:
    # Written so that NaN fails too.
    if not difference <= tolerance:
        raise CtmrError(
            f"{name} differs from PyTorch by {difference:g}, at most {tolerance:g} is allowed; "
            "check the generator for operators that ONNX exports differently"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks (missing torchvision, axis names) off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
