"The course: every exercise of every chapter, and what can go wrong with an answer."

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gradbook.course import core, guard, state
from gradbook.course.core import EXERCISES, Exercise, Question, Quiz, chapters, check, judge
from gradbook.course.match import Raised, same
from gradbook.course.questions import QUIZZES
from gradbook.course.show import plain_text, prose, shown
from gradbook.course.workspace import code_cells, define, lesson, source
from gradbook.cuda import sim
from gradbook.tensor.core import TABLE

chapters()
KERNELS = {i for i in EXERCISES if i.startswith("27.") or i == "27b.1"}  # these are simulated
IDS = sorted(EXERCISES if sim.available() else EXERCISES.keys() - KERNELS)
QUIZ_NAMES = sorted(QUIZZES)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A state file of its own for every test."
    path = tmp_path / "state" / "progress.json"
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.setenv("GRADBOOK_STATE", str(path))
    state.STATES.clear()
    return path


# ------------------------------------------------------------- every exercise of the book


def stub(*case: Any) -> Any:
    "What a learner starts from."
    ...


@pytest.mark.parametrize("id", IDS)
def test_exercise_is_complete(id: str) -> None:
    exercise = EXERCISES[id]
    assert exercise.id == id and exercise.function.isidentifier()
    assert exercise.stars in (1, 2, 3) and exercise.minutes > 0
    assert len(exercise.hints) >= 1 and len(exercise.wrongs()) >= 3
    assert all(wrong.__doc__ for wrong in exercise.wrongs().values())
    assert len(core.inputs(exercise)) >= 3
    assert exercise.function in exercise.solution_source()
    compile(exercise.solution_source(), id, "exec")


@pytest.mark.parametrize("id", IDS)
def test_stub_is_not_started_and_reference_passes(id: str) -> None:
    exercise = EXERCISES[id]
    assert judge(exercise, stub).status == "not started"
    for _ in range(2):  # the second time shows whether cases change between calls
        result = judge(exercise, exercise.solution)
        assert result.passed, result.text
        assert "Note" not in result.text


@cache
def on_the_page(chapter: str) -> dict[str, Any]:
    "What a learner has who has read a chapter's notebook: what it imports and defines."
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, future = map(source, code_cells(lesson(chapter))), False
    table = dict(TABLE)  # a page defines its primitives anew
    for number, code in enumerate(cells):
        future = define(code, names, f"{chapter}, cell {number}", False, future)
    TABLE.clear()
    TABLE.update(table)
    return names


@pytest.mark.parametrize("id", IDS)
def test_the_printed_solution_needs_only_what_the_page_has(id: str) -> None:
    exercise = EXERCISES[id]
    names = dict(on_the_page(core.chapter_of(id)))
    exec(exercise.solution_source(), names)
    result = judge(exercise, names[exercise.function])
    assert result.passed, result.text


