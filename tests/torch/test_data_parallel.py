"""Data-parallel training: the loss curve of one process, also when a worker is killed; FSDP's shards of our layers."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which is not installed: training in several processes")
pytest.importorskip(
    "sklearn", reason="needs scikit-learn, which is not installed: the digits of examples/data_parallel.py"
)

import torch.distributed as dist  # noqa: E402
from torch.nn import functional  # noqa: E402

from tests.support.children import PATIENCE  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "examples" / "data_parallel.py"
GIVEN = ["--device", "cpu", "--dtype", "float64", "--variant", "naive", "--batch", "32", "--warmup", "4", "--no-plot"]
GIVEN += ["--base-batch", "8", "--every", "4"]
STEPS = 10
U = 2.0**-53


@pytest.fixture(scope="module")
def example():
    if not SCRIPT.exists():
        pytest.skip("the tests run outside a checkout")
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture
def alone():
    """A default group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def settings_of(example, out, *more):
    return example.arguments([*GIVEN, "--out", str(out), *more])


# -- the same curve as one process -----------------------------------------------------------------------------------
def curve(example, settings, disturbance=0.0):
    """Return the losses of one process, after an error of `disturbance` bounds in every gradient.

    Two processes add the terms of a gradient in another order than one. Any order of n terms is right to
    8 sqrt(n+2) u times the sum of their magnitudes, by the bound that the kernels are held to.
    """
    torch.set_num_threads(1)
    data, _ = example.digits(torch.float64)
    net = example.network(settings.seed, torch.float64, settings.variant)
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.lr, momentum=0.9)
    parts = example.batches(data, settings, 0)
    signs = torch.Generator().manual_seed(1)
    bound = 8 * math.sqrt(64 * settings.batch + 2) * U  # 64 pixels of an image, or 256 features
    losses = []

    def loss_of_one(parameters, image, label):
        scores = torch.func.functional_call(net, parameters, (image.unsqueeze(0),))
        return functional.cross_entropy(scores, label.unsqueeze(0))

    for step in range(STEPS):
        images, labels = next(parts)
        optimizer.param_groups[0]["lr"] = example.learning_rate(step, settings)
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(images), labels)
        loss.backward()
        if disturbance:
            parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
            of_images = torch.func.vmap(torch.func.grad(loss_of_one), (None, 0, 0))(parameters, images, labels)
            for name, parameter in net.named_parameters():
                sign = torch.randint(0, 2, parameter.shape, generator=signs) * 2 - 1
                parameter.grad += disturbance * bound * sign * of_images[name].abs().mean(0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def tolerance(example, settings, losses):
    """Return by how much each loss may differ: the errors of all gradients so far, as the training carries them on.

    They are made 2^16 times as large as the bound, so that they stand out from the roundings of the run itself, and the
    difference of the curves is divided by that: all is linear in errors that small. Four times that, for another choice
    of signs; and the loss is a mean of its own.
    """
    magnified = 2.0**16
    disturbed = curve(example, settings, magnified)
    so_far, allowed = 0.0, []
    for ours, others in zip(losses, disturbed, strict=True):
        so_far = max(so_far, abs(ours - others) / magnified)
        allowed.append(4 * so_far + 8 * math.sqrt(settings.batch + 2) * U * abs(ours))
    return allowed


def trained(out, mutation=None):
    example = runpy.run_path(str(SCRIPT))
    train = example["train"]
    if mutation == "gradients are not averaged":
        train.__globals__["DistributedDataParallel"] = lambda net: net
    return train(settings_of(SimpleNamespace(**example), out, "--steps", str(STEPS)))


def test_two_processes_learn_as_one(example, alone, two, tmp_path, capfd):
    settings = settings_of(example, tmp_path / "one", "--steps", str(STEPS))
    for folder in ("one", "two", "wrong"):
        (tmp_path / folder).mkdir()
    one = example.train(settings)
    assert one == curve(example, settings)
    assert example.learning_rate(0, settings) == 0.02 and example.learning_rate(4, settings) == 0.08
    assert one[-1] < one[0]
    allowed = tolerance(example, settings, one)
    assert max(allowed) < 1e-10
    for both in two.run(trained, tmp_path / "two"):
        differences = [abs(ours - its) for ours, its in zip(both, one, strict=True)]
        assert all(off <= limit for off, limit in zip(differences, allowed, strict=True)), (differences, allowed)
    print(f"largest share of the tolerance: {max(d / a for d, a in zip(differences, allowed, strict=True)):.3f}, "
          f"largest difference {max(differences):.1e}")  # fmt: skip
    for wrong in two.run(trained, tmp_path / "wrong", "gradients are not averaged"):
        assert abs(wrong[-1] - one[-1]) > 1000 * allowed[-1]


# -- checkpoints -----------------------------------------------------------------------------------------------------
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(example, alone, tmp_path, capsys):
    whole = example.train(settings_of(example, tmp_path, "--steps", "7", "--every", "100"))
    interrupted = example.train(settings_of(example, tmp_path, "--steps", "5"))  # a checkpoint after 4 of 5 steps
    assert interrupted == whole[:5]
    assert example.train(settings_of(example, tmp_path, "--steps", "7")) == whole
    assert "goes on after step 4" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"interrupted run with --lr 0.02, not 0.5"):
        example.train(settings_of(example, tmp_path, "--steps", "7", "--lr", "0.5"))


