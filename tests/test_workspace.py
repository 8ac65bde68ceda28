"The learner's folder: made and never written over, answers found in it, modules rebuilt in it."

from __future__ import annotations

import ast
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from gradbook.course import state
from gradbook.course.core import EXERCISES, chapter_of
from gradbook.course.rebuild import (
    absolute,
    file_of,
    functions,
    is_stub,
    modules_of,
    rebuild,
    rebuild_check,
    rebuilt,
    run_mixed,
    skeleton,
    users_of,
)
from gradbook.course.report import BEGIN, curve, report
from gradbook.course.tracks import (
    TRACKS,
    code_cells,
    exercises,
    lesson,
    plan_page,
    source,
    stems,
    titles,
    written,
)
from gradbook.course.workspace import WorkspaceError, check_answers, progress_of, start
from gradbook.cuda import sim
from tools.notebook import page_name

ROOT = Path(__file__).resolve().parent.parent
PART_ONE = [c for c in written() if c <= "06"]
MODULES = [m for c in PART_ONE for m in modules_of(c)]
PART_TWO = [c for c in written() if "07" <= c < "11"]
PART_THREE = [c for c in written() if "11" <= c < "17"]
PART_FOUR = [c for c in written() if "17" <= c < "24"]
KERNEL_CHAPTERS = [c for c in written() if c.startswith("27")]
LATER = [m for c in PART_TWO + PART_THREE + PART_FOUR + KERNEL_CHAPTERS for m in modules_of(c)]
needs_compiler = pytest.mark.skipif(not sim.available(), reason="no C++ compiler")
DAY = datetime.date(2026, 3, 2)


@pytest.fixture(autouse=True)
def real_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    "Progress goes where a learner's would."
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.delenv("GRADBOOK_STATE", raising=False)
    state.STATES.clear()
    yield
    state.STATES.clear()


@pytest.fixture
def course(tmp_path: Path) -> Path:
    start(tmp_path / "course", 4, DAY)
    return tmp_path / "course"


