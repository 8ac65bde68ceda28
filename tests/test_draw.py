"Drawings: everything there once, nothing overlapping, the steps of `backward`, the widget."

from __future__ import annotations

import random
import re
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gradbook.scalar.draw import (
    PAGE,
    chart_of,
    crossings,
    draw,
    first_plan,
    folded,
    graph_of,
    inversions,
    ordered,
    quotient,
    spread,
    step_through,
    swept,
)
from gradbook.scalar.neural import MLP, loss_on
from gradbook.scalar.tape import record
from gradbook.scalar.value import Value, topological_order, total

Places = dict[int, tuple[float, float, float, float]]  # left, top, right, bottom of boxes
SVG = "{http://www.w3.org/2000/svg}"


def random_graph(n: int, seed: int) -> Value:
    "n nodes, each made from one or two of the last twenty."
    rng = random.Random(seed)
    nodes = [Value(rng.uniform(-1, 1)) for _ in range(min(5, n - 1))]
    while len(nodes) < n - 1:
        p, q = rng.choice(nodes[-20:]), rng.choice(nodes[-20:])
        nodes.append(rng.choice([p + q, p * q, p.tanh(), p.relu()]))
    used = {source for node in nodes for source in node._prev}
    return total([node for node in nodes if node not in used])


def doubled() -> tuple[Value, dict[str, Value]]:
    a = Value(1.0)
    b = a + a
    c = b + b
    return c, {"a": a, "b": b, "c": c}


def boxes(svg: str) -> Places:
    "Left, top, right and bottom of every box in a picture."
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if group.get("class") == "gb-node":
            (rect,) = (r for r in group.iter(f"{SVG}rect") if r.get("class") == "gb-box")
            x, y, w, h = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
            number = int(group.get("data-node", ""))
            assert number not in found
            found[number] = (x, y, x + w, y + h)
    return found


