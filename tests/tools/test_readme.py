"""README.md tells the truth: its generated table is current, and its example runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from convbackprop import cli
from convbackprop.bench import runs

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.fixture
def readme() -> str:
    if not README.exists():
        pytest.skip("the tests run outside a checkout")
    return README.read_text()


def test_the_table_of_variants_is_the_registry(readme):
    tool = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    assert tool["variants_table"]() in readme, "run 'make readme'"


def test_every_variant_has_its_largest_error(readme):
    """As measured when 'make readme ARGS=--errors' was run last."""
    from convbackprop.ladder.registry import VARIANTS

    for variant in VARIANTS:
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| [{variant}]("))
        float32, every = map(float, re.fullmatch(r".*\| ([\d.]+) / ([\d.]+) \|", row).groups())
        assert 0 <= float32 <= every <= 1, f"{variant}: run 'make readme ARGS=--errors'"


def test_the_picture_is_of_the_saved_run(readme):
    tool = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    assert tool["bench_part"]() in readme, "run 'make readme'"
    run = runs.read(str(tool["RUN"]))
    medians = [float(f"{1e3 * row.ours.median:.3g}") for row in run.rows if row.ours and row.label == tool["SHOWN"]]
    assert len(medians) >= 10
    written = set(map(float, re.findall(r"<!-- ([\d.e+]+) -->", (ROOT / "docs" / "bench.svg").read_text())))
    assert set(medians) <= written, "run 'make readme'"


def test_the_comparison_is_of_the_saved_runs(readme, capfd, monkeypatch, tmp_path):
    pytest.importorskip("scipy", reason="scipy, of the extra stats, is not installed: `compare`")
    tool = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    tool["place_runs"](tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(tool["COMMANDS"][0].split()) == 0
    output = tool["tidy"](capfd.readouterr().out)
    assert "slower" in output and output in readme, "run 'make readme'"


def test_the_example_runs(readme):
    (code,) = re.findall(r"<!-- tested: example -->\n```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["dx"].shape == names["x"].shape
    assert names["dw"].shape == names["w"].shape
    assert names["db"].shape == names["b"].shape
    (code,) = re.findall(r"<!-- tested: dense -->\n```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(code, "README.md", "exec"), names)
    assert np.allclose(names["scores"], names["features"] @ names["weights"].T, atol=1e-3)


def test_the_page_on_pytorch_runs(readme, capsys):
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: the page on PyTorch")
    page = (ROOT / "docs" / "pytorch.md").read_text()
    names: dict = {}
    for code in re.findall(r"<!-- tested: \w+ -->\n```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "pytorch.md", "exec"), names)
    printed = "".join(f"    {line}\n" for line in capsys.readouterr().out.splitlines())
    assert printed
    assert printed in page
    assert names["each"].shape == (8, 4, 3, 3, 3)
    assert torch.isfinite(names["loss"])


def test_the_page_on_accuracy_is_what_was_measured(readme):
    tool = runpy.run_path(str(ROOT / "tools" / "accuracy.py"))
    measured, page = tool["read"](), (ROOT / "docs" / "accuracy.md").read_text()
    for part in tool["parts"](measured).values():
        assert part in page, "run 'python tools/accuracy.py'"
    shares = [pair[0] for row in measured["rows"] for pair in row["ours"].values()]
    assert len(shares) > 300
    assert min(shares) >= 0 and max(shares) <= 1


def test_the_table_on_accuracy_does_not_hide_a_wrong_number():
    tool = runpy.run_path(str(ROOT / "tools" / "accuracy.py"))
    one = {"ours": {"naive": [0.5, 0.1], "tiled": [float("inf"), 0.2]}}
    assert tool["worst"](one) == (float("inf"), 0.2)
    assert tool["_share"](float("inf")) == "not finite"


def test_its_commands_exist(readme):
    from convbackprop.cli import COMMANDS

    named = set(re.findall(r"^    convbackprop (\w+)", readme, re.MULTILINE))
    assert named == set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z-]+)", readme)) - {"lists"} <= targets