def everything(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def library(module: str) -> str:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return absolute(path.read_text(encoding="utf-8"), module)


def answer(root: Path, id: str, code: str) -> None:
    "Put code into the cell of an exercise."
    [path] = root.glob(f"week-*/{stems()[chapter_of(id)]}.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    [cell] = [c for c in code_cells(notebook) if f"#| exercise: {id}" in source(c)]
    cell["source"] = f"#| exercise: {id}\n{code}"
    path.write_text(json.dumps(notebook), encoding="utf-8")


def python(code: str, place: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)


# ------------------------------------------------------------- plans


def test_the_plans_hold_the_chapters_of_the_book() -> None:
    parts = yaml.safe_load((ROOT / "nbs" / "contents.yml").read_text(encoding="utf-8"))
    all_pages = {page_name(k).id: t for part in parts for k, t in part["chapters"].items()}
    book = {id: title for id, title in all_pages.items() if id < "90"}
    assert titles() == book
    plans = {n: [c for week in plan for c in week.chapters] for n, plan in TRACKS.items()}
    assert sorted(plans[8]) == sorted(book)
    assert set(plans[4]) < set(plans[6]) < set(plans[8])
    for track, chapters in plans.items():
        assert len(chapters) == len(set(chapters))
        assert len(TRACKS[track]) == track
        for week in TRACKS[track]:  # a further page stands with its chapter
            assert {id for id in book if id[:2] in week.chapters} == set(week.chapters)
        assert all(week.milestone.endswith(".") for week in TRACKS[track])


def test_written_chapters_are_those_with_a_notebook() -> None:
    names = sorted(page_name(p).id for p in (ROOT / "nbs").glob("*.ipynb"))
    assert written() == [id for id in names if "" < id < "90"]
    page = plan_page(8)
    assert page.count("(coming)") == len(titles()) - len(written())
    for exercise in exercises("03"):
        assert EXERCISES[exercise.id] is exercise


@pytest.mark.parametrize("chapter", written())
def test_learners_notebook_is_valid_and_has_no_keys(chapter: str) -> None:
    notebook = lesson(chapter)
    nbformat.validate(nbformat.reads(json.dumps(notebook), 4))
    text = "\n".join(map(source, notebook["cells"]))
    assert "(Exercise)" not in text and "Quiz(" not in text and "#| export" not in text
    assert all(c["outputs"] == [] for c in code_cells(notebook))
    [original] = (ROOT / "nbs").glob(f"{chapter}_*.ipynb")
    ids = [c["id"] for c in json.loads(original.read_text(encoding="utf-8"))["cells"]]
    own = [c["id"] for c in notebook["cells"] if not c["id"].startswith("gradbook-")]
    assert own == [id for id in ids if id in own]
    asked = [s for c in code_cells(notebook) if (s := source(c)).startswith("#| exercise:")]
    assert len(asked) == len(exercises(chapter))
    for sign in ("{#", ":::", "@eq-", "@fig-", "@sec-", "@ch-", "[@"):
        assert not any(sign in source(c) for c in notebook["cells"] if c["cell_type"] == "markdown")


# ------------------------------------------------------------- start


def test_start_makes_a_folder_with_the_plan_in_it(tmp_path: Path) -> None:
    outcome = start(tmp_path / "new" / "course", 6, DAY)
    root = tmp_path / "new" / "course"
    assert outcome.code == 0 and not outcome.record["left alone"]
    assert (root / "reports").is_dir() and "Week 6" in (root / "README.md").read_text()
    assert {page_name(p).id for p in root.rglob("*.ipynb")} == {
        c for week in TRACKS[6] for c in week.chapters if c in written()
    }
    plan = json.loads((root / ".gradbook" / "plan.json").read_text())
    assert plan["weeks"] == 6 and plan["started"] == "2026-03-02"


def test_start_refuses_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(WorkspaceError, match=r"not empty \(mine.txt\)"):
        start(tmp_path)
    with pytest.raises(WorkspaceError, match="is a file"):
        start(tmp_path / "mine.txt")
    with pytest.raises(WorkspaceError, match="choose 4, 6 or 8"):
        start(tmp_path / "course", 5)
    assert everything(tmp_path) == {"mine.txt": b"x"}


def test_start_again_changes_nothing_of_the_learners(course: Path) -> None:
    before = everything(course)
    assert "nothing is new" in start(course).text
    assert everything(course) == before
    readme, lost = course / "README.md", course / "week-1" / "01_numdiff.ipynb"
    readme.write_text("my own")
    lost.unlink()
    (course / "week-1" / "notes.md").write_text("notes")
    outcome = start(course)
    assert outcome.record["new"] == ["week-1/01_numdiff.ipynb"]
    assert outcome.record["left alone"] == ["README.md"] and "README.md (you" in outcome.text
    assert readme.read_text() == "my own" and lost.exists()
    assert (course / "week-1" / "notes.md").read_text() == "notes"


def test_what_the_learner_did_not_touch_is_brought_up_to_date(course: Path) -> None:
    path, plan_file = course / "week-1" / "03_value.ipynb", course / ".gradbook" / "plan.json"
    now = path.read_text(encoding="utf-8")
    old = now.replace("Reverse mode", "An older edition")
    path.write_text(old, encoding="utf-8")
    assert start(course).record["left alone"] == ["week-1/03_value.ipynb"]
    from gradbook.course.workspace import fingerprint

    plan = json.loads(plan_file.read_text())
    plan["files"]["week-1/03_value.ipynb"] = fingerprint(old)
    plan_file.write_text(json.dumps(plan))
    assert start(course).record["updated"] == ["week-1/03_value.ipynb"]
    assert path.read_text(encoding="utf-8") == now


def test_a_longer_plan_moves_no_notebook(course: Path) -> None:
    own = course / "mine" / "03_value.ipynb"
    own.parent.mkdir()
    (course / "week-1" / "03_value.ipynb").rename(own)
    outcome = start(course, 8)
    assert "week-1/02_dual.ipynb" in outcome.record["new"]
    assert list(course.rglob("03_value.ipynb")) == [own]
    assert len(progress_of(course).record["weeks"]) == 8


def test_an_interrupted_start_is_finished_by_the_next(tmp_path: Path) -> None:
    root = tmp_path / "course"
    start(root, 4, DAY)
    whole = everything(root)
    plan = root / ".gradbook" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "files": {}}))
    (root / "week-1" / "04_neural.ipynb").unlink()
    assert start(root).record["left alone"] == []
    assert everything(root) == whole


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 1}', '{"version": 1, "weeks": 9}'])
def test_a_damaged_plan_is_set_aside(course: Path, damage: str) -> None:
    answer(course, "03.1", "def atan(x):\n    return 1")
    before = everything(course)
    plan = course / ".gradbook" / "plan.json"
    plan.write_text(damage)
    with pytest.raises(WorkspaceError, match=r"plan.json cannot be used.*gradbook start"):
        progress_of(course)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        report(course)
    assert plan.read_text() == damage
    outcome = start(course, 4)
    assert "kept as plan.json.damaged-1" in outcome.text
    after = everything(course)
    assert after.pop(".gradbook/plan.json.damaged-1").decode() == damage
    same = before.keys() - {".gradbook/plan.json"}
    assert all(after[name] == before[name] for name in same)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    start(tmp_path / "course", 4, DAY)
    before = everything(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        start(tmp_path / "file" / "course")
    (tmp_path / "file").unlink()
    (tmp_path / "course" / "README.md").unlink()
    before.pop("course/README.md")
    monkeypatch.setattr(os, "replace", refuse)
    for action in (start, report, lambda root: rebuild("03", root)):
        with pytest.raises(WorkspaceError, match="cannot be written: Permission denied"):
            action(tmp_path / "course")
    assert everything(tmp_path) == before


# ------------------------------------------------------------- answers


def test_stubs_are_not_started(course: Path) -> None:
    outcome = check_answers("", course)
    assert outcome.code == 0 and "nothing is begun" in outcome.text
    assert {e["status"] for e in outcome.record["exercises"]} == {"not started"}
    assert check_answers("03.1", course).record["exercises"][0]["status"] == "not started"
    assert not (course / ".gradbook" / "progress.json").exists()


def test_a_right_answer_passes_and_is_recorded_here(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    for exercise in exercises("03"):
        answer(course, exercise.id, exercise.solution_source() + f"\n\ncheck('{exercise.id}')")
    outcome = check_answers("03", course)
    assert outcome.code == 0, outcome.text
    assert {e["status"] for e in outcome.record["exercises"]} == {"passed"}
    record = json.loads((course / ".gradbook" / "progress.json").read_text())["exercises"]
    assert all("passed" in record[e.id] for e in exercises("03"))
    assert not (tmp_path / "elsewhere").exists()
    rows = progress_of(course).record["weeks"]
    assert set(rows[0]["passed"]) == {e.id for e in exercises("03")}


@pytest.mark.parametrize(
    "chapter",
    [
        *PART_ONE, *PART_TWO, *PART_THREE, *PART_FOUR,
        *(pytest.param(c, marks=needs_compiler) for c in KERNEL_CHAPTERS),
    ],
)  # fmt: skip
def test_every_reference_solution_passes_where_the_learner_writes_it(
    course: Path, chapter: str
) -> None:
    start(course, 8)
    for exercise in exercises(chapter):
        answer(course, exercise.id, exercise.solution_source())
    outcome = check_answers(chapter, course)
    assert outcome.code == 0, outcome.text


def test_slow_imports_are_not_the_answers_fault(
    course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "The time of an exercise is for its own cell, not for what the chapter imports before."
    answer(course, "03.1", "def atan(x):\n    ...")
    [path] = course.glob("week-*/03_value.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    first = code_cells(notebook)[0]
    first["source"] = "class Slow:\n    import time\n    time.sleep(0.6)"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setattr(exercises("03")[0], "seconds", 0.5)
    assert check_answers("03.1", course).record["exercises"][0]["status"] == "not started"


def test_what_can_go_wrong_with_an_answer(course: Path) -> None:
    answer(course, "03.1", "def atan(x):\n    return x.sin()")
    answer(course, "03.2", "def hypot(x, y)\n    return 1")
    answer(
        course,
        "03.3",
        "x = [0 for _ in iter(int, 1) if False]\ndef count_paths(root, leaf): return 1",
    )
    answer(course, "03.4", "def something_else(root): return 1")
    answer(course, "03.5", "bad = 1 / 0\ndef log_sum_exp(xs): return 1")
    outcome = check_answers("", course)
    assert outcome.code == 1 and "03.1  failed" in outcome.text
    assert "03.3  timeout" in outcome.text and "gradbook check 03.1 says more" in outcome.text
    said = {id: check_answers(id, course).text for id in ("03.2", "03.5")}
    assert "line 2: expected ':'" in said["03.2"]
    assert "line 2: bad = 1 / 0" in said["03.5"] and "ZeroDivisionError" in said["03.5"]
    with pytest.raises(WorkspaceError, match=r"03.4 defines no order_by_counting"):
        check_answers("03.4", course)
    for wrong, message in (
        ("03.99", "Did you mean"),
        ("99", "no exercises"),
        ("x.y", "no exercise"),
    ):
        with pytest.raises(WorkspaceError, match=message):
            check_answers(wrong, course)


def test_helpers_of_the_notebook_are_there(course: Path) -> None:
    [path] = course.glob("week-1/03_value.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    at = next(k for k, c in enumerate(notebook["cells"]) if "exercise: 03.1" in source(c))
    helper = "%matplotlib inline\nprint('not run')\nSQUARE = 2\n"
    helper += "def slope(a):\n    return 1 / (1 + a**SQUARE)"
    cell = {"cell_type": "code", "id": "own", "metadata": {}, "outputs": [], "source": helper}
    notebook["cells"].insert(at, {**cell, "execution_count": None})
    path.write_text(json.dumps(notebook), encoding="utf-8")
    body = (
        'def atan(x):\n    a = x.data\n    return result("atan", math.atan(a), (x,), (slope(a),))'
    )
    answer(course, "03.1", body)
    assert check_answers("03.1", course).code == 0


def test_an_answer_in_a_plain_file(course: Path) -> None:
    (course / "answers").mkdir()
    code = "from gradbook.scalar.value import result\nimport math\n"
    code += EXERCISES["03.1"].solution_source()
    (course / "answers" / "03_1.py").write_text(code)
    assert check_answers("03.1", course).code == 0


def test_notebooks_that_are_lost_or_broken(course: Path) -> None:
    path = course / "week-1" / "03_value.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("#| exercise: 03.2", ""), encoding="utf-8")
    with pytest.raises(WorkspaceError, match="no cell that begins with"):
        check_answers("03.2", course)
    path.write_text(text[:1000], encoding="utf-8")
    with pytest.raises(WorkspaceError, match="it is no notebook"):
        check_answers("03.2", course)
    path.unlink()
    with pytest.raises(WorkspaceError, match="brings it back"):
        check_answers("03.2", course)
    assert check_answers("01", course).code == 0


def test_outside_a_workspace(tmp_path: Path) -> None:
    for action in (check_answers, lambda p: check_answers("03", p), progress_of, report):
        with pytest.raises(WorkspaceError):
            action(tmp_path)  # type: ignore[operator]


def test_the_learners_notebook_runs_as_written(course: Path) -> None:
    code = """
import json, sys, types, os
import gradbook
sys.modules["matplotlib"] = None
main = sys.modules["__main__"]
cells = json.load(open("03_value.ipynb"))["cells"]
for cell in cells:
    if cell["cell_type"] == "code" and "timing" not in cell["metadata"].get("gradbook", {}):
        text = "".join(cell["source"])
        exec(compile(text, cell["id"], "exec", 0x1000000, dont_inherit=True), main.__dict__)
"""
    run = python(code, course / "week-1")
    assert run.returncode == 0, run.stderr
    assert "exercise 03.1: not started" in run.stdout


# ------------------------------------------------------------- rebuild


@pytest.mark.parametrize("module", MODULES + LATER)
def test_a_skeleton_has_signatures_and_no_bodies(module: str) -> None:
    text = skeleton(library(module), module)
    theirs, own = functions(ast.parse(library(module))), functions(ast.parse(text))
    assert list(own) == list(theirs) and all(map(is_stub, own.values()))
    for name, node in theirs.items():
        assert ast.dump(node.args) == ast.dump(own[name].args)
        assert ast.get_docstring(node) == ast.get_docstring(own[name])
        assert list(map(ast.dump, node.decorator_list)) == list(
            map(ast.dump, own[name].decorator_list)
        )
    assert "AUTOGENERATED" not in text and "__all__" not in text and "# %%" not in text


@pytest.mark.parametrize("module", MODULES)
def test_any_mixture_of_library_and_learner_loads(module: str) -> None:
    "Every second function the learner's: each has the file it comes from, and its line there."
    text, lines = library(module), library(module).splitlines()
    whole = functions(ast.parse(text))
    todo = [name for name, node in whole.items() if not is_stub(node)]
    for start_at in (0, 1):
        kept = set(todo[start_at::2])
        own = skeleton_but(text, module, kept)
        names: dict[str, Any] = {"__name__": f"mixture_{start_at}", "__file__": "library.py"}
        sys.modules[names["__name__"]] = sys.modules["__main__"]
        found = run_mixed(text, own, ("library.py", "own.py"), names)
        del sys.modules[names["__name__"]]
        assert set(found) == kept
        for name in todo:
            function = names
            if " (" in name:
                continue
            for k, part in enumerate(name.split(".")):
                function = function[part] if k == 0 else vars(function)[part]  # type: ignore
            function = getattr(function, "fget", function)
            code = getattr(getattr(function, "__func__", function), "__code__", None)
            if (
                code is not None
                and code.co_filename.endswith(".py")
                and "/" not in code.co_filename
            ):
                assert code.co_filename == ("own.py" if name in kept else "library.py"), name
                there = (own if name in kept else text).splitlines()[code.co_firstlineno - 1]
                assert there.lstrip().startswith(("def ", "@")), there
    assert lines


def skeleton_but(text: str, module: str, kept: set[str]) -> str:
    "The skeleton with some bodies left in."
    tree, full = ast.parse(skeleton(text, module)), functions(ast.parse(text))
    for name, node in functions(tree).items():
        if name in kept:
            node.body = full[name].body
    return ast.unparse(tree)


def test_a_skeleton_changes_nothing(course: Path) -> None:
    for chapter in PART_ONE:
        rebuild(chapter, course)
    code = "from gradbook.course.rebuild import here; here()\n"
    code += "".join(f"import {module}\n" for module in MODULES)
    code += "from gradbook.scalar.value import Value\nfrom gradbook.scalar.neural import MLP\n"
    code += "x = Value(3.0); y = x * x; y.backward()\n"
    code += "print(x.grad, Value.__init__.__code__.co_filename)"
    run = python(code, course)
    assert run.stdout.startswith("6.0") and "rebuild" not in run.stdout and run.stderr == ""


ARRAYS = """
x = gb.Tensor([1.0, 2.0], requires_grad=True)
(gb.softmax(x) * x[::-1]).sum().backward()
cube = lambda x: (x**3).sum()
gb.hessian(cube)(x), gb.vmap(gb.grad(cube))(gb.ones((2, 2))), gb.linalg.inv(gb.eye(2))
print("found", gb.random.uniform(gb.random.key(0), 2), x.grad)
"""
NETWORKS = """
nn, optim, x = gb.nn, gb.optim, gb.random.normal(gb.random.key(0), (64, 4))
data = gb.data.ArrayDataset(x, (x[:, 0] > 0).astype("int64"))
gb.manual_seed(0)
parts = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
model = nn.Sequential(*parts)
trainer = gb.train.Trainer(model, nn.CrossEntropyLoss(), optim.AdamW(model.parameters(), lr=0.01))
trainer.fit(gb.data.DataLoader(data, batch_size=16, shuffle=True), epochs=2)
print("found", *(round(float(p.data.sum()), 4) for p in model.parameters()))
"""
MODELS = """
from gradbook.models.lenet import LeNet5
from gradbook.models.vision import enlarged, grad_cam, resnet, suspects
from gradbook.nn.conv import Conv1d, ConvTranspose2d
from gradbook.models.seq2seq import Translator
from gradbook.nn.pool import AdaptiveMaxPool2d, AvgPool2d
from gradbook.nn.rnn import LSTM
x, model = gb.random.uniform(gb.random.key(0), (4, 1, 28, 28)), LeNet5(key=0)
y = ConvTranspose2d(1, 2, 2, stride=2, key=1)(AvgPool2d(2)(gb.Tensor(x)))
(model(x).sum() + AdaptiveMaxPool2d(3)(y).sum() + Conv1d(28, 2, 3, key=2)(x[:, 0]).sum()).backward()
slopes = gb.vmap(gb.grad(lambda x: (model(x[None]) ** 2).sum()))(gb.Tensor(x))
sees = resnet(8, 2, channels=1, key=3)
sees(x).sum().backward()
heat = enlarged(grad_cam(sees, sees.blocks, x, [1, 2, 3, 4]), (28, 28))
guess = suspects([[0.9, 0.1], [0.2, 0.8]], [1, 1])[0].guess
sums = [round(float(p.grad.data.sum()), 3) for m in (model, sees) for p in m.parameters()]
y, (h, c) = LSTM(28, 4, 2, bidirectional=True, key=3)(x[:, 0], lengths=[4, 3, 1, 2] * 7)
ids = Translator(40, 11, 8, key=4).translate([[3, 4, 0], [5, 6, 7]], [2, 3], 10)
print("found", slopes.shape, *sums, round(float((y * y).sum() + (h * c).sum()), 3), ids.tolist(),
      round(float(heat.sum()), 2), guess)
"""


KERNELS = """
import numpy as np
from gradbook.cuda import agree, fused, kernels, race, sim, switch
assert sim.available()
x = np.arange(12, dtype="float32").reshape(3, 4)
losses = fused.cross_entropy_(x, np.array([0, 1, 2]))
with kernels.simulating(check=True):
    y = kernels.matmul(kernels.softmax(x), x.T.copy())
table = agree.agreement_table("float64", "cpu")
print("found", losses.round(3), y.round(3).tolist(), len(table) > 90)
"""


@pytest.mark.parametrize("step", [0, 2, 1], ids=["stubs only", "every second", "all written"])
@pytest.mark.parametrize(
    ("chapters", "program"),
    [
        (PART_TWO, ARRAYS),
        (PART_THREE, NETWORKS),
        (PART_FOUR, MODELS),
        pytest.param(KERNEL_CHAPTERS, KERNELS, marks=needs_compiler),
    ],
    ids=["arrays", "networks", "models", "kernels"],
)
def test_a_part_works_at_every_stage_of_a_rebuild(
    course: Path, chapters: list[str], program: str, step: int
) -> None:
    for chapter in chapters:
        rebuild(chapter, course)
    modules = [m for c in chapters for m in modules_of(c)]
    written_in = 0
    for module in modules if step else []:
        text = library(module)
        names = [name for name, node in functions(ast.parse(text)).items() if not is_stub(node)]
        own = skeleton_but(text, module, set(names[::step]))
        file_of(course, module).write_text(own, encoding="utf-8")
        written_in += bool(names)
    code = "from gradbook.course.rebuild import here; here()\nimport gradbook as gb\n" + program
    run = python(code, course)
    plain = python(code, course.parent)
    assert run.stderr == plain.stderr
    assert run.stdout.splitlines()[-1] == plain.stdout.splitlines()[-1]
    assert run.stdout.count("functions are yours") == written_in


@pytest.mark.parametrize("chapter", ["01", "03"])
def test_the_chapter_passes_with_the_learners_module(course: Path, chapter: str) -> None:
    rebuild(chapter, course)
    for module in modules_of(chapter):
        file_of(course, module).write_text(library(module), encoding="utf-8")
    outcome = rebuild_check(chapter, course, later=False)
    assert outcome.code == 0, outcome.text
    assert "is all yours" in outcome.text and f"chapter {chapter} passes" in outcome.text
    note = json.loads((course / ".gradbook" / "rebuild.json").read_text())[chapter]
    assert note["chapters"] == {chapter: True} and note["yours"] == note["of"]
    report(course, today=DAY)
    assert f"chapter {chapter} passes" in (course / "reports" / "week-1.md").read_text()


def test_a_chapter_without_a_module_says_so(course: Path) -> None:
    with pytest.raises(WorkspaceError, match="36b builds no module"):
        rebuild("36b", course)


def test_later_chapters_are_those_that_use_it() -> None:
    assert users_of("03")[0] == "04"
    assert "01" not in users_of("03") and "03" in users_of("01")


def write_body(path: Path, name: str, body: str) -> None:
    text = path.read_text(encoding="utf-8")
    at = text.index("raise NotImplementedError", text.index(f"def {name}("))
    rest = text[at + len("raise NotImplementedError") :]
    path.write_text(text[:at] + body + rest, encoding="utf-8")


def test_a_wrong_function_is_found(course: Path) -> None:
    rebuild("01", course)
    path = course / "rebuild" / "scalar" / "numdiff.py"
    write_body(path, "central_difference", "return (f(x + 1e-5) - f(x)) / 1e-5")
    write_body(path, "forward_difference", "return (f(x + 1e-8) - f(x)) / 1e-8")
    outcome = rebuild_check("01", course)
    assert outcome.code == 1 and len(outcome.record["runs"]) == 1
    run = outcome.record["runs"][0]
    assert run["cell"] and run["suspects"] == ["central_difference"], outcome.text
    assert "with the library's central_difference the cell passes" in outcome.text
    write_body(path, "best_step", "return undefined")
    outcome = rebuild_check("01", course)
    assert "rebuild/scalar/numdiff.py, line" in outcome.text
    assert "in best_step: return undefined" in outcome.text and "NameError" in outcome.text


def test_an_endless_loop_is_stopped_and_shown(course: Path) -> None:
    rebuild("01", course)
    path = course / "rebuild" / "scalar" / "numdiff.py"
    write_body(path, "best_step", "while True: pass")
    outcome = rebuild_check("01", course, seconds=2)
    assert outcome.code == 1 and "stopped after 2 seconds" in outcome.text
    assert "in best_step: while True: pass" in outcome.text


def test_a_file_with_a_syntax_error_does_not_pass(course: Path) -> None:
    rebuild("01", course)
    (course / "rebuild" / "scalar" / "numdiff.py").write_text("def best_step(\n")
    outcome = rebuild_check("01", course)
    assert outcome.code == 1 and "was never closed" in outcome.text
    assert "passes" not in outcome.text


SHAPES = """
class Shape:
    sides = 0
    def __init__(self, size):
        self.size = size
    def area(self):
        return 0.0
    @property
    def name(self):
        return "shape"
    @name.setter
    def name(self, text):
        raise AttributeError(text)

class Square(Shape):
    sides = 4
    def __init__(self, size):
        super().__init__(size)
    def area(self):
        return self.size**2

def total(shapes):
    return sum(s.area() for s in shapes if isinstance(s, Shape))
"""


def mixture(own: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "shapes"}
    run_mixed(SHAPES, own, ("library.py", "own.py"), names)
    return names


def test_a_class_that_is_all_the_learners_may_look_different_inside() -> None:
    own = """
class Shape:
    def __init__(self, size):
        self.s = size
    def area(self):
        return self.s * 10
    def extra(self):
        return "mine"

class Square(Shape):
    def __init__(self, size):
        super().__init__(size)
    def area(self):
        raise NotImplementedError
"""
    names = mixture(own.replace("raise NotImplementedError", "return self.s**2"))
    assert names["total"]([names["Shape"](1), names["Square"](3)]) == 19
    assert names["Shape"](1).extra() == "mine" and not hasattr(names["Shape"], "name")
    names = mixture(own.replace("return self.s * 10", "..."))
    assert (
        names["Shape"](1).extra() == "mine"
        and names["Shape"].area.__code__.co_filename == "library.py"
    )
    assert hasattr(names["Shape"], "name"), "a mixed class keeps what the learner left out"


def test_constants_helpers_and_lambdas_of_the_learner_count() -> None:
    own = "import math\nfrom math import tau as T\ntotal = lambda shapes: T\nFACTOR = math.pi\n"
    names = mixture(own)
    assert names["total"]([]) == names["T"] and names["FACTOR"] * 2 == names["T"]
    assert names["Square"](2).area() == 4


def test_the_rest_of_the_library_calls_the_learners_function(course: Path) -> None:
    rebuild("01", course)
    write_body(course / "rebuild" / "scalar" / "numdiff.py", "best_step", "return small()")
    with (course / "rebuild" / "scalar" / "numdiff.py").open("a") as file:
        file.write("\nSMALL = 0.5\n\n\ndef small():\n    return SMALL\n")
    use = "from gradbook.scalar.numdiff import forward_difference as d\n"
    use += "print(d(lambda x: x * x, 1.0))"
    activate = "from gradbook.course.rebuild import here; here()\n"
    inside = python(activate + use, course).stdout
    assert inside == "gradbook.scalar.numdiff: 1 of 17 functions are yours\n2.5\n"
    outside = python(activate + use, course.parent).stdout
    assert outside.startswith("2.0000000")
    assert python(use, course).stdout == outside, "only where here() was called"


def test_a_module_imported_too_early_is_reported(course: Path) -> None:
    rebuild("01", course)
    code = "import gradbook.scalar.numdiff\nfrom gradbook.course.rebuild import here; here()"
    assert "imported before your version" in python(code, course).stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def best_step(:\n", "line 1: invalid syntax"),
        ("EPS = 1 / 0\n", "line 1: ZeroDivisionError"),
        ("\nimport nothing_of_that_name\n", "line 2: ModuleNotFoundError"),
        ("x = '\0'", "numdiff.py"),
    ],
)
def test_a_file_that_does_not_load_is_named(course: Path, text: str, message: str) -> None:
    rebuild("01", course)
    (course / "rebuild" / "scalar" / "numdiff.py").write_text(text)
    code = "from gradbook.course.rebuild import here; here()\n"
    code += "from gradbook.scalar.numdiff import best_step; print(best_step(1.0) > 0)"
    run = python(code, course)
    assert message in run.stderr and "the library's gradbook.scalar.numdiff is used" in run.stderr
    assert run.stdout.endswith("True\n")


def test_rebuild_again_keeps_the_old_file(course: Path) -> None:
    rebuild("03", course)
    path = course / "rebuild" / "scalar" / "value.py"
    path.write_text("# mine")
    assert "is there already" in rebuild("3", course).text and path.read_text() == "# mine"
    assert "value.py.old-1" in rebuild("03", course, again=True).text
    assert path.with_name("value.py.old-1").read_text() == "# mine"
    assert rebuilt(course)["gradbook.scalar.value"][0] == []
    with pytest.raises(WorkspaceError, match="not written yet"):
        rebuild("37", course)
    with pytest.raises(WorkspaceError, match="nothing is rebuilt of chapter 01"):
        rebuild_check("01", course)


# ------------------------------------------------------------- report


def test_a_report_keeps_what_the_learner_wrote(course: Path) -> None:
    answer(course, "03.1", EXERCISES["03.1"].solution_source())
    check_answers("03.1", course)
    (course / "runs").mkdir()
    run = {"model": "MLP", "data": "digits", "test_accuracy": 0.93}
    run["history"] = [{"val_loss": x} for x in (2.0, 1.0, 0.5)]
    (course / "runs" / "digits.json").write_text(json.dumps(run))
    (course / "runs" / "broken.json").write_text("{")
    (course / "runs" / "bench-x.json").write_text("{}")
    outcome = report(course, today=DAY)
    page = course / "reports" / "week-1.md"
    text = page.read_text(encoding="utf-8")
    assert outcome.record["passed"] == ["03.1"] and "03.1 `atan` passed on" in text
    assert "█▃▁" in text and "93.0%" in text and "`broken.json` could not be read" in text
    assert "bench-x" not in text
    own = text.replace("(What went wrong", "Signs!\r\n(What went wrong").replace(
        "# Week", "My: # Week"
    )
    page.write_bytes(own.encode())
    report(course, today=DAY)
    assert page.read_bytes().decode() == own
    later = DAY + datetime.timedelta(days=7)
    assert report(course, today=later).record["passed"] == []
    assert (course / "reports" / "week-2.md").exists()
    page.write_text(own.replace(BEGIN, ""))
    with pytest.raises(WorkspaceError, match="lost its marks"):
        report(course, 1)
    with pytest.raises(WorkspaceError, match="weeks 1 to 4"):
        report(course, 9)


def test_a_curve_has_a_bar_for_every_number() -> None:
    assert curve([3.0, 2.0, float("nan"), 1.0]) == "█▅ ▁" or curve([3.0, 1.0]) == "█▁"
    assert curve([]) == "" and curve([1.0, 1.0]) == "▁▁"