@pytest.mark.parametrize("id", IDS)
def test_every_wrong_solution_fails_and_is_recognised(
    id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradbook.course.core.PATIENCE", 5.0)  # this machine may be busy
    exercise = EXERCISES[id]
    known = [plain_text(" ".join(w.__doc__.split())) for w in exercise.wrongs().values()]
    times = []
    for name, wrong in exercise.wrongs().items():
        start = time.perf_counter()
        result = judge(exercise, wrong)
        assert result.status in ("failed", "error", "timeout"), f"{name}: {result.status}"
        words = " ".join(result.text.split())
        assert any(d in words for d in known), f"{name}: {words}"
        assert " at 0x" not in words
        if result.status != "timeout":
            times.append(time.perf_counter() - start)
    if times:  # 0.3 s is the aim; the machine may be busy
        assert statistics.median(times) < 1.0


@pytest.mark.parametrize("name", QUIZ_NAMES)
def test_quiz_is_complete(name: str) -> None:
    quiz = QUIZZES[name]
    assert len(quiz.questions) >= 4
    letters = ["abcdefgh"[q.order.index(q.right)] for q in quiz.questions]
    assert quiz.grade(" ".join(letters))[0] == len(quiz.questions)
    assert len(set(letters)) > 1, "the right answer is always in the same place"
    assert "$" not in quiz.text() and quiz.html().count("data-right>") == len(quiz.questions)


# ------------------------------------------------------------- a toy exercise


class Slope(Exercise):
    id, stars, minutes = "99.1", 1, 5
    function, tolerance, seconds = "slope", 1e-8, 0.3
    hints = ("look at `x`", "then at $c$")

    def cases() -> Iterator[tuple[Any, ...]]:  # type: ignore[misc]
        yield [3.0, 0.0, 0.0], 2.0
        yield [], 1.0
        yield [1.0, 2.0], -1.0

    def solution(coeffs: list[float], x: float) -> tuple[float, float]:  # type: ignore[misc, override]
        y = s = 0.0
        for c in coeffs:
            s = s * x + y
            y = y * x + c
        return y, s

    def wrong_forgets(coeffs: list[float], x: float) -> tuple[float, float]:  # type: ignore[misc]
        "The product rule: the old slope times `x`."
        y = s = 0.0
        for c in coeffs:
            s = s + y
            y = y * x + c
        return y, s


class Nothing(Exercise):
    id, function = "99.2", "root"
    hints = ("it may be negative",)
    raises = (ValueError,)

    def cases() -> Iterator[tuple[Any, ...]]:  # type: ignore[misc]
        yield (4.0,)
        yield (-1.0,)

    def solution(x: float) -> float:  # type: ignore[misc, override]
        if x < 0:
            raise ValueError("no root of a negative number")
        return math.sqrt(x)


class Grid(Exercise):
    id, function = "99.3", "table"

    def cases() -> Iterator[tuple[Any, ...]]:  # type: ignore[misc]
        yield (3,)
        yield (40,)

    def solution(n: int) -> list[list[int]]:  # type: ignore[misc, override]
        return [[i * j for j in range(n)] for i in range(n)]


class Counter(Exercise):
    id, function = "99.4", "Counter"

    def run(answer: Any, n: int) -> list[int]:  # type: ignore[misc, override]
        one = answer(n)
        return [one.up(), one.up()]

    def cases() -> Iterator[tuple[Any, ...]]:  # type: ignore[misc]
        yield (0,)
        yield (5,)

    class solution:  # type: ignore[assignment]
        def __init__(self, n: int) -> None:
            self.n = n

        def up(self) -> int:
            self.n += 1
            return self.n


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    "The toys are known during the tests of this file only."
    toys = {c.id: c for c in (Slope, Nothing, Grid, Counter)}
    EXERCISES.update(toys)
    yield
    for id in toys:
        EXERCISES.pop(id, None)


for _id in ("99.1", "99.2", "99.3", "99.4"):
    del EXERCISES[_id]


# ------------------------------------------------------------- verdicts


def body_pass(coeffs: Any, x: Any) -> Any:
    pass


def body_docstring(coeffs: Any, x: Any) -> Any:
    "To do."


def body_return(coeffs: Any, x: Any) -> Any:
    return ...


def body_raise(coeffs: Any, x: Any) -> Any:
    raise NotImplementedError("later")


def body_blank(coeffs: Any, x: Any) -> Any:
    y = ...
    return y


@pytest.mark.parametrize(
    "answer",
    [stub, body_pass, body_docstring, body_return, body_raise, body_blank, lambda c, x: ...],
)
def test_not_started(answer: Any, capsys: pytest.CaptureFixture[str], file: Path) -> None:
    result = check("99.1", answer)
    assert result.status == "not started" and not result
    assert "not started" in capsys.readouterr().out
    assert not file.exists(), "a stub is no try"


def test_constant_functions_are_answers() -> None:
    assert judge(Slope, lambda c, x: 0.0).status == "failed"
    assert judge(Slope, lambda c, x: (0.0, 0.0)).right == 1


def test_classes() -> None:
    class Empty: ...

    class Half:
        def __init__(self, n: int) -> None:
            self.n = n

        def up(self) -> int: ...  # type: ignore[empty-body]

    class Stuck(Half):
        def up(self) -> int:
            return self.n

    assert judge(Counter, Empty).status == "not started"
    half = judge(Counter, Half)
    assert half.status == "not started" and "up of Counter" in half.text
    assert judge(Counter, Stuck).status == "failed"
    assert judge(Counter, Counter.solution).passed


def test_failure_shows_input_both_results_and_the_diagnosis() -> None:
    result = judge(Slope, Slope.wrong_forgets)
    assert result.text.splitlines()[0] == (
        "exercise 99.1: 2 of 3 checks pass. First failure: coeffs = [3.0, 0.0, 0.0], x = 2.0"
    )
    for part in ("yours    (12.0, 9.0)", "expected (12.0, 12.0)", "error    0.25", 'hint("99.1")'):
        assert part in result.text
    assert "The product rule: the old slope times `x`." in result.text
    assert "the old slope times <code>x</code>" in result._repr_html_()


def test_grid_marks_cells_without_colour_too() -> None:
    def table(n: int) -> list[list[int]]:
        return [[i * j + (i == j == 1) for j in range(n)] for i in range(n)]

    result = judge(Grid, table)
    assert "*2*" in result.text and "1 of 9 numbers, the first at [1][1]" in result.text
    assert result.page.count("≠ ") == 2 and "gb-differs" in result.page

    def late(n: int) -> list[list[int]]:
        return [[i * j + (i == j == 30) for j in range(n)] for i in range(n)]

    assert "*901*" in judge(Grid, late).text, "a large grid is shown about its first difference"


def test_an_exception_shows_the_learners_line() -> None:
    def helper(items: Any) -> Any:
        return math.sqrt(items)  # not ours, not Python's: the learner's last line

    def slope(coeffs: Any, x: Any) -> Any:
        return helper(coeffs)

    result = judge(Slope, slope)
    line = helper.__code__.co_firstlineno + 1
    assert result.status == "error" and f"line {line}" in result.text
    assert "return math.sqrt(items)" in result.text and "core.py" not in result.text


def test_wrong_number_of_arguments() -> None:
    def slope(coeffs: Any) -> Any:
        return coeffs[0]

    assert "takes 1 positional argument" in judge(Slope, slope).text


def test_expected_exception() -> None:
    def forgiving(x: float) -> float:
        return math.sqrt(abs(x))

    def other(x: float) -> float:
        return math.sqrt(x) if x >= 0 else [][0]

    assert judge(Nothing, Nothing.solution).passed
    assert judge(Nothing, math.sqrt).passed
    assert "Here a ValueError should be raised." in judge(Nothing, forgiving).text
    assert judge(Nothing, other).status == "error"


def test_unannounced_exception_of_the_reference_is_the_books_fault() -> None:
    class Broken(Nothing):
        raises = ()

    with pytest.raises(RuntimeError, match=r"raises = \(ValueError,\)"):
        judge(Broken, math.sqrt)


def test_mutation_neither_spoils_nor_passes_unseen() -> None:
    def vandal(coeffs: list[float], x: float) -> Any:
        coeffs.clear()
        return 0.0, 0.0

    def tidy(coeffs: list[float], x: float) -> Any:
        result = Slope.solution(coeffs, x)
        coeffs.append(1.0)
        return result

    assert judge(Slope, vandal).status == "failed"
    result = judge(Slope, tidy)
    assert result.passed and "the call changed `coeffs`" in result.text


def test_a_result_instead_of_a_function() -> None:
    assert "wants the function itself" in judge(Slope, None).text
    assert judge(Slope, (1.0, 2.0)).status == "error"


def test_exit_is_an_error_and_not_the_end() -> None:
    assert "SystemExit" in judge(Slope, lambda coeffs, x: sys.exit(1)).text


@pytest.mark.parametrize("main", [True, False], ids=["timer", "watched"])
def test_endless_loop(main: bool) -> None:
    def spin(coeffs: Any, x: Any) -> Any:
        while True:
            x += 1

    results = []
    start = time.monotonic()
    if main:
        results.append(judge(Slope, spin))
    else:
        worker = threading.Thread(target=lambda: results.append(judge(Slope, spin)))
        worker.start()
        worker.join(10)
    assert results[0].status == "timeout" and "stopped after 0.3 seconds" in results[0].text
    assert time.monotonic() - start < 5 and sys.gettrace() is None


def test_endless_loop_that_catches_everything() -> None:
    def stubborn(coeffs: Any, x: Any) -> Any:
        while True:
            try:  # noqa: SIM105
                math.sqrt(-1)
            except:  # noqa: E722
                pass

    assert judge(Slope, stubborn).status == "timeout"


def test_time_limit_gives_the_timer_back() -> None:
    signal = pytest.importorskip("signal")
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers here")
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 30)
        with guard.time_limit(5):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------- comparing and showing


