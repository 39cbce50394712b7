"""The lines that a GPU would run, on a CUDA device that is not there: nothing waits for it, mixes hosts, or has a wrong type."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from common import make_toy
from small import SMALL
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import fake_cuda
from benchmarks.fake_cuda import DEVICE
from dataset import Batch, to_input
from models import RefinementSchedule, calibrate_points, ways
from models.attention import DEFORMABLE_WAYS
from models.weights import POINT_MODES, REFINEMENTS
from training import engine
from training.engine import Trainer
from training.steps import Precision, Schedule, Stepper, make_optimizer
from util import emd_loss, make_loss

aten = torch.ops.aten
HALVES = (torch.bfloat16, torch.float16)
PRECISIONS = (None, *HALVES)
EFFICIENT = aten._scaled_dot_product_efficient_attention
EFFICIENT_BACKWARD = aten._scaled_dot_product_efficient_attention_backward
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward)
PRODUCTS += (EFFICIENT, EFFICIENT_BACKWARD)
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
BY_INDEX = (aten.index, aten.index_put, aten.index_put_)
COPIES = (aten._to_copy, aten.copy_)


class Steady(TorchDispatchMode):
    """A context in which an operation that a training step on a GPU must not have is an AssertionError.

    dtype: of matrix products; those of coordinates, which have a side of 2, are float32; None: any. dense: batched
    products may be in float32, too.
    """

    def __init__(self, dtype: torch.dtype | None = None, dense: bool = False):
        super().__init__()
        self.dtype, self.dense, self.products = dtype, dense, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace in ("aten", "eat"):
            with self:  # in inference mode a linear layer, and more, comes whole
                if (found := function.decompose(*args, **kwargs)) is not NotImplemented:
                    return found
            operation = function.overloadpacket
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.check_waiting(function, operation, args, kwargs)
            if operation not in COPIES:
                assert len({t.device for t in tensors}) <= 1, f"{function} mixes host and device"
            self.check_types(function, operation, tensors)
        return function(*args, **kwargs)

    def check_waiting(self, function, operation, args, kwargs) -> None:
        if operation in COPIES:
            to = args[0].device if operation is aten.copy_ else kwargs.get("device") or args[0].device
            source = args[1] if operation is aten.copy_ else args[0]
            later = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            assert later or source.device.type == to.type, f"{function} waits, {source.device} to {to}"
        elif operation in BY_INDEX:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{function} by a mask waits for its size"
        else:
            assert not WAITS & set(function.tags), f"{function} waits for a number"

    def check_types(self, function, operation, tensors) -> None:
        if operation is aten.grid_sampler_2d:
            assert tensors[1].dtype == torch.float32, f"{function}: coordinates in {tensors[1].dtype}"
        if operation in PRODUCTS and self.dtype:
            coordinates = operation in (aten.mm, aten.addmm) and any(2 in t.shape for t in tensors)
            wrong = {t.dtype for t in tensors} - {torch.float32 if coordinates else self.dtype}
            if (self.dense and operation is aten.bmm) or operation is EFFICIENT_BACKWARD:
                wrong -= {
                    torch.float32,
                    torch.int64,
                }  # by hat functions; the kernel's own sums and random state
            assert not wrong, f"{function} of {[tuple(t.shape) for t in tensors]} in {wrong}"
            self.products += not coordinates


@pytest.fixture
def fake():
    with fake_cuda.fake_cuda():
        yield


def on_device(*shape, dtype=None):
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def network(**overrides):
    """The SMALL network on the fake device, in training."""
    config = SMALL | {"drop_path_rate": 0.5, "attn_drop_rate": 0.0, "drop_rate": 0.1} | overrides
    with unset_fake_temporarily():
        model = make_toy(**config)
    return fake_cuda.moved(model).train()


def batch(size, count=3):
    """As the loader makes it, on the host."""
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    return Batch(pixels, torch.empty(count, dtype=torch.bool), torch.empty(count, 10), ["a"] * count)


BAD = {
    "item": lambda: on_device(1).item(),
    "truth": lambda: bool(on_device(3).sum() > 0),
    "list": lambda: on_device(3).tolist(),
    "to the host": lambda: on_device(3).cpu(),
    "into the host's": lambda: torch.empty(3).copy_(on_device(3)),
    "pageable": lambda: torch.empty(3).to(DEVICE),
    "a number sent": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "nonzero": lambda: on_device(3).nonzero(),
    "mask": lambda: on_device(3)[on_device(3) > 0],
    "mask filled": lambda: on_device(3).__setitem__(on_device(3) > 0, on_device(1)),
    "equal": lambda: torch.equal(on_device(3), on_device(3)),
    "mixed": lambda: on_device(3) + torch.empty(3),
    "mixed with a number": lambda: on_device(3) * torch.empty(()),
    "index on the host": lambda: on_device(3)[torch.empty(2, dtype=torch.int64)],
    "float32 product": lambda: on_device(3, 4) @ on_device(4, 5),
    "float32 convolution": lambda: F.conv2d(on_device(1, 3, 8, 8), on_device(4, 3, 3, 3)),
    "coarse coordinates": lambda: (
        on_device(6, 4, dtype=torch.bfloat16) @ on_device(4, 2, dtype=torch.bfloat16)
    ),
    "other half": lambda: on_device(3, 4, dtype=torch.float16) @ on_device(4, 5, dtype=torch.float16),
    "coarse grid": lambda: aten.grid_sampler_2d(
        *(on_device(1, 4, 4, n, dtype=torch.bfloat16) for n in (4, 2)), 0, 0, True
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_a_step_must_not_do_is_seen(kind, fake):
    with pytest.raises(AssertionError), Steady(torch.bfloat16):
        BAD[kind]()


def test_what_a_step_may_do_is_not(fake):
    halves = [on_device(3, 4, dtype=torch.bfloat16), on_device(4, 5, dtype=torch.bfloat16)]
    with Steady(torch.bfloat16) as seen:
        halves[0] @ halves[1]
        torch.empty(3).to(DEVICE, non_blocking=True) * 2.0
        on_device(3)[on_device(2, dtype=torch.int64)]
        on_device(6, 4) @ on_device(4, 2)  # coordinates
    assert seen.products == 1


def test_backward_pass_is_that_of_torch(golden, golden_images):
    """On numbers of the CPU: the gradients that torch's engine gives, here with blocks that are run again, too."""
    ours, plain = make_toy(), make_toy()
    ours.set_grad_checkpointing()
    for model, backward in ((ours, fake_cuda.backward), (plain, torch.Tensor.backward)):
        ways.set_ways(model, "dense")
        backward(emd_loss(model.train()(golden_images[:2]), golden["input/target"][:2]))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.parametrize("points", POINT_MODES)
