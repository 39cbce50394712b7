"""A stand-in for CUDA graphs on a CPU."""

import torch


class StandInGraph:
    """Captured `work` of `model`: a replay runs it, and writes into the tensors that the capture has made."""

    def __init__(self, work, model):
        self.work, self.parameters, self.replays = work, list(model.parameters()), 0
        assert all(parameter.grad is None for parameter in self.parameters)
        # A capture computes nothing.
        buffers, random = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
        self.output = work()
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        torch.set_rng_state(random)
        self.gradients = [parameter.grad for parameter in self.parameters]
        for tensor in (self.output, *self.gradients):
            if tensor is not None:
                tensor.fill_(torch.nan)

    def replay(self):
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            assert parameter.grad is gradient
            parameter.grad = None
        self.output.copy_(self.work())
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if gradient is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        self.replays += 1