class Boxed:
    def __init__(self, data: Any) -> None:
        self.data = data


@pytest.mark.parametrize(
    ("yours", "expected", "tolerance", "agree"),
    [
        (2, 2.0, 0, True), (1, True, 0, False), (0.1 + 0.2, 0.3, 0, False),
        (0.1 + 0.2, 0.3, 1e-9, True), (1 + 2j, 1 + 2j, 0, True), ("1", 1, 0, False),
        (math.nan, math.nan, 0, True), (1.0, math.inf, 1e-3, False), (math.inf, math.inf, 0, True),
        (-math.inf, math.inf, 1, False), (10**400, 1.0, 1e-9, False), (1e-9, 0.0, 1e-8, True),
        ([1, 2], (1, 2), 0, True), ([1], [1, 2], 0, False), ({"a": 1.0}, {"a": 1}, 0, True),
        ({"a": 1}, {"b": 1}, 0, False), ("x", "x", 0, True), (None, 0, 0, False),
        (Boxed(2.0), 2.0, 0, True), ([Boxed(2.0)], [Boxed(2.1)], 0.2, True),
        (Raised(KeyError()), Raised(LookupError()), 0, True), (Raised(KeyError()), None, 0, False),
    ],
)  # fmt: skip
def test_same(yours: Any, expected: Any, tolerance: float, agree: bool) -> None:
    assert same(yours, expected, tolerance) is agree


