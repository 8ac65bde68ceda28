// Small things the pages need: maths in quiz texts, and a scroll box of its own for what is wider than a phone.
document.addEventListener("DOMContentLoaded", () => {
  const inline = /^\\\((.*)\\\)$/s;
  for (const span of document.querySelectorAll(".gb-quiz .math")) {
    const tex = span.textContent.trim();
    if (window.katex && !span.querySelector(".katex"))
      window.katex.render(inline.test(tex) ? tex.match(inline)[1] : tex, span, { throwOnError: false });
  }
  // A figure may shrink to the width of a phone if its smallest letters keep 8.5 pixels there.
  const legible = (svg, width) => [...svg.querySelectorAll("text")].every((text) =>
    (parseFloat(getComputedStyle(text).fontSize) * width) / svg.viewBox.baseVal.width >= 8.5);
  for (const wide of document.querySelectorAll("main table, main .gb-figure > svg")) {
    const box = document.createElement("div");
    box.className = "gb-scroll";
    wide.replaceWith(box);
    box.append(wide);
    if (wide.tagName === "svg" && legible(wide, box.clientWidth)) wide.style.minWidth = 0;
    if (box.scrollWidth <= box.clientWidth) continue;
    box.tabIndex = 0; // so that the arrow keys scroll it
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `${wide.tagName === "TABLE" ? "table" : "figure"}, scrolls sideways`);
  }
});
