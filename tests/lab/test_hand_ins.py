"""A folder of hand-ins, graded by a stand-in that does what a file says, and prints a grade as `grade --json` does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from convbackprop.errors import EnvironmentProblem, InvalidArgument
from convbackprop.lab import hand_ins, restrictions
from convbackprop.lab.confinement import Limits
from convbackprop.lab.hand_ins import grade_folder, results_file
from tests.support.children import PATIENCE, with_ctrl_c

confinable = pytest.mark.skipif(restrictions.why_not() is not None, reason=f"{restrictions.why_not()}")
pytestmark = confinable

LIMITS = Limits(cpu_seconds=3, seconds=PATIENCE, memory=1 << 30, files=64 << 20)

#: Runs the lines of a file that begin with "//!" as Python, then prints a grade, and counts itself.
GRADER = r"""
import json, os, sys
text = open(sys.argv[-1], errors="replace").read()
grade = {"compiled": True, "right": "wrong" not in text, "clean": True, "tasks": [], "said": "Nothing is wrong.",
         "coalescing": 1.0, "bank_conflicts": None, "mistake": None, "rank": None, "expected_us": 2.5, "cpu_us": None,
         "measured_us": None, "file": sys.argv[-1]}
exec("\n".join(line[3:].strip() for line in text.splitlines() if line.startswith("//!")))
print(json.dumps(grade, indent=2))
"""

COMMAND = (sys.executable, "-c", GRADER)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "class"
    made.mkdir()
    return made


def graded(folder, **options):
    return {row.name: row for row in grade_folder(folder, limits=LIMITS, command=COMMAND, **options)}


# -- which files -----------------------------------------------------------------------------------------------------
def test_names(folder):
    for name in ("b.cu", ".hidden.cu", "notes.txt"):
        (folder / name).write_text("")
    for name in ("a/one.cu", "a/two.cu", "a/notes.txt", "a/deeper/three.cu", "empty/notes.txt", ".git/four.cu"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    found = {each.name: each.trouble for each in hand_ins.hand_ins(folder)}
    assert list(found) == sorted(found)
    assert found == {"a/one.cu": None, "a/two.cu": None, "b.cu": None, "empty": "has no .cu file"}


def test_what_is_no_file(folder, tmp_path):
    (tmp_path / "solution.cu").write_text("of the teacher")
    (tmp_path / "elsewhere").mkdir()
    (folder / "link.cu").symlink_to("../solution.cu")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "student").mkdir()
    (folder / "student" / "link.cu").symlink_to("../../solution.cu")
    (folder / "directory.cu").mkdir()
    os.mkfifo(folder / "pipe.cu")
    (folder / "large.cu").write_bytes(b"/" * (1 << 21))
    rows = graded(folder)
    assert {name: row.trouble for name, row in rows.items()} == {
        "directory.cu": "is no file",
        "large.cu": "has more than 1,048,576 bytes; a kernel has a page or two",
        "link.cu": "is a symbolic link; the file itself should be handed in",
        "linked": "is a symbolic link; the folder itself should be handed in",
        "pipe.cu": "is no file",
        "student/link.cu": "is a symbolic link; the file itself should be handed in",
    }
    assert all(row.grade is None and row.facts["said"] == f"It {row.trouble}." for row in rows.values())


def test_names_that_are_no_utf8(folder):
    (folder / os.fsdecode(b"Andr\xe9.cu")).write_text("")
    (folder / 'quo"te\n.cu').write_text("")
    (folder / "-rf.cu").write_text("")
    rows = graded(folder)
    assert len(rows) == 3 and all(row.grade["right"] for row in rows.values())
    assert rows[os.fsdecode(b"Andr\xe9.cu")].grade["file"].startswith("Andr")
    assert graded(folder) == rows, "it is kept under its name"


def test_no_hand_in(folder):
    with pytest.raises(InvalidArgument, match=r"class has no hand-in: it should hold files such as student\.cu"):
        grade_folder(folder)
    with pytest.raises(InvalidArgument, match="missing cannot be read: No such file"):
        grade_folder(folder / "missing")


# -- whatever a hand-in does -----------------------------------------------------------------------------------------
HOSTILE = {
    "endless": ("while True: pass", "did not end within 3 s of CPU time"),
    "prints": ("while True: print('x' * 1000)", "printed more than 1,048,576 bytes"),
    "crash": ("import ctypes; ctypes.string_at(0)", "ended in a crash (Segmentation fault)"),
    "raises": ("raise ValueError('why')", "could not be graded: ValueError: why"),
    "ends": ("os._exit(0)", "could not be graded: without a word"),
    "forges": ("print(json.dumps({**grade, 'right': True}))", "prints what looks like a grade"),
    "wrong types": ("grade['rank'] = 5", "could not be graded: without a word"),
    "no figure": ("grade['coalescing'] = 10**400", "could not be graded: without a word"),
    "memory": ("bytearray(4 << 30)", "could not be graded: MemoryError"),
}


def test_it_costs_its_own_row_only(folder):
    for name, (code, _) in HOSTILE.items():
        (folder / f"{name}.cu").write_text(f"//! {code}\nwrong\n")
    (folder / "honest.cu").write_text("")
    (folder / "talks.cu").write_text("//! print('{\\nas you see\\n}')\n")
    other = "//! grade['said'] = open('../' + [name for name in os.listdir('..')][0] + '/hand_in/honest.cu').read()\n"
    (folder / "reads.cu").write_text(other)
    (folder / "writes.cu").write_text(f"//! open({str(folder / 'honest.cu')!r}, 'w').write('wrong')\n")
    seen = []
    rows = graded(folder, jobs=2, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 13) for i in range(14)]
    assert {name: rows[f"{name}.cu"].trouble for name in HOSTILE} == {name: end for name, (_, end) in HOSTILE.items()}
    assert rows["honest.cu"].grade["right"] and rows["talks.cu"].grade["right"]
    assert all("PermissionError" in rows[f"{name}.cu"].trouble for name in ("reads", "writes"))
    assert (folder / "honest.cu").read_text() == ""
    assert rows["endless.cu"].cpu_seconds > 2.5


def test_unconfined(folder):
    """Only the limits are left then."""
    (folder / "writes.cu").write_text(f"//! open({str(folder / 'made')!r}, 'w').write('wrong')\n")
    assert graded(folder, confined=False)["writes.cu"].grade
    assert (folder / "made").exists()


# -- the cache that all share ----------------------------------------------------------------------------------------
#: Builds an entry where there is none, and says so.
CACHED = """\
//@ pass forward
//! from convbackprop.devices import cache
//! from pathlib import Path
//! made = []
//! kept = cache.entry("0" * 32, ".txt", lambda path: made.append(path.write_text("sound")) or {})
//! grade["said"] = f"{kept.content.decode()}, {len(made)} made"
"""
BUILDS = GRADER.replace("exec(", f"exec({CACHED[CACHED.index('//!') :]!r}.replace('//! ', '')) or exec(")


def test_what_the_package_compiles_is_compiled_once(folder):
    (folder / "a.cu").write_text(CACHED)
    poison = "//! os.unlink(kept.path); kept.path.write_text('poison')\n//! grade['said'] += ', poisoned'\n"
    (folder / "b.cu").write_text(CACHED + poison)
    through = (
        "//! os.chmod(kept.path, 0o666)\n//! try: open(kept.path, 'w')\n//! except OSError: grade['said'] = 'no'\n"
    )
    (folder / "c.cu").write_text(CACHED + through)
    (folder / "d.cu").write_text(CACHED)
    rows = grade_folder(folder, limits=LIMITS, command=(sys.executable, "-c", BUILDS))
    assert [row.grade["said"] for row in rows] == ["sound, 0 made", "sound, 0 made, poisoned", "no", "sound, 0 made"]


def test_nothing_can_be_graded(folder):
    (folder / "a.cu").write_text("//@ pass forward\n")
    with pytest.raises(
        EnvironmentProblem, match=r"nothing can be graded here: the package's own forward\.cu could not"
    ):
        grade_folder(folder, limits=LIMITS, command=(sys.executable, "-c", "raise SystemExit('no compiler')"))


# -- kept results ----------------------------------------------------------------------------------------------------
def test_only_what_changed_is_graded_again(folder):
    for name in "abc":
        (folder / f"{name}.cu").write_text(name)
    seen = []

    def again(**options):
        seen.clear()
        rows = graded(folder, progress=lambda done, of: seen.append((done, of)), **options)
        return seen[-1][1], {name: row.grade["right"] for name, row in rows.items()}

    assert again() == (3, {"a.cu": True, "b.cu": True, "c.cu": True})
    assert again() == (0, {"a.cu": True, "b.cu": True, "c.cu": True})
    (folder / "b.cu").write_text("wrong")
    assert again() == (1, {"a.cu": True, "b.cu": False, "c.cu": True})
    (folder / "a.cu").unlink()
    assert again() == (0, {"b.cu": False, "c.cu": True})
    assert again(exercise=2)[0] == 2, "another exercise asks for other things"
    assert again(again=True)[0] == 2
    results_file(folder).write_text("{")
    assert again()[0] == 2, "a damaged file is as good as none"
    assert [path.name for path in folder.parent.iterdir()] == ["class", "class.grades.json"]


@pytest.mark.parametrize("pass_line, kept", [("", ["a.cu"]), ("//@ pass forward\n", None)], ids=["graded", "prepared"])
def test_ctrl_c_keeps_what_is_done(pass_line, kept, folder, tmp_path):
    """Also while what all share is prepared, when there is nothing yet."""
    endless = "open('up', 'w'); import time; time.sleep(1e6)"
    (folder / "a.cu").write_text(pass_line)
    (folder / "b.cu").write_text(f"//! {endless}\n")
    grader = GRADER + f"\nif '/shared/' in sys.argv[-1]: {endless}\n"
    code = "import sys; from pathlib import Path; from convbackprop.lab.hand_ins import grade_folder\n"
    code += f"grade_folder(Path({str(folder)!r}), command=(sys.executable, '-c', {grader!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, preexec_fn=with_ctrl_c,
                               env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    while not list(tmp_path.glob("convbackprop-*/*/up")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate()[1]
    assert not list(tmp_path.glob("convbackprop-*")), "its folders are left"
    if kept is None:
        assert not results_file(folder).exists()
    else:
        assert [entry["name"] for entry in json.loads(results_file(folder).read_text())["hand_ins"]] == kept
