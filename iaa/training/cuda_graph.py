"""A function of tensors as one CUDA graph: the host launches one thing instead of thousands."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from iaa.training.steps import Precision

log = logging.getLogger("eat")

WARM_UP = 3  # calls before a capture, in which libraries choose their kernels and torch.compile compiles


class CudaGraph:
    """Calls `function(*inputs)`, from the fourth call in a row with inputs of the same shapes on by replay of a CUDA graph.

    function: takes and returns tensors on a GPU; it reads no Python number that changes from call to call. It may add to the
    gradients of `parameters`, which are None before each call.
    Inputs of other shapes end the graph and free its memory, as `end` does. If the function cannot be captured, the log says
    why, and it is called as ever; so it is if `enabled` is False.
    """

    def __init__(
        self, function: Callable[..., Tensor], parameters: Sequence[Tensor] = (), enabled: bool = True
    ):
        self.function, self.parameters, self.enabled = function, parameters, enabled
        self.stream: torch.cuda.Stream | None = None
        self.end()

    def end(self) -> None:
        """Free the graph; the next calls are a warm-up again."""
        self.shapes, self.calls = None, 0
        self.graph = self.inputs = self.output = self.gradients = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.enabled and [value.shape for value in inputs] != self.shapes:
            self.end()
            self.shapes = [value.shape for value in inputs]
        self.calls += 1
        if self.enabled and self.calls <= WARM_UP:
            return self._warm_up(inputs)
        if self.enabled and self.graph is None:
            self._capture(inputs)
        if not self.enabled:
            return self.function(*inputs)
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.graph.replay()
        return self.output.clone()

    def _warm_up(self, inputs: Sequence[Tensor]) -> Tensor:
        """Call the function on the stream of the capture; no graph if it waits for the device, which no capture can."""
        if not inputs[0].is_cuda:
            return self.function(*inputs)
        self.stream = self.stream or torch.cuda.Stream()
        current, is_last = torch.cuda.current_stream(), self.calls == WARM_UP
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), recorded_waits() if is_last else nullcontext([]) as waits:
            output = self.function(*inputs)
        current.wait_stream(self.stream)
        if waits:
            self._give_up(waits[0])
        return output

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [value.clone() for value in inputs]
        try:
            self.graph, self.output = capture(lambda: self.function(*self.inputs), self.stream)
            self.gradients = [parameter.grad for parameter in self.parameters]
        except RuntimeError as error:  # also torch.OutOfMemoryError
            self._give_up(str(error))
        for parameter in self.parameters:
            parameter.grad = None

    def _give_up(self, reason: str) -> None:
        self.end()
        self.enabled = False
        log.warning("warning: it goes on without a CUDA graph: %s", reason.strip().partition("\n")[0][:200])


def graph_forward(model: nn.Module, precision: Precision, enabled: bool, mirrors: bool = False) -> CudaGraph:
    """A network in evaluation mode as a CUDA graph: from its input (B, 3, H, W) to raw outputs (B, levels) float32.

    mirrors: the outputs are the mean of those for the images and for their mirror images.
    """

    def forward(images: Tensor) -> Tensor:
        with precision():
            mirrored = model(images.flip(-1)).float() if mirrors else None
            outputs = model(images).float()  # last, because an AttentionRecorder keeps the last pass
        return (outputs + mirrored) / 2 if mirrors else outputs

    return CudaGraph(forward, enabled=enabled)


def capture(work: Callable[[], Tensor], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Record `work` on the stream, without running it. Returns the graph, and the tensor that each replay writes."""
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[stream.device_index]
    before = generator.clone_state()
    try:
        # The outer context restores the current stream if the capture fails. thread_local: batches are pinned meanwhile.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            output = work()
    except RuntimeError:
        generator.graphsafe_set_state(before)  # else it counts as captured for good
        raise
    return graph, output


@contextmanager
def recorded_waits():
    """A context that collects torch's warnings of operations that wait for the device."""
    mode, found = torch.cuda.get_sync_debug_mode(), []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        found += [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