def test_a_checkpoint_is_written_whole_or_not_at_all(example, tmp_path, monkeypatch):
    settings, path = settings_of(example, tmp_path), tmp_path / "checkpoint.pt"
    example.save(path, settings, losses=[1.0])

    def half(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        example.save(path, settings, losses=[2.0])
    assert example.load(path, settings, torch.device("cpu"))["losses"] == [1.0]


def torchrun(processes, out, *more):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--max-restarts=1", str(SCRIPT), *GIVEN, "--out", str(out), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "losses.json").read_text()), done.stdout + done.stderr


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path):
    undisturbed, _ = torchrun(2, tmp_path / "undisturbed", "--steps", "14")
    killed, output = torchrun(2, tmp_path / "killed", "--steps", "14", "--kill-at", "10")
    assert re.search(r"exitcode: -9", output) and "goes on after step 8" in output
    assert killed == undisturbed
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_four_processes_learn_as_one(example, alone, tmp_path):
    settings = settings_of(example, tmp_path, "--steps", str(STEPS))
    one = curve(example, settings)
    four, output = torchrun(4, tmp_path / "four", "--steps", str(STEPS))
    assert f"4 processes, {STEPS} steps of 32 images" in output
    allowed = tolerance(example, settings, one)
    assert all(abs(ours - its) <= limit for ours, its, limit in zip(four, one, allowed, strict=True))


# -- FSDP ------------------------------------------------------------------------------------------------------------
def sharded():
    """Return whether fully sharded layers of ours have the gradients of whole ones, and what a parameter is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from convbackprop.torch.nn import Conv2d

    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    layer = {"variant": "naive", "dtype": torch.float64}
    whole = torch.nn.Sequential(Conv2d(2, 4, 3, padding=1, activation="relu", **layer), Conv2d(4, 3, 3, **layer))
    with torch.no_grad():
        for number, parameter in enumerate(whole.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))
    model = copy.deepcopy(whole)
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    images = torch.randint(-2, 3, (2 * ranks, 2, 8, 8), generator=torch.Generator().manual_seed(9)).double()
    torch.square(model(images[2 * rank :][:2])).sum().backward()
    torch.square(whole(images)).sum().backward()
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    same = [torch.equal(ours.grad.full_tensor() * ranks, its.grad) for ours, its in pairs]  # FSDP averages
    return same, type(model[0].weight).__name__, tuple(model[0].weight.to_local().shape)


def test_fully_sharded_layers(two):
    for same, kind, shape in two.run(sharded):
        assert all(same) and kind == "DTensor" and shape == (2, 2, 3, 3)
