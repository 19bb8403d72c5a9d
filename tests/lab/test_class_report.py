"""The table of a class, and the command that prints it."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree

import pytest

from convbackprop.cli import grade_class
from convbackprop.lab import class_report, hand_ins
from convbackprop.lab.hand_ins import Row
from convbackprop.lab.rubric import example, read_rubric
from tests.lab.test_hand_ins import COMMAND, confinable

GRADE = {
    "compiled": True, "right": True, "clean": True, "tasks": [], "said": "Nothing is wrong.", "coalescing": 1.5,
    "bank_conflicts": None, "mistake": None, "expected_us": 12.5, "cpu_us": 100.0, "measured_us": None,
    "rank": {"by": "expected", "faster_than": ["naive"], "slower_than": ["tiled", "coalesced"]},
}  # fmt: skip

NOT_TURNED = {"kind": "filter_not_turned", "title": "The filter is <not> turned.", "why": "", "look_at": ""}

ROWS = (
    Row("zoe.cu", GRADE, None),
    Row(
        "=cmd().cu",
        {**GRADE, "right": False, "rank": None, "said": "It is\nwrong & more.", "mistake": NOT_TURNED},
        None,
    ),
    Row("andr\udce9.cu", None, "did not end within 300 s of CPU time"),
    Row("<b>.cu", {**GRADE, "right": False, "rank": None, "mistake": NOT_TURNED}, None),
)


@pytest.fixture
def rubric():
    return read_rubric()


@pytest.fixture
def those(rubric):
    return class_report.scored(ROWS, rubric)


def test_rows(those):
    assert [(each.name, each.total, each.rank) for each in those] == [
        ("<b>.cu", 1, None), ("=cmd().cu", 1, None), ("andr\\xe9.cu", 0, None), ("zoe.cu", 8, (3, 4)),
    ]  # fmt: skip
    assert those[2].said == "It did not end within 300 s of CPU time."
    assert class_report.mistakes(those) == [(NOT_TURNED["title"], ["<b>.cu", "=cmd().cu"])]


def test_a_terminal_obeys_nobody(rubric):
    evil = {**GRADE, "said": "\x1b[2J\ud800 gone\n\n", "mistake": None}
    (each,) = class_report.scored([Row("\x1b[31m.cu", evil, None)], rubric)
    assert (each.name, each.said, each.brief) == ("\\x1b[31m.cu", *["\\x1b[2J\\xd800 gone"] * 2)
    class_report.as_csv([each], rubric).encode()


def test_csv(those, rubric):
    head, *rows = csv.reader(io.StringIO(class_report.as_csv(those, rubric)))
    assert head[:3] == ["hand-in", "compiles", "right"]
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["hand-in"] for row in found] == ["<b>.cu", "'=cmd().cu", "andr\\xe9.cu", "zoe.cu"]
    assert [row["points"] for row in found] == ["1", "1", "0", "8"]
    assert {row["of"] for row in found} == {"10"}
    zoe = found[-1]
    assert (zoe["rank"], zoe["rungs"], zoe["rank by"], zoe["beats naive"], zoe["beats tiled"]) == (
        "3", "4", "expected", "1", "0",
    )  # fmt: skip
    assert (zoe["coalescing"], zoe["bank_conflicts"], zoe["expected_us"]) == ("1.5", "", "12.5")


def test_html(those, rubric):
    text = class_report.as_html(those, rubric, "A class & more")
    body = text[text.index("<body>") : text.index("</html>")].replace("<br>", "<br/>")
    tree = xml.etree.ElementTree.fromstring(body)
    cells = [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]
    assert [cells[i][0] for i in range(1, 5)] == ["<b>.cu", "=cmd().cu", "andr\\xe9.cu", "zoe.cu"]
    assert cells[4][-3:] == ["8", "3 of 4", "Nothing is wrong."]
    assert cells[5] == ["2", NOT_TURNED["title"], "<b>.cu, =cmd().cu"]
    assert "4 hand-ins, 1 of them right; 2.5 of 10 points on average." in "".join(tree.itertext())
    assert "expected on a GPU, which none has measured" in text
    assert not any(word in text for word in ("<script", "src=", "href=", "url("))


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def grade(run, tmp_path, monkeypatch):
    """Return what a command prints for the folder `class`, with a stand-in that grades."""
    monkeypatch.setattr(hand_ins.grade_folder, "__kwdefaults__",
                        {**hand_ins.grade_folder.__kwdefaults__, "command": COMMAND})  # fmt: skip
    (tmp_path / "class").mkdir()

    def command(*words):
        return run("grade", "class", *words)

    return command


@confinable
def test_command(grade, tmp_path):
    for name, text in {"anna": "", "bert": "wrong", "carl": "//! os._exit(3)"}.items():
        (tmp_path / "class" / f"{name}.cu").write_text(text)
    code, out, _ = grade("--csv", "points.csv", "--html", "deeper/points.html")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [(line[0], line[8]) for line in lines if line and line[0].endswith(".cu")] == [
        ("anna.cu", "8"), ("bert.cu", "1"), ("carl.cu", "0"),
    ]  # fmt: skip
    assert "3 hand-ins, 1 right; results are kept in" in out
    assert (tmp_path / "points.csv").read_text().count("\n") == 4
    assert "Hand-ins: class" in (tmp_path / "deeper" / "points.html").read_text()
    (tmp_path / "own.toml").write_text("right = 1\n")
    code, out, _ = grade("--json", "--rubric", "own.toml")
    assert [row["points"] for row in json.loads(out)["hand_ins"]] == [1, 0, 0]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--minutes", "0"), "--minutes is 0.0; it should be more than 0"),
        (("--minutes", "nan"), "--minutes is nan; it should be more than 0"),
        (("--jobs", "0"), "--jobs is 0; it should be at least 1"),
        (("--rubric", "missing.toml"), "missing.toml cannot be read"),
        (("--device", "cuda"), "--device is cuda; a folder is graded on cpu"),
        (("--exercise", "9"), "exercise is 9; it should be"),
        (("--csv", "/proc/points.csv"), "/proc/points.csv cannot be written"),
        ((), "class has no hand-in: it should hold files"),
    ],
)
def test_bad_input(words, sentence, grade, tmp_path):
    if words:
        (tmp_path / "class" / "a.cu").write_text("")
    code, _, err = grade(*words)
    assert code == 2
    assert sentence in err


def test_it_refuses_without_protection(grade, tmp_path, monkeypatch):
    (tmp_path / "class" / "a.cu").write_text("")
    monkeypatch.setattr(grade_class, "what_is_missing", lambda folder: ["a hand-in could open a connection"])
    code, out, err = grade()
    assert (code, out) == (1, "")
    assert "cannot be confined on this machine, and none was run: a hand-in could open a connection" in err
    assert not (tmp_path / "class.grades.json").exists()
    code, out, _ = grade("--unconfined")
    assert code == 0 and "1 hand-in, 1 right" in out


def test_the_rubric_is_printed(run):
    assert run("grade", "--rubric-example") == (0, example(), "")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("mine.cu", "--jobs", "2"), "--jobs is for a folder of hand-ins; mine.cu is none"),
        (("mine.cu", "--csv", "points.csv"), "--csv is for a folder of hand-ins"),
        ((), "nothing is named that could be graded"),
    ],
)
def test_a_file_is_no_folder(words, sentence, run):
    code, _, err = run("grade", *words)
    assert code == 2 and sentence in err
