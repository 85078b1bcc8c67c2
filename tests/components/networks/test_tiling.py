"""Volumes in tiles: the same numbers as whole, in less memory."""

import subprocess
import sys

import pytest
import torch

from medical_diffusion_components.networks import VQGAN, EMACodebook
from medical_diffusion_components.networks.tiling import _Moments, tiles_of
from medical_diffusion_components.networks.vqgan import _reach

SHAPES = {  # compression, volume, tile
    "one compression": ((4, 4, 4), (32, 16, 48), (16, 16, 24)),
    "two voxels": ((2, 2, 2), (24, 16, 16), (8, 8, 8)),
    "flat": ((4, 4, 1), (48, 32, 6), (16, 16, 4)),
    "mixed": ((4, 4, 2), (32, 16, 16), (16, 16, 8)),
    "tiles that do not divide the volume": ((2, 2, 2), (28, 20, 24), (12, 10, 8)),
}

UNDER_A_LIMIT = """
import resource, sys, torch
from medical_diffusion_components.networks import VQGAN, EMACodebook
torch.set_num_threads(1)
tile = [48, 48, 48] if sys.argv[1] == "tiled" else None
net = VQGAN(EMACodebook(16, 8), base_channels=4, compression=(2, 2, 2), norm_groups=4, tile_size=tile).eval()
latent = torch.zeros(1, 8, 48, 48, 48)
with torch.no_grad():
    net.decode(latent[..., :8, :8, :8])  # what libraries set up at their first use
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + 100 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(tuple(net.decode(latent).shape))
"""


def untrained(compression, tile_size=None):
    """A first stage whose norms matter: their gains and offsets are not 1 and 0."""
    torch.manual_seed(0)
    network = VQGAN(
        EMACodebook(64, 8), base_channels=4, compression=compression, norm_groups=4, tile_size=tile_size
    ).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return network


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_tiles_equal_the_whole(name):
    compression, size, tile = SHAPES[name]
    whole, tiled = untrained(compression), untrained(compression, tile)
    image = torch.randn(2, 1, *size) * torch.linspace(0.2, 3.0, size[0]).view(
        -1, 1, 1
    )  # tiles differ in their statistics
    latent = whole.encode(image)
    torch.testing.assert_close(tiled.encode(image), latent, rtol=1e-4, atol=1e-4 * float(latent.std()))
    volume = whole.decode(latent)
    torch.testing.assert_close(tiled.decode(latent), volume, rtol=1e-4, atol=1e-4 * float(volume.std()))


def positions_seen(output, given, place, scale):
    """How far to either side of ``place`` (h, w, d), along each axis, what ``output`` depends on reaches in ``given``."""
    given.grad = None
    output.sum().backward(retain_graph=True)
    seen = given.grad.abs().sum((0, 1)).nonzero()  # (N, 3)
    return (seen // torch.tensor(scale) - torch.tensor(place)).abs().amax(0)


@pytest.mark.parametrize("compression", [(4, 1, 2), (2, 4, 4)])
def test_surroundings_hold_all_that_a_tile_depends_on_and_little_more(compression):
    network, reach = untrained(compression), torch.tensor(_reach(compression))
    size, place = (2 * reach + 3).tolist(), (reach + 1).tolist()
    latent = torch.zeros(1, network.decoder.in_channels, *size, requires_grad=True)
    image = torch.zeros(1, 1, *(n * c for n, c in zip(size, compression)), requires_grad=True)
    decoded = network.decoder.normalised_by(latent, lambda _, x: x)  # without norms, which see everything
    encoded = network.encoder.normalised_by(image, lambda _, x: x)
    h, w, d = (slice(n * c, (n + 1) * c) for n, c in zip(place, compression))
    farthest = positions_seen(decoded[:, :, h, w, d], latent, place, (1, 1, 1))
    assert (reach - 1 <= farthest).all() and (farthest <= reach).all()
    h, w, d = place
    assert (positions_seen(encoded[:, :, h, w, d], image, place, compression) <= reach).all()


@pytest.mark.parametrize("level", [1e5 / 3, 0.1])
def test_moments_over_tiles_are_exact_where_values_hardly_vary(level):
    norm = torch.nn.GroupNorm(2, 4)

    def found(x):
        moments = _Moments()
        for tile in x.split(2, dim=2):
            moments.add(norm, tile)
        return moments.slope_and_intercept()

    assert torch.cat(found(torch.full((1, 4, 8, 8, 8), level))).isfinite().all()
    x = level + torch.rand(2, 4, 8, 8, 8)
    slope, intercept = found(x)
    expected = torch.nn.functional.group_norm(x.double(), 2, eps=norm.eps)
    torch.testing.assert_close(x.double() * slope + intercept, expected, atol=0.02, rtol=0)


@torch.no_grad()
def test_both_volumes_of_a_batch_are_normalised_by_themselves():
    tiled = untrained((2, 2, 2), (8, 8, 8))
    latent = torch.randn(2, 8, 8, 8, 8) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(tiled.decode(latent)[1:], tiled.decode(latent[1:]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_volume_that_one_tile_holds_is_computed_whole():
    whole, tiled = untrained((4, 4, 4)), untrained((4, 4, 4), (32, 32, 32))
    image = torch.randn(1, 1, 32, 32, 32)
    assert torch.equal(tiled.encode(image), whole.encode(image))


def test_training_does_not_use_tiles():
    tiled = untrained((2, 2, 2), (8, 8, 8))
    image = torch.randn(1, 1, 16, 16, 16)
    tiled.encode(image).sum().backward()
    assert tiled.encoder.conv_in.conv.weight.grad.abs().sum() > 0


def test_tiles_are_no_part_of_the_weights():
    assert untrained((2, 2, 2)).state_dict().keys() == untrained((2, 2, 2), (8, 8, 8)).state_dict().keys()


def test_a_tiled_network_can_be_scripted():
    script = torch.jit.script(untrained((2, 2, 2), (8, 8, 8)))
    latent = torch.randn(1, 8, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(script.decode(latent), untrained((2, 2, 2)).decode(latent), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile_size", [(1, 8, 8), (8, 8), 8, "small", (0, 8, 8), (7, 8, 8), (8.0, 8, 8)])
def test_impossible_tiles_are_refused(tile_size):
    with pytest.raises(ValueError, match=r"tile_size must be three numbers of voxels .* a multiple of the compression"):
        untrained((2, 2, 2), tile_size)


def test_tiles_cover_every_cell_once():
    counts = torch.zeros(7, 5, 9)
    for tile in tiles_of((7, 5, 9), (3, 5, 2), (1, 2, 3)):
        (a, b), (c, d), (e, f) = tile.inner
        counts[a:b, c:d, e:f] += 1
        for outer, (low, high), size, around in zip(tile.outer, tile.inner, (7, 5, 9), (1, 2, 3)):
            assert outer == (max(low - around, 0), min(high + around, size))
    assert torch.equal(counts, torch.ones_like(counts))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
def test_tiles_fit_where_the_whole_does_not():
    def run(how):
        return subprocess.run([sys.executable, "-c", UNDER_A_LIMIT, how], capture_output=True, text=True, timeout=300)

    whole, tiled = run("whole"), run("tiled")
    assert whole.returncode != 0 and "alloc" in whole.stderr.lower(), whole.stderr[-500:]
    assert tiled.returncode == 0, tiled.stderr[-500:]
    assert tiled.stdout.strip() == "(1, 1, 96, 96, 96)"
