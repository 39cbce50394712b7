"""A training step on a CUDA device without a driver: it never waits for the device, and no operation mixes devices."""

from contextlib import nullcontext

import pytest
import torch
from helpers.fake_cuda import DEVICE, Operations, fake_cuda

import models
from dataset import Batch, to_input
from iaa.training import steps
from iaa.training.steps import Precision, Schedule, Stepper, make_optimizer
from models.eat import RefinementSchedule
from util import make_loss


def count_operations(
    name, batch, dtype, plant=lambda images: images, loss="emd", ema=None, **settings
) -> int:
    """The operations of the second training step, after its input. plant: is applied to the images, to plant a fault."""
    with DEVICE:
        model, average = (models.create_model(name, **settings).train() for _ in range(2))
    refinement = RefinementSchedule() if model.purpose.settings["refinement"] == "scheduled" else None
    optimizer, precision = make_optimizer(model, "adam", 0.0), Precision(DEVICE, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "deepcopy", lambda _: average)  # a copy would have a fake device of its own
        stepper = Stepper(
            model, optimizer, Schedule(1e-6, 1), precision, refinement=refinement, ema_decay=ema
        )
    pixels = torch.empty(batch, 3, model.img_size, model.img_size, dtype=torch.uint8)
    photos = Batch(pixels, torch.empty(batch, dtype=torch.bool), torch.empty(batch, 10), ["a"] * batch)
    # The first step sends mean and deviation, and makes Adam's moments.
    for context in (nullcontext, Operations):
        with context():
            images = to_input(photos, DEVICE)
            targets = photos.targets.to(DEVICE, non_blocking=True)
        with context() as operations:
            stepper.begin(0.0)
            with stepper.precision():
                outputs = model(plant(images))
            stepper.backward(make_loss(loss)(outputs.float(), targets))
            stepper.update(0.0)
    assert {tensor.device for tensor in (images, outputs, *model.state_dict().values())} == {DEVICE}
    return operations.count


CASES = [
    ("batch", "released", torch.bfloat16),
    ("batch", "scheduled", torch.bfloat16),
    ("image", "scheduled", torch.float16),
    ("grid", "off", None),
]


@pytest.mark.parametrize(("points", "refinement", "dtype"), CASES)
def test_training_step_never_waits_and_mixes_no_devices(points, refinement, dtype):
    with fake_cuda():
        count_operations("eat_test", 3, dtype, interest_points=points, refinement=refinement)


def test_losses_over_the_batch_and_the_average_of_the_weights_never_wait():
    with fake_cuda():
        count_operations("eat_test", 3, None, loss="mse+0.5*plcc+rank", ema=0.999, refinement="scheduled")


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda images: images * images.mean().item(), "_local_scalar_dense"),
        (lambda images: images[images > 0].view(images.shape), "nonzero"),
        (lambda images: images * images.mean().cpu(), "cuda:0 to cpu waits"),
        (lambda images: images * torch.ones(3, 1, 1).to(DEVICE), "cpu to cuda:0 waits"),
        (lambda images: images * torch.ones(3, 1, 1), "device.*cuda:0"),
    ],
    ids=["item", "mask", "copy to host", "copy from host", "host tensor"],
)
def test_a_wait_or_a_mix_of_devices_in_a_step_fails(plant, message):
    with pytest.raises(Exception, match=message), fake_cuda():
        count_operations("eat_test", 3, None, plant)


@pytest.mark.slow
def test_operations_of_a_step_of_eat_base():
    """Of a step with the Triton kernels, with torch 2.14. The fake attention copies a bias only where a GPU does.

    879 of them clip the gradients, one by one: torch groups real tensors only, so a GPU has a few instead.
    """
    with fake_cuda():
        assert count_operations("eat_base", 64, torch.bfloat16) == pytest.approx(3353, rel=0.01)
