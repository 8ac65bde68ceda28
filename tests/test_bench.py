"The stopwatch: what it reports, and that it leaves no trace."

from __future__ import annotations

import gc
import json
import platform

import pytest

from gradbook import bench


def test_compare_runs_in_turn_and_restores_the_collector():
    order: list[str] = []
    found = bench.compare(
        repeat=3, calls=1, a=lambda: order.append("a"), b=lambda: order.append("b")
    )
    assert order == ["a", "b"] * 4  # warm-up and three rounds
    assert gc.isenabled() and gc.get_freeze_count() == 0
    assert [t.case for t in found.timings] == ["a", "b"] and found["b"].runs == 3
    assert found.ratio == found["a"].median / found["b"].median


def test_the_collector_is_back_after_an_error():
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        bench.compare(a=fail)
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_slow_functions_end_when_the_seconds_are_used_up():
    assert bench.compare(seconds=0, calls=1, a=lambda: None).timings[0].runs == 2


@pytest.mark.parametrize(
    ("arguments", "words"), [({}, "nothing to compare"), ({"repeat": 1, "a": int}, "at least 2")]
)
def test_wrong_calls_say_so(arguments, words):
    with pytest.raises(ValueError, match=words):
        bench.compare(**arguments)


def test_the_table_is_text_and_html():
    found = bench.compare(repeat=2, **{"a<b": lambda: None})
    assert "a<b" in repr(found) and "a&lt;b" in found._repr_html_()


def test_nothing_tells_whose_machine_it_is():
    host = platform.node()
    assert "/" not in bench.machine() and (not host or host not in bench.machine())


def test_a_report_is_json_in_the_agreed_form():
    peer, own = bench.timing("peer", [0.5] * 3), bench.timing("gradbook", [0.1] * 3)
    rows = bench.rows_of("step", bench.Comparison((peer, own), "m"))
    report = bench.Report("n", "m", 1, {"python": "3"}, rows, {"speedup": 5.0}, "five times")
    record = json.loads(json.dumps(report.as_json()))
    assert set(record) == {"name", "machine", "threads", "versions", "commit", "rows", "speedup"}
    assert set(record["rows"][0]) == {"case", "engine", "median_s", "low_s", "high_s", "ratio"}
    assert record["rows"][0]["ratio"] == pytest.approx(0.2) and record["rows"][1]["ratio"] == 1.0


def test_micrograd_is_named_when_it_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "micrograd.engine", None)
    with pytest.raises(bench.MissingExtra, match=r"gradbook\[compare\]"):
        bench.BENCHMARKS["micrograd"].run(2)


def test_both_engines_do_the_same_work():
    pytest.importorskip("micrograd")
    times, theirs, ours = bench.moons_race(2, collector=False)
    assert len(theirs) == len(ours) == 3 and ours[-1] < ours[0]
    assert max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) < 1e-9
    assert times.ratio > 2, "far below what is claimed: this machine may be busy"