def test_forward_pass_of_every_mode(points, refinement, fake):
    model = network(interest_points=points, refinement=refinement)
    images = on_device(3, 3, model.img_size, model.img_size)
    for dtype, training in zip(PRECISIONS, (False, True, False), strict=True):
        with Precision(DEVICE, dtype)(), Steady(dtype) as seen:
            prediction, where = model.train(training)(images, return_points=True)
        assert prediction.shape == (3, 10)
        assert (prediction.dtype, prediction.device) == (dtype or torch.float32, DEVICE)
        assert {t.dtype for layer in where.values() for t in layer} == {torch.float32}
        assert {t.device for layer in where.values() for t in layer} == {DEVICE}
        assert dtype is None or seen.products > 15


CASES = [("sampled", None), ("sampled", torch.float16)]
CASES += [(way, torch.bfloat16) for way in (*DEFORMABLE_WAYS, "checkpointed")]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_training_step_by_every_way(way, dtype, fake):
    """The product's own step: input, forward, loss, backward, clipping, the fused optimiser, the losses' sums."""
    model = network(interest_points="running", refinement="scheduled", drop_rate=0.0)
    if way == "checkpointed":
        model.set_grad_checkpointing()
    else:
        ways.set_ways(model, {name: way if name[0] == "D" else "explicit" for name in ways.layers(model)})
    training, photos = made(model, dtype), batch(model.img_size)
    to_input(photos, DEVICE)  # the first time mean and deviation are sent
    with Steady(dtype, dense=way == "dense") as seen:
        training._batch(photos, 0, 2)
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        assert {p.grad.device for p in model.parameters()} == {DEVICE}
        training._batch(photos, 1, 2)
    assert dtype is None or seen.products > 100
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert [(loss.dtype, loss.device) for _, loss, _ in training.unread] == [(torch.float32, DEVICE)] * 2