def overlapping(places: Places) -> list[tuple[int, int]]:
    items = sorted(places.items())
    return [
        (k, m)
        for n, (k, a) in enumerate(items)
        for m, b in items[:n]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


def crossing_a_box(svg: str, places: Places) -> list[tuple[str, int]]:
    "Horizontal pieces of edges (they are straight inside columns) that run through a box."
    bad = []
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if group.get("class") != "gb-edge":
            continue
        (path,) = group.iter(f"{SVG}path")
        x = y = 0.0
        for kind, numbers in re.findall(r"([MHC])([^MHCml]*)", path.get("d", "")):
            values = [float(v) for v in numbers.split()]
            if kind == "H":
                for k, (left, top, right, bottom) in places.items():
                    inside = min(x, values[0]) < right - 1 and max(x, values[0]) > left + 1
                    if inside and top < y < bottom:
                        bad.append((group.get("data-edge", ""), k))
                x = values[0]
            else:
                x, y = values[-2:]
    return bad


@pytest.mark.parametrize("n, seed", [(2, 0), (3, 1), (12, 2), (60, 3), (200, 4), (300, 5)])
def test_everything_once_and_apart(n: int, seed: int) -> None:
    y = random_graph(n, seed)
    y.backward()
    graph = graph_of(y)
    svg = draw(y).svg
    places = boxes(svg)
    assert sorted(places) == list(range(len(graph.ops)))
    drawn = [
        (int(g.get("data-from", "")), int(g.get("data-to", "")))
        for g in ET.fromstring(svg).iter(f"{SVG}g")
        if g.get("class") == "gb-edge"
    ]
    wanted = ((i, k) for k, sources in enumerate(graph.inputs) for i in sources)
    assert Counter(drawn) == Counter(wanted)
    assert all(places[i][2] < places[k][0] for i, k in drawn), "edges lead to the right"
    assert overlapping(places) == []
    assert crossing_a_box(svg, places) == []
    width, height = map(float, ET.fromstring(svg).get("viewBox", "").split()[2:])
    assert all(min(p) >= 0 and p[2] <= width and p[3] <= height for p in places.values())


def test_sweeps_remove_crossings() -> None:
    for seed in range(5):
        graph = graph_of(random_graph(120, seed))
        plan = first_plan(graph.inputs)
        best, counts = ordered(plan)
        assert crossings(best) == min(counts) < counts[0] / 2
        assert [sorted(c) for c in best.columns] == [sorted(c) for c in plan.columns]


def test_crossings_against_the_definition() -> None:
    rng = random.Random(1)
    for _ in range(50):
        numbers = [rng.randrange(9) for _ in range(rng.randrange(12))]
        assert inversions(numbers) == sum(a > b for k, b in enumerate(numbers) for a in numbers[:k])


def test_spread_is_the_nearest() -> None:
    rng = random.Random(2)

    def cost(at: list[float]) -> float:
        return sum(w * (a - b) ** 2 for a, b, w in zip(at, wanted, weight, strict=True))

    for _ in range(40):
        n = rng.randrange(1, 8)
        wanted = [rng.uniform(0, 20) for _ in range(n)]
        weight = [rng.choice([1.0, 3.0]) for _ in range(n)]
        apart = [rng.uniform(0, 5) for _ in range(n - 1)]
        at = spread(wanted, apart, weight)
        assert all(b - a >= gap - 1e-9 for a, b, gap in zip(at, at[1:], apart, strict=False))
        for _ in range(20):  # no allowed neighbour of the answer is better
            other = [a + rng.uniform(-0.1, 0.1) for a in at]
            for k, gap in enumerate(apart):
                other[k + 1] = max(other[k + 1], other[k] + gap)
            assert cost(other) >= cost(at) - 1e-9


def test_labels_are_escaped() -> None:
    x = Value(2.0)
    y = x * x
    walk = step_through(y, {"<b>&": x, '"]]>': y})
    root = ET.fromstring(draw(y, {"<b>&": x, '"]]>': y}).svg)
    texts = {t.text for t in root.iter(f"{SVG}text")}
    assert "<b>&" in texts
    assert "<b>&amp;" not in walk.html() and "&lt;b&gt;&amp;" in walk.html()
    assert "<b>&.grad += 2 (slope) * 1" in repr(walk)


def test_names() -> None:
    u, v = [Value(1.0), Value(2.0)], Value(0.1234567)
    y = u[0] * u[1] + v * v + v * v
    graph = graph_of(y, {"_": y, "u": u, "y": y, "also_y": y, "text": "no node"})
    labels = [box.label for box in chart_of(y, {"u": u, "y": y}, 300).boxes]
    assert set(graph.names.values()) == {"u[0]", "u[1]", "y"}
    assert len(set(labels)) == len(labels)
    assert "u[0]*u[1]" in labels


@pytest.mark.parametrize("seed", range(8))
def test_steps_are_those_of_backward(seed: int) -> None:
    y = random_graph(80, seed)
    nodes = topological_order(y)[::-1]
    steps = swept(chart_of(y, None, 300))
    assert all(node.grad == 0 for node in nodes), "looking changes nothing"
    y.backward()
    adjoints = dict.fromkeys(range(len(nodes)), 0.0)
    for step in steps:
        adjoints |= step.changed
    assert [adjoints[k] for k in range(len(nodes))] == [node.grad for node in nodes]
    spoken = [step.speaker for step in steps]
    assert spoken == sorted(spoken, reverse=True)


def test_one_step_for_each_edge_and_each_silent_node() -> None:
    x = Value(-1.0)
    y = x.relu() * 3 + x
    steps = swept(chart_of(y, {"x": x}, 300))
    assert sum("nothing to hand on" in step.text for step in steps) == 0
    z = x.relu().tanh() * 0 + x
    texts = [step.text for step in swept(chart_of(z, {"x": x}, 300))]
    assert sum("nothing to hand on" in text for text in texts) == 2
    assert "complete" in texts[-2] or "nothing" in texts[-1]


def digits_loss(n: int = 1) -> Value:
    model = MLP(64, [24, 10], rng=random.Random(0))
    rng = random.Random(1)
    return loss_on(model, [([rng.random() for _ in range(64)], k) for k in range(n)])


def chain(n: int) -> Value:
    node = Value(0.0)
    for _ in range(n):
        node = node + Value(1.0)
    return node


@pytest.mark.parametrize(
    "make, n",
    [(digits_loss, 1), (digits_loss, 3), (chain, 2000), (lambda n: random_graph(n, 0), 900)],
)
def test_folding_says_so(make: Any, n: int) -> None:
    y = make(n)
    y.backward()
    drawing = draw(y)
    graph, found = drawing.chart.graph, drawing.chart.boxes
    assert len(found) <= PAGE
    assert sorted(k for box in found for k in box.nodes) == list(range(len(graph.ops)))
    assert drawing.chart.note == f"{len(graph.ops):,} nodes folded into {len(found)} boxes"
    assert drawing.chart.note in drawing.svg and drawing.chart.note in repr(drawing)
    assert overlapping(boxes(drawing.svg)) == []
    group, _ = folded(graph)
    _, rows = quotient(graph.inputs, group)  # raises CycleError if folding made a cycle
    counted = sum(len(its) for its in rows)
    assert counted == len(drawing.chart.edges)
    adjoints = [0.0] * len(graph.ops)
    for step in swept(drawing.chart):
        for k, g in step.changed.items():
            adjoints[k] = g
    assert adjoints == pytest.approx(graph.grads, rel=1e-9, abs=1e-12)


def test_the_limit() -> None:
    y = random_graph(40, 0)
    n = len(topological_order(y))
    assert not draw(y, limit=n).chart.note
    assert draw(y, limit=n - 1).chart.note


def test_a_neuron_is_found() -> None:
    titles = [box.lines[0] for box in draw(digits_loss()).chart.boxes]
    assert "24 × (dot → ReLU)" in titles and "9 × (dot → - → exp)" in titles


def test_a_tape() -> None:
    def f(w: Value, x: Value, b: Value) -> Value:
        return (w * x + b) ** 2 * x if x > 0 else b

    tape = record(f, -3.0, 2.0, 10.0)
    w, x, b = Value(-3.0), Value(2.0), Value(10.0)
    f(w, x, b).backward()
    walk = step_through(tape, {"w": 0, "x": 1, "b": 2})
    adjoints: dict[int, float] = {}
    for step in walk.steps:
        adjoints |= step.changed
    labels = [box.label for box in walk.chart.boxes]
    assert [adjoints[labels.index(name)] for name in "wxb"] == [w.grad, x.grad, b.grad]
    assert draw(tape).chart.boxes[0].label == "v0"


def test_two_hundred_nodes_in_a_second() -> None:
    for seed in range(3):
        y = random_graph(200, seed)
        start = time.perf_counter()
        assert len(draw(y).chart.boxes) == 200
        assert time.perf_counter() - start < 1


def test_the_same_picture_every_time() -> None:
    assert draw(random_graph(90, 7)).svg == draw(random_graph(90, 7)).svg
    assert step_through(random_graph(30, 7)).html() == step_through(random_graph(30, 7)).html()
    assert draw(digits_loss()).svg == draw(digits_loss()).svg


def test_one_leaf() -> None:
    assert len(draw(Value(3.0)).chart.boxes) == 1
    assert len(step_through(Value(3.0)).steps) == 1


def test_save(tmp_path: Path) -> None:
    draw(doubled()[0]).save(str(tmp_path / "a.svg"))
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ET.fromstring(text).tag == f"{SVG}svg" and "var(" not in text


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any) -> Any:
    "Two walks on one page of phone width; what must not happen is collected in `page.problems`."
    w, x = Value(-3.0), Value(2.0)
    y = (w * x + 10) * x
    walks = step_through(*doubled()).html(), step_through(y, {"w": w, "x": x, "y": y}).html()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.problems = []
    page.on("console", lambda m: page.problems.append(m.text))
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("request", lambda r: page.problems.append(r.url))
    page.set_content(f"<!doctype html><html lang=en><body>{walks[0]}<hr>{walks[1]}</body></html>")
    yield page
    problems = page.problems
    page.close()
    assert problems == []


