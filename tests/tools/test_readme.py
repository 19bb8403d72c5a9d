"""README.md and docs tell the truth: generated parts are current, commands and examples run, links lead somewhere."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from convbackprop import cli
from convbackprop.bench import runs
from convbackprop.check.curated import CURATED
from convbackprop.lab import exercises
from convbackprop.ladder.registry import VARIANTS
from convbackprop.problem import DTYPES
from convbackprop.tune import table
from tests.lab.solutions import solved

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def readme() -> str:
    if not README.exists():
        pytest.skip("the tests run outside a checkout")
    return README.read_text()


@pytest.fixture(scope="module")
def tool(readme) -> dict:
    """What tools/readme.py defines."""
    return runpy.run_path(str(ROOT / "tools" / "readme.py"))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


# -- generated parts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["gpu", "ladder", "runs", "variants", "bench", "expected"])
def test_a_generated_part_is_current(part, readme, tool):
    pages = (readme, page("gpu.md"), page("expected.md"), page("ladder.md"), page("command_line.md"))
    made = f"<!-- generated: {part} -->\n{tool[f'{part}_part']()}\n<!-- end -->"
    assert sum(made in text for text in pages) == 1, "run 'make readme'"


def test_the_tuned_tables_that_are_shipped_are_those_of_recorded_runs(tool):
    made = [tool["gpu_parts"].shipped_table(run) for run in tool["gpu_page"].newest()]
    there = {path: path.read_text() for path in table.shipped("any").parent.glob("*.json")}
    assert there == {path: text for tables in made for path, text in tables.items()}, "run 'make readme'"


def test_every_variant_has_its_largest_error(tool):
    """As measured when 'make readme ARGS=--errors' was run last; a dash where it computes no float32."""
    lines = page("ladder.md").splitlines()
    for variant in VARIANTS:
        (row,) = (line for line in lines if line.startswith(f"| [{variant}]("))
        errors = json.loads(tool["ERRORS"].read_text())[str(variant)]
        computed = {d for d in DTYPES if any(variant.refusal(each.problem(dtype=d)) is None for each in CURATED)}
        assert set(errors) == computed and min(errors.values()) > 0, f"{variant}: run 'make readme ARGS=--errors'"
        float32, every = re.fullmatch(r".*\| ([\d.]+|-) / ([\d.]+) \|", row).groups()
        assert float32 == (f"{errors['float32']:.2f}" if "float32" in computed else "-") and float(every) <= 1


def test_the_pictures_are_of_the_saved_runs(tool):
    def written(picture: Path) -> set[float]:
        texts = re.findall(r"<!-- ([\d,.e+]+)(?: .*)? -->", picture.read_text())
        return {float(text.replace(",", "")) for text in texts}

    run = runs.read(str(tool["BENCH"]))
    medians = [float(f"{1e3 * row.ours.median:.3g}") for row in run.rows if row.ours and row.label == tool["SHOWN"]]
    assert len(medians) >= 10
    assert set(medians) <= written(tool["BENCH_PICTURE"]), "run 'make readme'"
    newest = tool["gpu_page"].newest()[-1]
    shown = newest.of(tool["gpu_page"].LADDER)
    times = {us for line in shown for us in (line.us, line.torch, line.copy)}
    times = {float(f"{us:.3g}") if us < 999.5 else round(us) for us in times}
    assert len(times) >= 10
    assert times <= written(tool["GPU_PICTURE"]), "run 'make readme'"
    scored = [row.ratio() for row in tool["gpu_page"].fit_expected.measured(newest.path) if not row.fitted]
    score = tool["gpu_page"].Score.of(scored)
    says = f"the {score.rows} others, off by {score.mean:.2f} (geometric mean), the worst by {score.worst:.2f}."
    assert says in page("expected.svg"), "run 'make readme'"


def test_the_commands_print_what_the_page_says(tool):
    for package, of in (("scipy", "stats"), ("matplotlib", "plot")):
        pytest.importorskip(package, reason=f"{package}, of the extra {of}, is not installed: `compare`, `plot`")
    console, text = tool["console"], page("command_line.md")
    assert text.count("<!-- output: checked -->") >= 4
    assert re.search(r"after is faster in \d of \d rows and slower in \d", text)  # the commands print something
    played = console.played(text, recorded=False)
    assert console.without_seconds(played) == console.without_seconds(text), "run 'make readme'"


def test_the_lab_prints_what_its_page_says(tool):
    console, text = tool["console"], page("lab.md")
    assert text.count("<!-- output: checked -->") >= 3
    assert console.without_seconds(console.played(text, recorded=False)) == console.without_seconds(text), (
        "run 'make readme'"
    )
    for number, old in re.findall(
        r"```diff\n// (\d)_.*\n((?:[-+ ].*\n)+)```", text
    ):  # what the page changes is a solution
        given, mended = exercises.exercise(int(number)).text(), solved(int(number))
        for sign, whole in (("-", given), ("+", mended)):
            assert all(line[1:].strip() in whole for line in old.splitlines() if line[0] in f" {sign}"), number


def test_a_changed_output_is_seen(tool, monkeypatch):
    console = tool["console"]
    text = "<!-- output: checked -->\n```text\n$ convbackprop list --problem 1,1,9,9,1,3,3\nold\n```\n"
    played = console.played(text, recorded=False)
    assert "forward/naive" in played and "old" not in played
    recorded = text.replace("checked", "recorded")
    assert console.played(recorded, recorded=False) == recorded


# -- the recorded runs on GPUs -----------------------------------------------------------------------------------------
def test_what_has_changed_since_a_run_is_named(tool):
    run = tool["gpu_page"].newest()[-1]
    before, missing = set(run.changed), [str(variant) for variant in run.missing]
    assert before <= set(run.kept["code"])
    assert not {line.row.who for line in run.lines} & set(missing)
    del run.changed
    today = tool["gpu_page"].code_digest(ROOT, "forward/naive")
    run.kept["code"]["forward/naive"], run.kept["same"]["forward/naive"] = "another", [today]
    assert set(run.changed) == before - {"forward/naive"}  # nvcc has been seen to compile it to the same
    del run.changed
    run.kept["same"]["forward/naive"] = []
    assert set(run.changed) == before | {"forward/naive"}
    for name in run.changed:
        assert f"`{name}`" in tool["gpu_page"].about(run)
    assert "Since then the code of" in tool["gpu_page"].front(run)


def test_list_calls_unproven_what_no_recorded_gpu_has_run(tool):
    recorded = tool["gpu_page"].newest()
    for variant in VARIANTS:
        ran = any(str(variant) in run.kept["code"] and str(variant) not in run.changed for run in recorded)
        assert variant.unproven == ("cuda" in variant.runs_on and not ran), variant


def test_a_constant_that_has_changed_since_a_run_is_seen(tool):
    run = tool["gpu_page"].newest()[-1]
    for kernel in run.steps["compile"]["data"]["kernels"]:
        if kernel["file"] == "forward/naive.cu":
            kernel["constants"]["THREADS"] = "96"
    assert "forward/naive" in run.changed


def test_the_digest_is_of_the_code_alone(tool, tmp_path):
    digest = tool["gpu_page"].code_digest
    folder = tmp_path / "cuda_src" / "forward"
    folder.mkdir(parents=True)

    def of(kernel: str, header: str, at: str = "conv2d.cuh") -> str:
        (folder / "mine.cu").write_text(kernel)
        (folder / at).write_text(header)
        return digest(tmp_path, "forward/mine")

    kernel, header = '// One.\n#include "conv2d.cuh"\nint a;\n', "int b;  // two\n"
    same = of(kernel, header)
    assert of(kernel.replace("One", "Two"), "/* three\n */ int b;\n") == same
    assert of(kernel.replace("conv2d", "moved"), header, "moved.cuh") == same
    assert of(kernel, "int c;\n") != same
    assert of(kernel.replace("int a", "int d"), header) != same
    assert digest(tmp_path, "forward/other") is None


def test_predictions_are_of_the_runs_commit(tool):
    for run in tool["gpu_page"].newest():
        assert run.kept["commit"] == run.environment["commit"], "run tools/predict.py"
        names = {name for line in run.lines for name in line.row.who.split(" + ")}
        assert set(run.kept["code"]) == names, "run tools/predict.py"
        goals = {goal["job"] for goal in run.found["goals"] if goal["who"] and "/" in goal["who"]}
        timed = [line for line in run.lines if line.row.job in goals and line.us]
        missing = [line.row.job for line in timed if line.bound is None or line.expected is None]
        assert not missing, "run tools/predict.py"


def test_recorded_runs_name_no_folder(readme):
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert not re.search(r'"[^"]*/(home|root|opt|tmp|work|usr|mnt|srv)/', path.read_text()), path.name


# -- examples, commands, links -----------------------------------------------------------------------------------------
def run_examples(text: str, name: str) -> dict:
    """Run the tested examples of a page, one after the other, and return what they define."""
    names: dict = {}
    for code in re.findall(r"<!-- tested: \w+ -->\n```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, name, "exec"), names)
    return names


def test_the_example_runs(readme):
    names = run_examples(readme, "README.md")
    assert names["dx"].shape == names["x"].shape
    assert names["dw"].shape == names["w"].shape
    assert names["db"].shape == names["b"].shape


def test_the_page_on_python_runs(readme, quick_commands, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVBACKPROP_TUNED", str(tmp_path))
    names = run_examples(page("python.md"), "python.md")
    assert names["dx"].shape == names["x"].shape
    assert names["dw"].shape == names["w"].shape
    assert np.allclose(names["scores"], names["features"] @ names["weights"].T, atol=1e-3)
    assert len(list(tmp_path.glob("*.json"))) == 1  # what `tuning` has kept


def test_the_page_on_pytorch_runs(readme, quick_commands, capsys):
    torch = pytest.importorskip("torch", reason="needs torch, which is not installed: the page on PyTorch")
    names = run_examples(page("pytorch.md"), "pytorch.md")
    printed = "".join(f"    {line}\n" for line in capsys.readouterr().out.splitlines())
    assert printed
    assert printed in page("pytorch.md")
    assert names["each"].shape == (8, 4, 3, 3, 3)
    assert torch.isfinite(names["loss"])
    want = torch.nn.functional.conv1d(names["sound"], names["taps"], stride=2, padding=3, groups=2).relu()
    torch.testing.assert_close(names["filtered"], want)


def test_the_page_on_accuracy_is_what_was_measured(readme):
    tool = runpy.run_path(str(ROOT / "tools" / "accuracy.py"))
    measured = tool["read"]()
    for part in tool["parts"](measured).values():
        assert part in page("accuracy.md"), "run 'python tools/accuracy.py'"
    shares = [pair[0] for row in measured["rows"] for pair in row["ours"].values()]
    assert len(shares) > 300
    assert min(shares) >= 0 and max(shares) <= 1


def test_the_table_on_accuracy_does_not_hide_a_wrong_number():
    tool = runpy.run_path(str(ROOT / "tools" / "accuracy.py"))
    one = {"ours": {"naive": [0.5, 0.1], "tiled": [float("inf"), 0.2]}}
    assert tool["worst"](one) == (float("inf"), 0.2)
    assert tool["_share"](float("inf")) == "not finite"


def test_commands_exist(readme):
    """Of the command line and of make; every command has a line in the tour, and is shown."""
    tour = page("command_line.md")
    assert set(re.findall(r"^    convbackprop (\w+)", tour, re.MULTILINE)) == set(cli.COMMANDS)
    shown = tour + page("lab.md")
    assert set(re.findall(r"^\$ convbackprop (\w+)", shown, re.MULTILINE)) == set(cli.COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in (readme, tour, page("gpu.md"), page("ladder.md")):
        assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_environment_variables_are_told(readme):
    read = set()
    for path in (ROOT / "convbackprop").rglob("*.py"):
        read |= set(re.findall(r'"(CONVBACKPROP_[A-Z_]+)"', path.read_text()))
    told = set(re.findall(r"`(CONVBACKPROP_[A-Z_]+)`", page("command_line.md").partition("## Environment")[2]))
    assert told == read


def test_every_page_is_one_step_from_the_readme(readme):
    linked = set(re.findall(r"\]\((docs/[\w.]+\.md)", readme))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert len(readme.encode()) <= 9000


def test_links_lead_somewhere(readme):
    for path in (README, *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, anchor = link.partition("#")
            if link.startswith("http"):
                continue
            target = path.parent / file if file else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor:
                heads = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in anchors, f"{path.name}: {link}"
