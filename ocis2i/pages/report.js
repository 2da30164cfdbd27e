"use strict";
// The log's search: shows the lines that have the words, of one stage or of all.
(() => {
  const search = document.getElementById("search");
  if (!search) return;
  const stage = document.getElementById("stage");
  const count = document.getElementById("count");
  const logs = [...document.querySelectorAll("[data-stage]")].map((part) => ({
    part,
    lines: [...part.querySelectorAll("li:not(.gap)")].map((line) => ({
      line, text: line.textContent, lower: line.textContent.toLowerCase(), marked: false,
    })),
    gaps: [...part.querySelectorAll("li.gap")],
  }));
  const all = logs.reduce((sum, log) => sum + log.lines.length, 0);

  function mark(entry, words) {
    const pieces = [];
    let from = 0;
    // Letters whose lower case is longer would put the marks out of place.
    const exact = entry.lower.length === entry.text.length;
    for (let at = entry.lower.indexOf(words); exact && at >= 0; at = entry.lower.indexOf(words, from)) {
      pieces.push(entry.text.slice(from, at));
      const found = document.createElement("mark");
      from = at + words.length;
      found.textContent = entry.text.slice(at, from);
      pieces.push(found);
    }
    pieces.push(entry.text.slice(from));
    entry.line.replaceChildren(...pieces);
    entry.marked = true;
  }

  function show() {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const log of logs) {
      const wanted = stage.value === "" || log.part.dataset.stage === stage.value;
      let here = 0;
      for (const entry of log.lines) {
        const found = wanted && entry.lower.includes(words);
        entry.line.hidden = !found;
        if (found) here += 1;
        if (found && words) mark(entry, words);
        else if (entry.marked) { entry.line.textContent = entry.text; entry.marked = false; }
      }
      for (const gap of log.gaps) gap.hidden = words !== "";
      log.part.hidden = !wanted || (here === 0 && words !== "");
      shown += here;
    }
    count.textContent = words || stage.value ? `${shown} of ${all} lines` : `${all} lines`;
  }

  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, all > 2000 ? 120 : 0); });
  stage.addEventListener("change", show);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      show();
    }
  });
  document.getElementById("tools").hidden = false;
  show();
})();
// Paper has no lids to open.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