def says(walk: Any) -> str:
    return str(walk.locator(".gb-walk-says").text_content())


def adjoints_shown(walk: Any) -> list[str]:
    return list(walk.locator(".gb-adjoint").all_text_contents())


def test_buttons(page: Any) -> None:
    first = page.locator(".gb-walk").first
    assert says(first).startswith("Step 1 of 5.") and adjoints_shown(first) == ["", "", "1"]
    first.get_by_role("button", name="Next").click()
    assert "b.grad += 1 (slope) * 1 (adjoint of c)" in says(first)
    assert "waits for 1 more" in says(first)
    assert adjoints_shown(first) == ["", "1", "1"]
    assert first.locator(".gb-edge.gb-now").count() == 1
    first.get_by_role("button", name="End").click()
    assert adjoints_shown(first) == ["4", "2", "1"]
    first.get_by_role("button", name="Back").click()
    assert adjoints_shown(first) == ["2", "2", "1"]
    first.get_by_role("button", name="Start").click()
    assert says(first).startswith("Step 1 of 5.")


def test_keyboard_alone(page: Any) -> None:
    page.keyboard.press("Tab")
    first, second = page.locator(".gb-walk").first, page.locator(".gb-walk").last
    assert page.evaluate("document.activeElement.textContent") == "Start"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    for k in range(2, 7):
        page.keyboard.press("ArrowRight")
        assert says(first).startswith(f"Step {min(k, 5)} of 5.")
    page.keyboard.press("ArrowLeft")
    assert says(first).startswith("Step 4 of 5.")
    page.keyboard.press("Home")
    assert says(first).startswith("Step 1 of 5.")
    page.keyboard.press("End")
    assert says(first).startswith("Step 5 of 5.")
    for _ in range(4):  # Next at the end stays where it is, and keeps the focus
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").startswith("Next"):
            page.keyboard.press("Enter")
            assert says(first).startswith("Step 5 of 5.")
            assert page.evaluate("document.activeElement.textContent").startswith("Next")
    assert says(second).startswith("Step 1 of 7.")