def test_arrays_count_as_their_numbers() -> None:
    np = pytest.importorskip("numpy")
    assert same(np.arange(4.0).reshape(2, 2), [[0, 1], [2, 3]])
    assert same(np.float32(0.5), 0.5) and same(np.bool_(True), True) and not same(np.ones(2), [1])


def test_shown_has_no_addresses_and_no_end_of_lines() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise OSError

    assert "0x" not in shown(object()) and "Rude" in shown(Rude())
    assert shown(math.sin) == "math.sin" and shown(lambda t: t + 1) == "lambda t: t + 1"
    assert len(shown(list(range(10**4)))) <= 170 and "\n" not in shown("a\nb")
    assert prose("`a<b` & $x<y$") == (
        '<code>a&lt;b</code> &amp; <span class="math inline">\\(x&lt;y\\)</span>'
    )


def test_unknown_ids_are_answered_with_known_ones() -> None:
    with pytest.raises(LookupError, match=r"chapter 99 has 99.1, 99.2, 99.3, 99.4.*mean \"99.2\""):
        check("99.22", stub)
    with pytest.raises(LookupError, match="chapters with exercises"):
        check("77.1", stub)
    with pytest.raises(LookupError, match="no quiz"):
        core.quiz("nope")
    assert core.find(" 99.1 ") is Slope


# ------------------------------------------------------------- hints, solution, quiz, progress


