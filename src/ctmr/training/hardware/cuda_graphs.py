"""CUDA graphs: work on tensors of fixed shape is recorded once and launched at once ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EAGER_CALLS = 3
"""Calls before the recording: libraries choose their kernels and optimisers make their state in these."""

Results = tuple[Mapping[str, Tensor], tuple[Tensor, ...]]
"""Scalars by name, and images."""
Work = Callable[..., Results]


class Recording(Protocol):
    """Launch that can be repeated."""

    def replay(self) -> None:
        """Do the recorded work again, on the tensors of the recording."""


class Recorder(Protocol):
    """Makes recordings."""

    def aside(self, work: Callable[[], Results]) -> Results:
        """Do work where it may be recorded later."""

    def record(self, work: Callable[[], None]) -> Recording:
        """Record work without doing it."""


@dataclass(frozen=True)
class _Recorded:
    recording: Recording
    inputs: tuple[Tensor | None, ...]
    scalars: Tensor
    names: tuple[str, ...]
    images: tuple[Tensor, ...]


class Replay:
    """Runs work eagerly `EAGER_CALLS` times, then records it and launches the recording.

    Everything that changes between calls must be an input: a number that the host holds is recorded as it is. What
    work changes in place, weights and optimisers' state, it changes in each launch too.

    Parameters
    ----------
    recorder
        CUDA's, unless given.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder: Recorder = CudaRecorder() if recorder is None else recorder
        self._calls: dict[str, int] = {}
        self._recorded: dict[str, _Recorded] = {}

    def __call__(self, name: str, work: Work, *inputs: Tensor | None) -> Results:
        """Return what `work` makes of the inputs.

        Parameters
        ----------
        name
            Of this work: equal names mean equal work on equal shapes.
        work
            Takes `inputs`.
        """
        calls = self._calls.get(name, 0)
        self._calls[name] = calls + 1
        if calls < EAGER_CALLS:
            return self._recorder.aside(lambda: work(*inputs))
        if name not in self._recorded:
            self._recorded[name] = self._begin(work, inputs)
        known = self._recorded[name]
        for kept, given in zip(known.inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        known.recording.replay()
        # The next launch writes over its own results.
        scalars = dict(zip(known.names, known.scalars.clone().unbind(), strict=True))
        return scalars, tuple(image.clone() for image in known.images)

    def _begin(self, work: Work, inputs: tuple[Tensor | None, ...]) -> _Recorded:
        kept = tuple(None if given is None else given.clone() for given in inputs)
        out: list[tuple[Tensor, tuple[str, ...], tuple[Tensor, ...]]] = []

        def recorded() -> None:
            scalars, images = work(*kept)
            out.append((torch.stack([value.detach() for value in scalars.values()]), tuple(scalars), images))

        recording = self._recorder.record(recorded)
        return _Recorded(recording, kept, *out[0])


class CudaRecorder:
    """CUDA graphs on a stream of their own: autograd remembers the stream of a weight's first gradient."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def aside(self, work: Callable[[], Results]) -> Results:
        """Do work on that stream, after what was begun before and before what will be begun."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            out = work()
        current.wait_stream(self._stream)
        return out

    def record(self, work: Callable[[], None]) -> Recording:
        """Record work as a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may write checkpoints meanwhile: only this one's calls are held against the rules of recording.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph
