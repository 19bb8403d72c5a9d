"""The examples: in short here, and in full, with all that they claim, among the slow tests."""

from __future__ import annotations

import gc
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the examples")
pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: the examples' pictures")
pytest.importorskip("skimage", reason="scikit-image, of the extra data, is not installed: the examples' photographs")
pytest.importorskip("sklearn", reason="scikit-learn, of the extra examples, is not installed: the examples' digits")

import convbackprop  # noqa: E402
from convbackprop import ops  # noqa: E402

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = ("edge_filter", "numeric_gradient", "basic_cnn", "linear_scaling", "unet_level", "resnet_block",
         "frozen_batch_norm", "checkpointing", "whole_layer", "training_speed")  # fmt: skip
PROBLEM = "2,3,10,9,4,3,3,padding=1,activation=relu,bias=1"

if not FOLDER.exists():
    pytest.skip("the tests run outside a checkout", allow_module_level=True)


@pytest.fixture(autouse=True)
def beside_one_another(monkeypatch, quick_commands):
    """Scripts find each other because they lie in one folder; their kernels are compiled quickly."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    for name in ("common", *NAMES):
        sys.modules.pop(name, None)


@pytest.fixture
def silent():
    from rich.progress import Progress

    return Progress(disable=True)


def load(name):
    return importlib.import_module(name)


def numbers(module, capfd, *arguments):
    """Run an example, and return its exit code and its JSON."""
    code = module.main([*arguments, "--json"])
    out, err = capfd.readouterr()
    assert not err
    return code, json.loads(out)


# -- in short --------------------------------------------------------------------------------------------------------
def test_the_edge_filter_comes_nearer(tmp_path, capfd):
    module = load("edge_filter")
    code, found = numbers(module, capfd, "--steps", "60", "--output", str(tmp_path / "new" / "e.png"))
    assert code == 1 and not found["ok"]  # 60 steps do not find it to 1e-4, and it says so
    assert found["error"] < 0.5 * found["error_before"] and found["loss"] < 0.05 * found["loss_before"]
    assert np.asarray(found["filter"]).shape == (3, 3) and found["seed"] == 0
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")


def test_the_loss_under_the_path_is_the_layer_s():
    module = load("edge_filter")
    x = torch.rand(2, 1, 12, 11, generator=torch.Generator().manual_seed(0))
    steps, sums = torch.tensor([0.5, 1.0]), torch.tensor([-0.2, 0.0])
    for activation in module.RATES:
        found = module.landscape(activation, x, steps, sums)
        assert found[1, 1] == found.min() == 0
        teacher = module.teacher(activation)
        right = teacher(x)
        teacher.weight.copy_(0.5 * module.STEP - 0.2 * module.SUM)
        a, b = module.coordinates(teacher.weight[0].double())
        assert (float(a), float(b)) == pytest.approx((0.5, -0.2), abs=1e-6)
        assert float(found[0, 0]) == pytest.approx(float((teacher(x) - right).square().mean() / 2), rel=1e-4)


@pytest.mark.slow
def test_the_numeric_gradient(tmp_path, capfd, monkeypatch):
    module = load("numeric_gradient")
    monkeypatch.setattr(module, "SWEEP", (1e-1, 1e-2, 1e-5, 1e-11))
    code, found = numbers(module, capfd, "--variant", "naive", "--output", str(tmp_path / "n.svg"))
    assert code == 0 and found["ok"]
    assert set(found["errors"]) == {*(f"{layer}.{part}" for layer in ("conv1", "conv2", "dense") for part in
                                     ("weight", "bias")), "input"}  # fmt: skip
    for name in ("conv1.weight", "input"):  # h^2 at the one end, u/h at the other
        errors = found["sweep"][name]
        assert 30 < errors[0] / errors[1] < 300 and errors[-1] > 100 * min(errors)
    assert (tmp_path / "n.svg").read_text().startswith("<?xml")


def test_the_numeric_gradient_tells_a_wrong_one(tmp_path, capfd, monkeypatch):
    module = load("numeric_gradient")
    backward = ops.conv2d_backward

    def flipped(*arguments, **options):
        dx, dw, db = backward(*arguments, **options)
        return dx, dw.flip(-1), db

    monkeypatch.setattr(ops, "conv2d_backward", flipped)
    monkeypatch.setattr(module, "SWEEP", (1e-4, 1e-7))
    code, found = numbers(module, capfd, "--variant", "naive", "--output", str(tmp_path / "n.png"))
    assert code == 1 and [claim["ok"] for claim in found["claims"]] == [False, False]
    assert found["errors"]["conv1.weight"] > 0.01 and found["errors"]["dense.bias"] < 1e-7


def test_the_cnn_begins_as_torch_s(silent):
    module = load("basic_cnn")
    data = module.digits(0, torch.float32)
    assert len(data.test[0]) == round(0.3 * 1797) and len(data.train[0]) + len(data.test[0]) == 1797
    ours, theirs = (module.train(library, data, 30, 0, silent) for library in ("convbackprop", "torch"))
    assert ours.losses.numpy() == pytest.approx(theirs.losses.numpy(), rel=1e-4)
    assert ours.losses[-5:].mean() < 0.95 * ours.losses[:5].mean()
    assert sum(isinstance(part, torch.nn.ReLU) for part in ours.model) == 0
    other = module.train("torch", data, 30, 1, silent)
    assert other.losses.numpy() != pytest.approx(theirs.losses.numpy(), rel=1e-4)


@pytest.mark.slow
def test_the_unet_level_takes_any_size(silent):
    import convbackprop.torch as cbt

    module = load("unet_level")
    torch.manual_seed(0)
    plain = module.UNetLevel(3)
    model, report = cbt.nn.from_torch(plain)
    assert len(report.fused) == 6 and len(report.swapped) == 2 and not report.left
    before = [parameter.clone() for parameter in plain.parameters()]
    losses = module.train(model, 3, 0, silent)
    assert len(losses) == 3 and all(map(np.isfinite, losses))
    assert not any(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))  # every layer learns
    for size in ((13, 7), (8, 10), (1, 5)):
        o = torch.rand(2, 1, *size)
        with torch.no_grad():
            found = model(o)
            assert found.shape == o.shape
            assert torch.allclose(found, plain(o), atol=1e-5)
    assert module.transpose_apart(model.up, 1) < 1e-12
    clean = torch.full((4, 4), 0.5)
    assert module.psnr(clean + 0.1, clean) == pytest.approx(20, abs=1e-3)


@pytest.mark.slow
def test_the_residual_blocks_with_checkpoints():
    module = load("resnet_block")
    assert module.gradients_apart(0) <= module.CLOSE
    assert module.same_training(0)
    o = torch.randn(2, module.CHANNELS, 8, 8)
    kept, anew = (module.saved_bytes(module.Blocks(1, checkpointed), o) for checkpointed in (False, True))
    assert anew < module.SAVED * kept
    # A checkpoint a block keeps what the blocks took in, and the loss, which is not asked for here, nothing.
    assert anew >= sum(4 * 2 * channels * size**2 for channels, size in ((16, 8), (16, 8), (32, 4)))


def test_the_fused_block_with_frozen_batch_norms():
    module = load("frozen_batch_norm")
    assert module.gradients_apart(0) <= module.CLOSE
    models, o = module.pair(0), torch.randn(1, module.CHANNELS, 8, 8)
    moved = {name: module.moved_bytes(model, o.repeat(4, 1, 1, 1)) for name, model in models.items()}
    assert moved["fused"] < moved["steps"]
    fits = [module.fitted(m, torch.optim.SGD(module.weights(m), 0.1), o, module.frozen(1)) for m in models.values()]
    assert fits[0] == pytest.approx(fits[1], rel=1e-5)


def test_statistics_counted_twice_would_be_told(monkeypatch):
    from contextlib import nullcontext

    module = load("resnet_block")
    monkeypatch.setattr(module, "_contexts", lambda block: (nullcontext(), nullcontext()))
    assert not module.same_training(0)


def test_memory_is_least_with_as_many_checkpoints_as_layers_in_a_segment():
    module = load("checkpointing")
    model, o = module.stack(16), torch.randn(1, module.CHANNELS, 9, 11)
    one = o.untyped_storage().nbytes()
    gc.collect()
    gc.disable()  # nothing waits for it
    try:
        peaks = {segments: module.peak_of(model, segments, o) / one for segments in (0, 1, 4, 16)}
    finally:
        gc.enable()
    assert peaks[4] <= 12 < 16 <= min(peaks[0], peaks[1], peaks[16])
    kept = module.gradients(model, 0, o)
    assert all(map(torch.equal, kept, module.gradients(model, 4, o)))


def test_a_warm_up_begins_at_the_small_rate(silent):
    module = load("linear_scaling")
    small, same, scaled, warm = module.plans(16)
    images = 64 * warm.batch
    assert [plan.rate_at(0, images) for plan in (small, same, scaled, warm)] == [0.004, 0.004, 0.064, 0.004]
    assert warm.rate_at(images // 8, images) == pytest.approx((0.004 + 0.064) / 2)
    assert warm.rate_at(images // 4, images) == warm.rate_at(images, images) == 0.064
    _, way = module.gratings(500, 0)
    assert set(way.tolist()) == set(range(module.DIRECTIONS))
    model, losses = module.train(small, 100 * small.batch, 0, silent)
    assert len(losses) == 100 and sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert module.accuracy(model, 0) > 25


def test_the_whole_layer_is_held_against_its_bound():
    module = load("whole_layer")
    problem = convbackprop.problem.ConvProblem.parse(PROBLEM)
    given = module.operands(problem, 0)
    found = module.both_passes("convbackprop", *given)
    assert all(share.max() <= 1 for share in module.error_shares(problem, found, given).values())
    for name in module.RESULTS:
        wrong = {**found, name: found[name] * (1 + 1e-4)}
        assert module.error_shares(problem, wrong, given)[name].max() > 1


def test_training_speed_times_both_libraries_on_the_same_steps(tmp_path, capfd, monkeypatch):
    module = load("training_speed")
    monkeypatch.setattr(module, "NETS", {"basic_cnn": module.cnn_steps})
    monkeypatch.setattr(module, "RATIO", 0)
    code, found = numbers(module, capfd, "--turns", "2", "--output", str(tmp_path / "t.svg"))
    row = found["nets"]["basic_cnn"]
    assert code == 1 and [claim["ok"] for claim in found["claims"]] == [False]  # no step takes no time
    assert row["ratio"] == pytest.approx(sum(row["ratios"]) / 2) and len(row["ratios"]) == 2
    assert min(*row["seconds"], *row["processor_seconds"]) > 0
    unlike = [module.cnn_steps("convbackprop", 0), module.cnn_steps("torch", 1)]
    with pytest.raises(AssertionError, match="they should learn the same"):
        module.in_turns(unlike, range(1))


@pytest.mark.parametrize("package", ["skimage", "sklearn.datasets"])
def test_a_missing_package_is_named(package, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    module = load("edge_filter" if package == "skimage" else "basic_cnn")
    picture = tmp_path / "p.png"
    assert module.main(["--output", str(picture)]) == 1
    err = capfd.readouterr().err
    assert "is needed for this example" in err and "pip install 'convbackprop[examples]'" in err
    assert not picture.exists()


def test_options_are_looked_at_first(tmp_path, capfd):
    module = load("whole_layer")
    assert module.main(["--output", str(tmp_path / "p.jpg")]) == 2
    assert "its name should end in .png or .svg" in capfd.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        module.main(["--batch", "0"])
    assert stopped.value.code == 2 and "it should be 1 or more" in capfd.readouterr().err


# -- all of them -----------------------------------------------------------------------------------------------------
@pytest.fixture
def runner(monkeypatch):
    """What `make examples` runs: python examples."""
    spec = importlib.util.spec_from_file_location("run_examples", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_examples_shows_claims_and_failures(runner, tmp_path, capfd, monkeypatch):
    ok = {"ok": True, "claims": [{"what": "it is so", "found": "0.5", "ok": True}], "picture": "a.png"}
    results = {"edge_filter": ok, "basic_cnn": {"ok": False, "claims": [], "failure": "first\nscikit-learn is needed"}}
    monkeypatch.setattr(runner, "carried_out", lambda name, picture, seed:
                        {"example": name, "seconds": 2.0, **results[name]})  # fmt: skip
    assert runner.main(["edge_filter", "--output", str(tmp_path)]) == 0
    assert runner.main(["edge_filter", "basic_cnn", "--output", str(tmp_path)]) == 1
    out = capfd.readouterr().out
    assert re.search(r"^edge_filter +2 +yes +it is so +0\.5 *$", out, re.MULTILINE)
    assert re.search(r"^basic_cnn +2 +NO +it ran +scikit-learn is needed *$", out, re.MULTILINE)
    assert runner.main(["cnn"]) == 2
    assert "edge_filter, numeric_gradient" in capfd.readouterr().err
    assert runner.EXAMPLES == NAMES


def test_each_example_is_told_of():
    readme = (FOLDER / "README.md").read_text()
    for name in NAMES:
        assert f"python examples/{name}.py" in readme
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme):
        assert (FOLDER / picture).exists(), picture


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_in_full(runner, name, tmp_path):
    """All that an example claims."""
    found = runner.carried_out(name, tmp_path / f"{name}.png", 0)
    assert "failure" not in found, found["failure"]
    assert found["ok"], [claim for claim in found["claims"] if not claim["ok"]]
    if name == "basic_cnn":
        printed = found["printed"]
        assert printed["compared_steps"] == 300 and printed["losses_apart_float64"] <= 1e-9
        assert len(printed["accuracies"]) == 3 and printed["means"][0] >= 94
        assert abs(printed["means"][0] - printed["means"][1]) <= 1


@pytest.mark.slow
def test_the_peak_of_memory_is_the_peak():
    common = load("common")
    for count in (10, 60):
        found = common.peak_growth(prepare_arrays, count)
        assert count - 1 <= found / 2**20 < count + 4  # Linux counts resident pages some dozens at a time


def prepare_arrays(count):
    """Return a call that holds arrays of `count` MiB at once, after having freed as many."""

    def call():
        for _ in range(2):
            arrays = [np.ones(1 << 17) for _ in range(count)]
            del arrays

    return call