def test_the_way_of_a_learner(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    def said(call: Callable[..., Any], *args: Any, **more: Any) -> str:
        call(*args, **more)
        return capsys.readouterr().out

    assert "hint 1 of 2" in said(check, "99.1", Slope.wrong_forgets)
    assert "hint 1 of 2: look at `x`" in said(core.hint, "99.1")
    assert "hint 2 of 2: then at c" in said(core.hint, "99.1")
    assert "hint 2 of 2" in said(core.hint, "99.1")
    assert "2 more tries" in said(core.solution, "99.1")
    assert "def slope(coeffs" in said(core.solution, "99.1", now=True)
    check("99.1", Slope.wrong_forgets)
    assert "1 more try" in said(core.solution, "99.1")
    assert "all 3 checks pass" in said(check, "99.1", Slope.solution)
    assert said(core.solution, "99.1").startswith("def slope(")
    entry = json.loads(file.read_text())["exercises"]["99.1"]
    assert entry["tries"] == 3 and entry["hints"] == 2 and set(entry) >= {"started", "passed"}
    check("99.2", lambda x: 0.0)
    assert "●◐○○" in said(core.progress)


def test_check_prints_once_and_shows_html_in_a_notebook(tmp_path: Path) -> None:
    shell = pytest.importorskip("execnb.shell").CaptureShell(tmp_path)
    shell.run("from gradbook.course import check")
    outputs = shell.run("def quadratic(a): ...\nfrom gradbook.course.core import Exercise\n"
                        "class E(Exercise):\n    id = '98.1'\n    function = 'f'\n"
                        "    def cases(): yield (1,)\n    def solution(x): return x\n"
                        "check('98.1', lambda x: x + 1)")  # fmt: skip
    EXERCISES.pop("98.1", None)
    shown_once = [out["data"] for out in outputs if out.get("data")]
    assert [set(data) for data in shown_once] == [{"text/plain", "text/html"}]


def test_check_finds_the_function_of_the_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(core, "shell", lambda: None)
    with pytest.raises(NameError, match="slope is not defined"):
        check("99.1")
    monkeypatch.setattr(sys.modules["__main__"], "slope", Slope.solution, raising=False)
    assert check("99.1").passed


def test_quiz(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    asked = Quiz(
        "99",
        Question("What is $2^3$?", right="$8$", because="2 * 2 * 2", wrong={"$6$": "a sum"}),
        Question("And <b>?", right="a tag", because="of HTML", wrong={"less": "no", "a & b": "no"}),
    )
    try:
        letters = "".join("abc"[q.order.index(q.right)] for q in asked.questions)
        core.quiz("99")
        assert "What is 2^3?" in capsys.readouterr().out
        core.quiz("99", letters)
        core.quiz("99", "- -")
        assert "2 of 2 right" in capsys.readouterr().out
        assert json.loads(file.read_text())["quizzes"]["99"] == {"of": 2, "right": 2}
        with pytest.raises(ValueError, match="1 answers to 2 questions"):
            core.quiz("99", "a")
        with pytest.raises(ValueError, match="no z"):
            core.quiz("99", "a z")
        page = asked.html()
        assert page.count("<fieldset") == 2 and "<legend>2. And &lt;b&gt;?" in page
        assert "http" not in page and ' id="' not in page
    finally:
        del QUIZZES["99"]
    with pytest.raises(ValueError, match="needs wrong answers"):
        Question("?", right="a", because="", wrong={"a": ""})


def test_quiz_by_keyboard(browser: Any, tmp_path: Path) -> None:
    asked = Quiz(
        "99",
        Question("One?", right="r", because="yes", wrong={"w": "no", "v": "no"}),
        Question("Two?", right="r", because="yes", wrong={"w": "no", "v": "no"}),
    )
    del QUIZZES["99"]
    (tmp_path / "quiz.html").write_text(asked.html() + asked.html(), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "quiz.html").as_uri())
    first = page.locator(".gb-quiz").first
    radios = first.locator("fieldset").first.locator("input")
    wanted = asked.questions[0].order.index("r")
    radios.first.focus()
    for _ in range(wanted):
        page.keyboard.press("ArrowDown")
        assert first.locator("input:checked").count() == 0, "an arrow key chose an answer"
    page.keyboard.press("Enter")
    assert first.locator(".gb-because p:visible").inner_text() == "Right: yes"
    assert "1 of 2 right at the first try so far" in first.locator(".gb-score").inner_text()
    page.locator(".gb-quiz").nth(1).locator("label").first.click()  # another form, other buttons
    assert radios.nth(wanted).is_checked()
    page.reload()
    assert page.locator(".gb-quiz").first.locator("input:checked").count() == 1
    page.locator(".gb-again").first.press("Enter")
    assert page.locator(".gb-quiz").first.locator("input:checked").count() == 0
    page.close()


# ------------------------------------------------------------- the state file


def test_nothing_is_written_while_the_book_is_made(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IN_TEST", "1")
    check("99.1", Slope.solution)
    core.hint("99.1")
    assert not file.exists() and not file.parent.exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "damaged"), ("{", "damaged"), ("[]", "damaged"), ("null", "damaged"),
        ("[" * 10**5, "damaged"),
        ('{"version": 1, "exercises": []}', "damaged"), ('{"version": "1"}', "damaged"),
        ('{"version": 1, "exercises": {"99.1": {"tries": "3"}}}', "damaged"),
        ('{"version": 1, "quizzes": {"01": 3}}', "damaged"), ('{"version": 7, "new": 1}', "newer"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_set_aside(
    text: str, name: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        assert check("99.1", Slope.solution).passed
        kept = file.with_name(f"progress.json.{name}-{number}")
        assert kept.read_text() == text and kept.name in capsys.readouterr().err
        assert json.loads(file.read_text())["exercises"]["99.1"]["tries"] == 1


def test_binary_rubbish_and_a_folder_in_the_way(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe\x00")
    assert check("99.1", Slope.solution).passed
    assert file.with_name("progress.json.damaged-1").read_bytes() == b"\xff\xfe\x00"


def test_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").write_text("a file where a folder should be")
    monkeypatch.setenv("GRADBOOK_STATE", str(tmp_path / "plain" / "progress.json"))
    for _ in range(3):
        check("99.1", Slope.wrong_forgets)
    assert capsys.readouterr().err.count("progress is not saved") == 1
    core.solution("99.1")
    assert "def slope" in capsys.readouterr().out, "memory counts the tries all the same"


def test_a_full_disk_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check("99.1", Slope.wrong_forgets)
    before = file.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    check("99.1", Slope.wrong_forgets)
    assert file.read_text() == before and [p.name for p in file.parent.iterdir()] == [file.name]
    assert "No space left" in capsys.readouterr().err
    assert core.entry("99.1")["tries"] == 2


def test_two_notebooks_at_once(file: Path) -> None:
    program = (
        "import sys; from gradbook.course.core import remember\n"
        "for k in range(20): remember('99.1', 1, 0); remember(sys.argv[1], 1, 0)"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, f"99.{k}"]) for k in (5, 6, 7)]
    assert [p.wait(60) for p in running] == [0, 0, 0]
    entries = json.loads(file.read_text())["exercises"]
    assert entries["99.5"]["tries"] == entries["99.7"]["tries"] == 20
    assert entries["99.1"]["tries"] == 60 or sys.platform == "win32"


def test_where_the_state_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADBOOK_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    work = tmp_path / "work"
    (work / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(work / "notebooks")
    assert state.place() == tmp_path / "xdg" / "gradbook" / "progress.json"
    (work / ".gradbook").mkdir()
    assert state.place() == work / ".gradbook" / "progress.json"


def test_part_one_needs_the_standard_library_only() -> None:
    "As do the tokenizers of chapter 20."
    program = (
        "import sys; sys.modules['numpy'] = None; import gradbook.course.core as c; "
        "assert c.chapters() == ['01', '02', '03', '04', '05', '06', '20'], c.chapters(); "
        "sys.exit(any(name in sys.modules for name in ('IPython', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
