"""Plain DAT: fixed cell centres and offsets left alone. An independent one, from the paper's formulas, is the yardstick."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import GOLDEN, make_toy
from safetensors.torch import load_file

from models import load_weights

HEADS = {32: (4, 2), 64: (8, 4)}  # of the toy's deformable stages: heads and groups by channels


def imagenet_dat(tmp_path):
    """A file as ImageNet's DAT has it: no interest points, a thousand classes."""
    state = {
        name: value
        for name, value in load_file(GOLDEN / "toy_weights.safetensors").items()
        if "ref_point" not in name
    }
    generator = torch.Generator().manual_seed(0)
    state |= {
        "cls_head.weight": torch.randn(1000, 64, generator=generator),
        "cls_head.bias": torch.zeros(1000),
    }
    torch.save({"model": state}, tmp_path / "dat.pth")
    return state


def norm(x, weight, bias):
    """LayerNorm over the channels of (B, C, H, W)."""
    mean, deviation = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (deviation + 1e-5).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def deformable(x, w, prefix):
    """Deformable attention of x (B, C, H, W): one group, one head, one query at a time."""

    def conv(x, name):
        return torch.einsum("bchw,dc->bdhw", x, w[f"{prefix}{name}.weight"][..., 0, 0]) + w[
            f"{prefix}{name}.bias"
        ].view(1, -1, 1, 1)

    batch, channels, side, _ = x.shape
    heads, groups = HEADS[channels]
    q, per_group = conv(x, "proj_q"), channels // groups
    centres = torch.tensor([(i + 0.5) / side * 2 - 1 for i in range(side)])
    reference = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1)
    keys, positions = [], []
    for g in range(groups):
        part = q[:, g * per_group : (g + 1) * per_group]
        kernel = w[f"{prefix}conv_offset.0.weight"]
        offsets = F.conv2d(
            part, kernel, w[f"{prefix}conv_offset.0.bias"], padding=kernel.shape[-1] // 2, groups=per_group
        )
        offsets = norm(
            offsets, w[f"{prefix}conv_offset.1.norm.weight"], w[f"{prefix}conv_offset.1.norm.bias"]
        )
        offsets = F.conv2d(F.gelu(offsets), w[f"{prefix}conv_offset.3.weight"]).tanh() * 2 / side
        at = offsets.permute(0, 2, 3, 1) + reference
        positions.append(at)
        part = x[:, g * per_group : (g + 1) * per_group]
        keys.append(F.grid_sample(part, at.flip(-1), align_corners=True))
    sampled = torch.cat(keys, 1)
    k, v = conv(sampled, "proj_k"), conv(sampled, "proj_v")
    size, out = channels // heads, torch.zeros_like(x)
    for h in range(heads):
        at = positions[h // (heads // groups)].flatten(1, 2)
        table = w[f"{prefix}rpe_table"][h].expand(batch, 1, -1, -1)
        own = slice(h * size, (h + 1) * size)
        for row in range(side):
            for column in range(side):
                apart = ((reference[row, column] - at) / 2)[:, None]
                bias = F.grid_sample(table, apart.flip(-1), align_corners=True)[:, 0, 0]
                logits = torch.einsum("bc,bcn->bn", q[:, own, row, column], k[:, own].flatten(2)) / size**0.5
                weights = (logits + bias).softmax(-1)
                out[:, own, row, column] = torch.einsum("bn,bcn->bc", weights, v[:, own].flatten(2))
    return conv(out, "proj_out"), torch.stack(positions, 1)


def windowed(x, w, prefix, heads, shift):
    """Attention of x (B, C, H, W) inside windows of 7 x 7; shifted, a window's parts that were no neighbours do not meet."""
    side, size, window = x.shape[-1], x.shape[1] // heads, 7
    x = x.roll((-shift, -shift), (2, 3))
    part = torch.tensor([0 if i < side - window else 1 if i < side - shift else 2 for i in range(side)])
    table, out = w[f"{prefix}relative_position_bias_table"], torch.zeros_like(x)
    cells = [(y, x) for y in range(window) for x in range(window)]
    index = torch.tensor([[(qy - ky + 6) * 13 + qx - kx + 6 for ky, kx in cells] for qy, qx in cells])
    for top in range(0, side, window):
        for left in range(0, side, window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            tokens = x[:, :, rows, columns].flatten(2).transpose(1, 2)
            q, k, v = (tokens @ w[f"{prefix}proj_qkv.weight"].T + w[f"{prefix}proj_qkv.bias"]).chunk(3, -1)
            region = (part[rows, None] * 3 + part[None, columns]).flatten()
            apart = torch.where(region[:, None] == region, 0.0, -100.0) if shift else 0.0
            mixed = []
            for h in range(heads):
                own = slice(h * size, (h + 1) * size)
                logits = q[..., own] @ k[..., own].transpose(1, 2) / size**0.5 + table[index][..., h] + apart
                mixed.append(logits.softmax(-1) @ v[..., own])
            mixed = torch.cat(mixed, -1) @ w[f"{prefix}proj_out.weight"].T + w[f"{prefix}proj_out.bias"]
            out[:, :, rows, columns] = mixed.transpose(1, 2).unflatten(2, (window, window))
    return out.roll((shift, shift), (2, 3))


def dat(images, w, config):
    """The features (B, C, H, W) of a whole DAT, and its deformable layers' positions by name."""

    def normed(x, name):
        return norm(x, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])

    positions = {}
    x = F.conv2d(images, w["patch_proj.0.weight"], w["patch_proj.0.bias"], stride=4)
    x = normed(x, "patch_proj.1")
    for i, spec in enumerate(config["stage_spec"]):
        if i:
            x = normed(F.conv2d(x, w[f"down_projs.{i - 1}.0.weight"], stride=2), f"down_projs.{i - 1}.1")
        for j, kind in enumerate(spec):
            here, prefix = normed(x, f"stages.{i}.layer_norms.{2 * j}"), f"stages.{i}.attns.{j}."
            if kind == "D":
                update, positions[prefix[:-1]] = deformable(here, w, prefix)
            else:
                update = windowed(here, w, prefix, config["heads"][i], 4 * (kind == "S"))
            x = x + update
            here, mlp = normed(x, f"stages.{i}.layer_norms.{2 * j + 1}"), f"stages.{i}.mlps.{j}.chunk.linear"
            hidden = F.gelu(torch.einsum("bchw,dc->bhwd", here, w[f"{mlp}1.weight"]) + w[f"{mlp}1.bias"])
            x = x + (hidden @ w[f"{mlp}2.weight"].T + w[f"{mlp}2.bias"]).permute(0, 3, 1, 2)
    return normed(x, "cls_norm"), positions


def test_grid_without_refinement_is_dat(tmp_path, golden_images):
    """ImageNet's file loads whole; sampling positions and features are those of the independent DAT."""
    w = imagenet_dat(tmp_path)
    model = make_toy(interest_points="grid", refinement="off", num_classes=1000).eval()
    assert load_weights(model, tmp_path / "dat.pth") == []
    assert not any("ref_point" in name for name in model.state_dict())
    config = json.loads((GOLDEN / "toy_config.json").read_text())
    with torch.no_grad():
        features, positions = dat(golden_images[:2], w, config)
        _, points = model(golden_images[:2], return_points=True)
        assert set(points) == set(positions)
        for name, layer in points.items():
            torch.testing.assert_close(layer.positions, positions[name], rtol=0, atol=1e-5)
        found = model.forward_features(golden_images[:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, features, rtol=0, atol=1e-5)


def test_cell_centres_are_exact_and_the_same_for_all():
    model = make_toy(interest_points="grid", refinement="off").eval()
    with torch.no_grad():
        _, points = model(torch.randn(2, 3, 224, 224), return_points=True)
    references = points["stages.3.attns.1"].references
    assert references.shape == (2, 4, 7, 7, 2)
    expected = [(2 * i + 1) / 7 - 1 for i in range(7)]
    assert references[1, 2, :, 0, 0].tolist() == pytest.approx(expected, abs=2e-7)
    assert references[0, 1, 3, :, 1].tolist() == pytest.approx(expected, abs=2e-7)


def test_a_grids_file_keeps_its_head_and_a_networks_own_points_stay_fresh(tmp_path):
    grid = make_toy(interest_points="grid", refinement="off")
    torch.save(grid.state_dict(), tmp_path / "grid.pth")
    learned, again = make_toy(), make_toy(interest_points="grid")
    fresh = load_weights(learned, tmp_path / "grid.pth")
    assert {name.split(".")[-2] for name in fresh} == {"ref_point14"}
    assert torch.equal(learned.cls_head.weight, grid.cls_head.weight)
    assert load_weights(again, GOLDEN / "toy_weights.safetensors") == []
    imagenet_dat(tmp_path)
    assert load_weights(again, tmp_path / "dat.pth") == ["cls_head.bias", "cls_head.weight"]
