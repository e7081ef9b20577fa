"""A function of fixed tensors, on a GPU as a CUDA graph: all its kernels are launched at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

WARM_UP_RUNS = 3  # before a capture: libraries allocate their workspaces


class Replayed:
    """Calls a function, which reads and writes the same tensors each time, and writes the same into them."""

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        """Nothing runs yet.

        Args:
            function: its tensors are on the device, nothing is read back from there, and nothing that it allocates
                is used by others; called any number of times in a row it leaves what one call leaves.
            device: on CUDA the function is captured at the first call; anywhere else it is just called.
        """
        self.function = function
        self._device = device
        self._replay: Callable[[], None] | None = None

    @property
    def is_graph(self) -> bool:
        """Whether it has been captured."""
        return self._replay not in (None, self.function)

    def __call__(self) -> None:
        """Run it."""
        if self._device.type != "cuda":
            self.function()
            return
        with torch.cuda.device(self._device):  # streams and graphs are the current device's
            if self._replay is None:
                self._replay = self._replayable()
            self._replay()

    def _replayable(self) -> Callable[[], None]:
        """The function as a graph, or as it is where none can be captured: a driver or a kernel may forbid that."""
        try:
            return self._captured().replay
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            warnings.warn(f"frames are made without a CUDA graph, and slower: {reason}", stacklevel=2)
            return self.function

    def _captured(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.function()
        return graph