def made(model, dtype):
    """A Trainer whose loss is watched: it must be of float32."""

    def criterion(prediction, target):
        assert prediction.dtype == target.dtype == torch.float32
        loss = emd_loss(prediction, target)
        assert loss.dtype == torch.float32
        return loss

    stepper = Stepper(
        model,
        make_optimizer(model, "adamw", 0.05),
        Schedule(1e-4, 2, "cosine"),
        Precision(DEVICE, dtype),
        accumulate=2,
        clip_grad=1.0,
        refinement=RefinementSchedule(),
    )
    return Trainer(model, stepper, criterion, None, progress=SimpleNamespace(epoch=0))


@pytest.mark.parametrize("name", ["emd", "nima_r1", "nima_r2", "mse"])
def test_losses_wait_for_nothing(name, fake):
    outputs, target = on_device(3, 10, dtype=torch.bfloat16).requires_grad_(), on_device(3, 10)
    with Steady():
        loss = make_loss(name)(outputs.float(), target)
        loss.backward()
    assert (loss.dtype, loss.device, outputs.grad.dtype) == (torch.float32, DEVICE, torch.bfloat16)


def test_losses_are_read_one_look_later(fake, monkeypatch):
    """The numbers leave for pinned memory, and nobody waits; the next look does, for an event long past."""
    waited = []
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: waited.append(len(waited)))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    model = torch.nn.Linear(1, 1)
    stepper = Stepper(model, torch.optim.SGD(model.parameters()), Schedule(1.0, 1), Precision(DEVICE))
    training = Trainer(model, stepper, emd_loss, None)
    with Steady():
        training.unread = [(step, on_device(), ["a", "b"]) for step in range(3)]
        training._read_losses(wait=False)
    assert not waited
    assert training.sent[0].values.device.type == "cpu"
    with pytest.raises(AssertionError, match="waits for a number"), Steady():
        training._read_losses()
    assert waited


def test_input_is_made_on_the_device(fake):
    photos = batch(32)
    to_input(photos, DEVICE)  # the first time mean and deviation are sent
    with Steady():
        images = to_input(photos, DEVICE)
    assert (images.shape, images.dtype, images.device) == ((3, 3, 32, 32), torch.float32, DEVICE)


def loader(monkeypatch, size, batches):
    """What `engine` asks of a loader of so many batches of three, and the list of those that it took."""
    taken = []

    def some(_):
        for _ in range(batches):
            taken.append(batch(size))
            yield taken[-1]

    monkeypatch.setattr(engine, "batches", some)
    labels = SimpleNamespace(world=1, images=3 * batches, batch_size=3, labels=None)
    return SimpleNamespace(batch_sampler=labels), taken


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_evaluation_waits_once_at_its_end(dtype, fake, monkeypatch):
    model = network().eval()
    to_input(batch(model.img_size), DEVICE)
    data, taken = loader(monkeypatch, model.img_size, 2)
    with pytest.raises(AssertionError, match="waits, cuda:0 to cpu"), Steady(dtype):
        engine.evaluate(model, data, emd_loss, None, Precision(DEVICE, dtype))
    assert len(taken) == 2


@pytest.mark.slow
def test_calibration_waits_once_at_its_end(fake):
    model, taken = network(interest_points="running"), []

    def images():
        for _ in range(2):
            taken.append(on_device(3, 3, model.img_size, model.img_size))
            yield taken[-1]

    with pytest.raises(AssertionError, match="waits for a number"), Steady():
        calibrate_points(model, images())
    assert len(taken) == 2
