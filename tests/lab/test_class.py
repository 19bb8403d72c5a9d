"""A class of thirty: naive kernels with one mistake each, some that are right, and some that are no kernels."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from convbackprop.lab.class_report import scored
from convbackprop.lab.confinement import Limits
from convbackprop.lab.hand_ins import grade_folder
from convbackprop.lab.rubric import read_rubric
from convbackprop.ladder.registry import select
from convbackprop.problem import PASSES
from tests.check.test_wrong import LAUNCHES
from tests.lab.test_hand_ins import confinable
from tests.support.children import PATIENCE
from tests.support.mutations import MUTATIONS, NAIVE

#: Those that are in the kernel's own file: a hand-in has no headers of its own.
WRONG = [name for name in NAIVE if not (MUTATIONS[name].file or MUTATIONS[name].shown_by)]

#: Device code all the same, so that it is run.
HOSTILE = {
    "endless": "for (volatile int i = 0; i < 2; ) ;",
    "crash": "*(volatile int*)64 = 1;",
    "prints": 'for (;;) printf("%0999d", 1);',
}

#: Each template asks for two more.
DEEP = """
template <int N> struct T { static constexpr long at = T<2 * N>::at + T<2 * N + 1>::at; };
constexpr long endless = T<1>::at;
"""


def naive(pass_name):
    (variant,) = select(f"{pass_name}/naive")
    launches = "".join(line for line in LAUNCHES[pass_name].splitlines(True) if "mask" not in line)
    return f"//@ pass {pass_name}\n{launches}{variant.path.read_text()}"


def hand_ins(folder):
    """Write the class's files; return, by name, whether each compiles and whether it is right."""
    texts, facts = {}, {}
    for pass_name in LAUNCHES:
        texts[f"{pass_name}.cu"], facts[f"{pass_name}.cu"] = naive(pass_name), (True, True)
    for number, name in enumerate(WRONG, 1):
        mutation, pass_name = MUTATIONS[name], name.partition("/")[0]
        file = f"wrong_{number:02}.cu"
        assert mutation.old in naive(pass_name)
        texts[file], facts[file] = naive(pass_name).replace(mutation.old, mutation.new), (True, False)
    for pass_name in PASSES:
        template = files("convbackprop") / "templates" / f"{pass_name}.cu"
        texts[f"template_{pass_name}.cu"], facts[f"template_{pass_name}.cu"] = template.read_text(), (True, True)
    texts["unfinished.cu"], facts["unfinished.cu"] = naive("forward")[:-9], (False, False)
    for file, text in texts.items():
        (folder / file).write_text(text)
    assert len(texts) == 30
    return facts


@confinable
@pytest.mark.slow
def test_thirty_hand_ins(tmp_path, capsys):
    folder = tmp_path / "class"
    folder.mkdir()
    expected = hand_ins(folder)
    rows = grade_folder(folder)
    those = scored(rows, read_rubric())
    with capsys.disabled():
        print(f"\n{sum(row.cpu_seconds for row in rows):.0f} s of CPU time for {len(rows)} hand-ins")
    assert {row.name: (row.facts["compiled"], row.facts["right"]) for row in rows} == expected
    assert not any(row.trouble for row in rows)
    for each in those:
        compiles, right = expected[each.row.name]
        assert (each.total >= 6) if right else (each.total == compiles)
    assert grade_folder(folder, progress=lambda done, of: pytest.fail("graded again") if of else None) == rows


@confinable
@pytest.mark.slow
def test_hostile_kernels(tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    start = "if (i >= shape.y_size()) return;"
    for name, code in HOSTILE.items():
        (folder / f"{name}.cu").write_text(naive("forward").replace(start, f"{start} {code}"))
    (folder / "deep.cu").write_text(naive("forward") + DEEP)
    (folder / "host.cu").write_text(naive("forward") + "struct H { H() { for (;;) fork(); } } h;\n")
    (folder / "other.cu").write_text('#include "../honest/hand_in/honest.cu"\n' + naive("forward"))
    (folder / "none.cu").write_text("//@ pass forward\n")
    (folder / "honest.cu").write_text(naive("forward"))
    rows = {row.name: row for row in grade_folder(folder, limits=Limits(cpu_seconds=30, seconds=PATIENCE))}
    assert set(rows) == {path.name for path in folder.iterdir()}
    assert [name for name, row in rows.items() if row.facts["right"]] == ["honest.cu"]
    for name in ("endless.cu", "deep.cu", "prints.cu"):
        assert re.search("did not end|more than", rows[name].facts["said"])
    assert "#include" in rows["other.cu"].facts["said"]
    assert "fork is a function of the host" in rows["host.cu"].facts["said"]
