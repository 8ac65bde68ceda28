"The reference: one page per module, from signatures and docstrings, with links into the book."

from __future__ import annotations

import importlib
import inspect
import re
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.stage import Page

NOTES = {  # what holds for every function of a module, said once at the top of its page
    "tensor.elementwise": "Each function works element by element: the result has the shape of"
    " `x`, of several inputs the shape that they broadcast to.",
    "tensor.reduce": "`axis` is a whole number, a tuple of them, or None for all; functions that"
    " say otherwise take one number. The result lacks these axes: `(n, m) -> (n,)` for `axis=1`,"
    " `(n, 1)` with `keepdims`. An axis named twice raises ShapeError, one that is no whole number"
    " TypeError.",
    "tensor.shape": "None of these functions changes its argument. An axis that is no whole number"
    " raises TypeError.",
    "tensor.indexing": "Results are new tensors. An axis that is no whole number raises TypeError.",
    "tensor.creation": "New tensors, and what can be asked about dtypes. An unknown `dtype`, or one"
    " without fractions where `requires_grad` is set, raises DtypeError, an unknown or missing"
    " `device` DeviceError.",
    "tensor.contraction": "Sums of products, written with letters.",
    "tensor.linalg": "The last two axes of a tensor are matrices, the axes in front of them a batch"
    " `(...)`.",
    "tensor.random": "What is drawn is a function of the key, and has the shape `shape`. A key that"
    " is no Key raises TypeError, as does a shape of other things than whole numbers; a negative"
    " length raises ValueError, an unknown or missing `device` DeviceError.",
    "tensor.tree": "Nested tuples, lists, dicts, named tuples and dataclasses, and their leaves.",
    "tensor.check": "Derivatives held against measured slopes, for every primitive.",
}


def page_of(module: str) -> str:
    "The page that describes a module, `scalar.value` -> `api-scalar-value.html`."
    return f"api-{module.replace('.', '-').strip('_').replace('__', '')}.html"


def escape(text: str) -> str:
    "Docstrings are plain text: keep their backticks, escape the rest of Markdown."
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        p if i % 2 else re.sub(r"([\\*_$<>\[\]@#|~^])", r"\\\1", p) for i, p in enumerate(parts)
    )


def docstring(obj: Any) -> str:
    "The docstring as paragraphs; indented lines keep their shape."
    text = inspect.getdoc(obj) or ""
    blocks = [escape(re.sub(r"\s*\n\s*", " ", b)) for b in text.split("\n\n")]
    return "\n\n".join(blocks)


def plain(text: str) -> str:
    "Without quotes, and functions by their names, not their addresses."
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)
    return re.sub(r"<function .*?<lambda> at 0x[0-9a-f]+>", "...", text).replace("'", "")


def signature(name: str, obj: Any) -> str:
    "`name(x: float, h: float | None = None) -> float`, one parameter a line when it is long."
    try:
        sig = inspect.signature(obj)
    except (TypeError, ValueError):
        return name
    text = plain(f"{name}{sig}")
    if len(text) <= 88:
        return text
    parameters = [
        f"{head} = ..." if len(text) > 84 and default else text
        for text in (plain(str(p)) for p in sig.parameters.values())
        for head, default, _ in [text.partition(" = ")]
    ]
    back = "" if sig.return_annotation is sig.empty else plain(f" -> {sig.return_annotation}")
    return f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){back}"


def describe(name: str, obj: Any, home: dict[str, Page]) -> str:
    "One function, class or constant."
    anchor = f"### `{name}` {{#{name}}}"
    if inspect.isclass(obj) or inspect.isfunction(obj):
        body = f"```python\n{signature(name, obj)}\n```\n\n{docstring(obj)}"
    else:
        body = f"```python\n{name} = {shown(obj)}\n```"
    if inspect.isclass(obj):
        body += methods(obj)
    place = f"\n\n[In the book]({home[name].href}#def-{name}){{.gb-inbook}}" if name in home else ""
    return f"{anchor}\n\n{body}{place}"


def own(module: types.ModuleType, name: str) -> bool:
    "Whether the module defines the name itself, rather than passing on what another one built."
    obj = vars(module).get(name)
    return name in vars(module) and getattr(obj, "__module__", module.__name__) == module.__name__


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 and " at 0x" not in text else "..."


def methods(cls: type) -> str:
    "Public methods with a docstring, and the operators the class understands."
    rows, operators = [], []
    for name, member in inspect.getmembers(cls):
        plain = isinstance(member, types.FunctionType | types.MethodType | property)
        if not plain or not (
            member.__module__ if not isinstance(member, property) else "gradbook"
        ).startswith("gradbook"):
            continue
        if name.startswith("__") and name not in {"__init__", "__repr__", "__post_init__"}:
            operators.append(f"`{name}`")
        elif not name.startswith("_") and inspect.getdoc(member):
            head = name if isinstance(member, property) else signature(name, member)
            rows.append(f"`.{' '.join(head.split())}`\n:   {docstring(member).splitlines()[0]}")
    text = "\n\n" + "\n\n".join(rows) if rows else ""
    return text + (f"\n\nOperators: {', '.join(operators)}" if operators else "")


def pages(home: dict[str, Page], modules: dict[str, Page]) -> dict[str, str]:
    "All reference pages: file name -> text."
    found: dict[str, str] = {}
    index = []
    for module, page in sorted(modules.items(), key=lambda m: m[1].id):
        for name in [module, *side_modules(page)]:
            target = page_of(name).replace(".html", ".qmd")
            if target in found:
                continue
            obj = importlib.import_module(
                "gradbook" + ("" if name == "__init__" else f".{name}".replace(".__init__", ""))
            )
            title = obj.__name__
            summary = (inspect.getdoc(obj) or "").split("\n\n")[0].rstrip(".")
            notes = [f"{summary}." if summary else "", NOTES.get(name, "")]
            public = [
                n for n in getattr(obj, "__all__", []) if not n.startswith("_") and own(obj, n)
            ]
            items = [describe(n, getattr(obj, n), home) for n in public]
            origin = f"[Chapter {page.number}]({page.href})"
            found[target] = (
                f"---\ntitle: {title}\nsubtitle: Reference\n---\n\n"
                f"{escape(' '.join(filter(None, notes)))} Built in {origin}.\n\n"
                + "\n\n".join(items)
                + "\n"
            )
            names = ", ".join(f"[`{n}`]({page_of(name)}#{n})" for n in public)
            index.append(f"[**{title}**]({page_of(name)}) · {origin}\n:   {names}")
    head = (
        "---\ntitle: Reference\nsubtitle: Every public name, and the page that builds it\n---\n\n"
    )
    found["api.qmd"] = head + "\n\n".join(index) + "\n"
    return found


def side_modules(page: Page) -> list[str]:
    "Modules a chapter exports into besides its own, exercises left out."
    from tools.export import side_modules as all_side_modules

    return [
        m
        for m, nb in all_side_modules().items()
        if nb.name == page.path.name and not m.startswith("course.ch")
    ]
