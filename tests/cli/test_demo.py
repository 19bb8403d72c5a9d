"""demo edge: the numbers of the course's example, and the figure that shows them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from convbackprop import demo
from convbackprop.bench.photograph import Photograph, drawn
from convbackprop.check import reference
from convbackprop.cli import main
from convbackprop.devices.cpu import cpu_device
from tests.support.commands import documented


@pytest.fixture(scope="module")
def edge():
    return demo.compute(drawn(96), cpu_device())


def test_it_is_the_course_s_example(edge):
    """By the definition, in float64 and without a convolution of ours."""
    o = np.pad(edge.image.grey, 1)
    height, width = edge.image.grey.shape

    def answer(filter_):
        return sum(filter_[r, s] * o[r : r + height, s : s + width] for r in range(3) for s in range(3)) - 0.1

    prewitt = np.array([[-1, 0, 1]] * 3) / 3
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    s, target = answer(prewitt), np.maximum(answer(sobel), 0)
    y = np.maximum(s, 0)
    g = np.where(s > 0, y - target, 0)
    dw = [[(g * o[r : r + height, c : c + width]).sum() for c in range(3)] for r in range(3)]
    padded = np.pad(g, 1)
    dx = sum(prewitt[r, c] * padded[2 - r : 2 - r + height, 2 - c : 2 - c + width] for r in range(3) for c in range(3))
    expected = {"o": edge.image.grey, "s": s, "y": y, "dy": y - target, "dx": dx, "dw": dw, "db": g.sum()}
    assert set(expected) == set(demo.PARTS)
    for name, value in expected.items():
        assert np.allclose(edge.ours[name], value, rtol=1e-4, atol=1e-5), name
    assert 0 < (y > 0).mean() < 0.2 and abs(g).max() > 0.01  # some edges, and something to learn


def test_the_kernel_gradient_asks_for_a_larger_step_in_the_middle_row(edge):
    steps = -(edge.ours["dw"][:, 2] - edge.ours["dw"][:, 0])
    assert steps[1] > max(steps[0], steps[2]) + 0.1


def test_the_numbers_beside_torch_s(edge):
    pytest.importorskip("torch", reason="torch, the peer, is not installed")
    rows = {row["part"]: row for row in demo.numbers(edge)}
    for name, row in rows.items():
        if name != "o":
            assert row["difference"] <= 1e-5 * max(1, abs(row["least"]), abs(row["largest"]))
            assert row["sum"] == pytest.approx(row["torch_sum"], rel=1e-3, abs=1e-2)
    assert all(0 <= rows[name]["error"] <= 1 for name in ("s", "y", "dx", "dw", "db"))


def test_a_wrong_kernel_is_told(edge, monkeypatch, tmp_path, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: pictures")
    backward = demo.ops.conv2d_backward

    def flipped(*arguments, **options):
        dx, dw, db = backward(*arguments, **options)
        return dx, dw[..., ::-1, ::-1], db

    monkeypatch.setattr(demo.ops, "conv2d_backward", flipped)
    monkeypatch.setattr(demo, "image_of", lambda file: drawn(64))
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "edge", "--device", "cpu", "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    errors = {row["part"]: row["error"] for row in found["numbers"]}
    assert not found["ok"] and errors["dw"] > 1 >= errors["dx"]


def test_the_figure(edge):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: pictures")
    drawing = demo.draw(edge, cpu_device())
    maps = {ax.get_title().split(":")[0]: ax.images[0].get_array() for ax in drawing.axes if ax.images}
    for name in ("o", "s", "y", "dy", "dx", "dw"):
        assert np.array_equal(maps[demo.PARTS[name][0]], edge.ours[name])
    assert len(drawing.axes) == 12  # each has its colours explained
    squares = next(ax for ax in drawing.axes if ax.get_title().startswith("kernel gradient"))
    written = [float(text.get_text()) for text in squares.texts]
    assert written == pytest.approx(edge.ours["dw"].ravel().tolist(), rel=1e-3)


def test_on_the_command_line(tmp_path, monkeypatch, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed: pictures")
    monkeypatch.chdir(tmp_path)
    for name in ("skimage", "skimage.data"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo", "edge", "--device", "cpu", "--json", "--output", "new/e.png"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    documented("demo", found)
    assert not err and found["ok"] and found["image"] == "drawn" and "a picture was drawn" in found["note"]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert main(["demo", "edge", "--device", "cpu"]) == 0
    out, _ = capfd.readouterr()
    assert "torch's sum" in out and re.search(r"^kernel gradient +dR/dw +-", out, re.MULTILINE)
    assert Path("edge.png").exists() and out.endswith("wrote edge.png\n")


def test_without_matplotlib_or_torch(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "image_of", lambda file: drawn(32))
    monkeypatch.setattr(demo.torch_calls, "why_no_torch", lambda kind: "torch is not installed")
    monkeypatch.setattr("convbackprop.cli.demo.why_no_torch", lambda kind: "torch is not installed")
    assert demo.compute(drawn(32), cpu_device()).torch is None
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "edge", "--device", "cpu"]) == 1
    err = capfd.readouterr().err
    assert "pip install 'convbackprop[plot]'" in err and not Path("edge.png").exists()


def test_an_image_that_is_not_square():
    edge = demo.compute(Photograph("wide", np.linspace(0, 1, 40 * 90).reshape(40, 90) ** 2), cpu_device())
    assert edge.ours["dx"].shape == (40, 90) and all(error <= 1 for error in edge.errors.values())
    p = edge.problem
    dw, _ = reference.answer("kernel_grad", p, {"x": edge.ours["o"][None, None], "dy": edge.ours["dy"][None, None],
                                                "saved": edge.ours["y"][None, None]})["dw"]  # fmt: skip
    assert np.allclose(dw[0, 0], edge.ours["dw"], rtol=1e-4, atol=1e-5)
