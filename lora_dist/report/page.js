"use strict";
// Browser over the test set. Outputs and references are inserted as text nodes, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const search = find("search"), filter = find("filter"), threshold = find("threshold"), sort = find("sort");
  const by = find("by"), chosen = find("runs"), list = find("list"), count = find("count"), more = find("more");
  const PAGE_SIZE = 30; // MRs appended to the list at a time
  let order = [], shown = 0;

  function element(name, text, className) {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  }

  // The runs shown side by side.
  function shownRuns() {
    return [...chosen.querySelectorAll("input:checked")].map((box) => data.runs[box.value]);
  }

  // The run by which the list is sorted and filtered.
  function sortRun() {
    return data.runs[by.value];
  }

  function errorCount(output) {
    return output && output.errors ? output.errors.length : 0;
  }

  const searchTexts = data.mrs.map((mr, index) =>
    [...mr.slots.map(([name, value]) => `${name}[${value}]`), ...data.runs.map((run) => run.outputs[index]?.text ?? "")]
      .join("\n").toLowerCase());

  function matchesFilter(index) {
    const output = sortRun().outputs[index];
    if (!search.value.toLowerCase().split(/\s+/).every((word) => searchTexts[index].includes(word))) return false;
    if (filter.value === "errors") return errorCount(output) > 0;
    if (filter.value === "differ") return new Set(shownRuns().map((run) => run.outputs[index]?.text)).size > 1;
    const column = data.columns.indexOf(filter.value);
    return column < 0 || (output !== null && output.scores[column] < Number(threshold.value));
  }

  function sortKey(index) {
    const output = sortRun().outputs[index];
    if (sort.value === "order") return index;
    if (output === null) return Infinity; // at the end
    return sort.value === "errors" ? -errorCount(output) : output.scores[data.columns.indexOf(sort.value)];
  }

  function update() {
    threshold.hidden = !data.columns.includes(filter.value);
    order = data.mrs.map((_, index) => index).filter(matchesFilter);
    const keys = new Map(order.map((index) => [index, sortKey(index)]));
    order.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
    count.textContent = `${order.length} of ${data.mrs.length} meaning representations`;
    list.replaceChildren();
    shown = 0;
    appendPage();
    // The URL fragment keeps the view, so that it can be shared as a link.
    const state = { q: search.value, filter: filter.value, below: threshold.value, sort: sort.value, by: by.value };
    history.replaceState(null, "", "#" + new URLSearchParams(state));
  }

  function appendPage() {
    const fragment = document.createDocumentFragment();
    for (const index of order.slice(shown, shown + PAGE_SIZE)) fragment.append(instanceCard(index));
    list.append(fragment);
    shown = Math.min(order.length, shown + PAGE_SIZE);
    more.hidden = shown === order.length;
  }

  function instanceCard(index) {
    const mr = data.mrs[index], node = element("article");
    node.append(element("div", `${index + 1}`, "number"));
    const slots = element("div");
    for (const [name, value] of mr.slots) slots.append(element("span", `${name}: ${value}`, "slot"));
    const outputs = element("div", undefined, "outputs");
    for (const run of shownRuns()) outputs.append(outputSection(run, index));
    const references = element("details");
    references.append(element("summary", `${mr.references.length} human references`));
    const texts = element("ul");
    for (const reference of mr.references) texts.append(element("li", reference));
    references.append(texts);
    node.append(slots, outputs, references);
    return node;
  }

  function outputSection(run, index) {
    const output = run.outputs[index], node = element("section", undefined, "output");
    node.append(element("h3", run.name));
    if (output === null) {
      node.append(element("p", "not decoded"));
      return node;
    }
    node.append(highlightSlots(output.text, data.mrs[index].slots));
    if (output.errors) node.append(slotVerdicts(output.errors, data.mrs[index].slots));
    const scores = data.columns.map((name, column) => `${name} ${output.scores[column].toFixed(3)}`);
    node.append(element("div", scores.join("  "), "scores"));
    return node;
  }

  // The text with verbatim slot values highlighted.
  function highlightSlots(text, slots) {
    const node = element("p"), lower = text.toLowerCase(), spans = [];
    for (const [name, value] of slots) {
      const start = lower.indexOf(value.toLowerCase());
      if (start >= 0 && lower.length === text.length) spans.push([start, start + value.length, name]);
    }
    spans.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    let end = 0;
    for (const [from, to, name] of spans) {
      if (from < end) continue;
      node.append(text.slice(end, from));
      const mark = element("mark", text.slice(from, to));
      mark.title = name;
      node.append(mark);
      end = to;
    }
    node.append(text.slice(end));
    return node;
  }

  // Each slot of the MR with its error, if any; then the attributes that the text adds.
  function slotVerdicts(errors, slots) {
    const node = element("div"), kinds = new Map(errors.map(([kind, name]) => [name, kind]));
    for (const [name] of slots) {
      const kind = kinds.get(name);
      node.append(element("span", kind ? `✗ ${name}: ${kind}` : `✓ ${name}`, kind ? "slot error" : "slot mentioned"));
      kinds.delete(name);
    }
    for (const [name, kind] of kinds) node.append(element("span", `✗ ${name}: ${kind}`, "slot error"));
    return node;
  }

  data.runs.forEach((run, index) => {
    by.append(new Option(run.name, index));
    const label = element("label"), box = element("input");
    Object.assign(box, { type: "checkbox", value: index, checked: index < 4 });
    label.append(box, ` ${run.name}`);
    chosen.append(label);
  });
  for (const name of data.columns) {
    sort.append(new Option(`lowest ${name} first`, name));
    filter.append(new Option(`with ${name} below`, name));
  }
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [name, control] of Object.entries({ q: search, filter, below: threshold, sort, by })) {
    if (state.get(name)) control.value = state.get(name);
  }
  for (const control of [search, filter, threshold, sort, by, chosen]) control.addEventListener("input", update);
  more.addEventListener("click", appendPage);
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && appendPage(), { rootMargin: "600px" })
    .observe(more);
  update();
  document.body.dataset.ready = Math.round(performance.now()); // milliseconds since navigation started
})();