def test_two_walks_do_not_meet(page: Any) -> None:
    first, second = page.locator(".gb-walk").first, page.locator(".gb-walk").last
    second.get_by_role("button", name="Next").click()
    second.get_by_role("button", name="Next").click()
    assert says(first).startswith("Step 1 of") and says(second).startswith("Step 3 of")
    assert adjoints_shown(first) == ["", "", "1"]
    second.locator("svg").click(position={"x": 5, "y": 5})
    page.keyboard.press("ArrowLeft")
    assert says(second).startswith("Step 2 of") and says(first).startswith("Step 1 of")


def test_a_phone_scrolls_the_graph_and_not_the_page(page: Any) -> None:
    page.set_content(f"<!doctype html><body>{step_through(random_graph(30, 1)).html()}")
    walk = page.locator(".gb-walk")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = walk.locator(".gb-graph")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    assert box.evaluate("e => e.scrollLeft") > 0, "the result is in sight at the first step"
    walk.get_by_role("button", name="End").click()
    now = walk.locator(".gb-node.gb-now .gb-box").bounding_box()
    assert now["x"] >= 0 and now["x"] + now["width"] <= 390


def test_said_aloud(page: Any) -> None:
    first = page.locator(".gb-walk").first
    assert first.locator(".gb-walk-says").get_attribute("aria-live") == "polite"
    assert first.get_attribute("role") == "group" and first.get_attribute("aria-label")
    assert first.locator("svg").get_attribute("aria-label") == "Graph of 3 nodes; the last is c."


def test_less_motion(browser: Any) -> None:
    for wish, name in (("reduce", "none"), ("no-preference", "gb-back")):
        context = browser.new_context(reduced_motion=wish)
        page = context.new_page()
        page.set_content(step_through(*doubled()).html())
        page.get_by_role("button", name="Next").click()
        motion = "e => getComputedStyle(e).animationName"
        assert page.locator(".gb-edge.gb-now path").evaluate(motion) == name
        context.close()


def test_without_scripts(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(step_through(*doubled()).html())
    assert page.locator(".gb-adjoint").all_text_contents() == ["4", "2", "1"]
    assert not page.get_by_role("button", name="Next").is_visible()
    page.locator("summary").click()
    assert page.locator("li").count() == 5 and page.locator("li").last.is_visible()
    context.close()
