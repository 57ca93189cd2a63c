"use strict";
// The browser over the test set. All text of models and people enters as text nodes, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const search = find("search"), filter = find("filter"), threshold = find("threshold"), sort = find("sort");
  const by = find("by"), chosen = find("runs"), list = find("list"), count = find("count"), more = find("more");
  const PAGE = 30; // meaning representations that are added to the list at a time
  let order = [], shown = 0;

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function selected() {
    return [...chosen.querySelectorAll("input:checked")].map((box) => data.runs[box.value]);
  }

  // The run by which the list is sorted and filtered.
  function key() {
    return data.runs[by.value];
  }

  function errors(output) {
    return output && output.errors ? output.errors.length : 0;
  }

  const haystacks = data.mrs.map((mr, index) =>
    [...mr.slots.map(([name, value]) => `${name}[${value}]`), ...data.runs.map((run) => run.outputs[index]?.text ?? "")]
      .join("\n").toLowerCase());

  function keeps(index) {
    const output = key().outputs[index];
    if (!search.value.toLowerCase().split(/\s+/).every((word) => haystacks[index].includes(word))) return false;
    if (filter.value === "errors") return errors(output) > 0;
    if (filter.value === "differ") return new Set(selected().map((run) => run.outputs[index]?.text)).size > 1;
    const column = data.columns.indexOf(filter.value);
    return column < 0 || (output !== null && output.scores[column] < Number(threshold.value));
  }

  function rank(index) {
    const output = key().outputs[index];
    if (sort.value === "order") return index;
    if (output === null) return Infinity; // at the end
    return sort.value === "errors" ? -errors(output) : output.scores[data.columns.indexOf(sort.value)];
  }

  function update() {
    threshold.hidden = !data.columns.includes(filter.value);
    order = data.mrs.map((_, index) => index).filter(keeps);
    const ranks = new Map(order.map((index) => [index, rank(index)]));
    order.sort((a, b) => ranks.get(a) - ranks.get(b) || a - b);
    count.textContent = `${order.length} of ${data.mrs.length} meaning representations`;
    list.replaceChildren();
    shown = 0;
    extend();
    // The view can be kept as a link.
    const state = { q: search.value, filter: filter.value, below: threshold.value, sort: sort.value, by: by.value };
    history.replaceState(null, "", "#" + new URLSearchParams(state));
  }

  function extend() {
    const part = document.createDocumentFragment();
    for (const index of order.slice(shown, shown + PAGE)) part.append(card(index));
    list.append(part);
    shown = Math.min(order.length, shown + PAGE);
    more.hidden = shown === order.length;
  }

  function card(index) {
    const mr = data.mrs[index], made = element("article");
    made.append(element("div", `${index + 1}`, "number"));
    const slots = element("div");
    for (const [name, value] of mr.slots) slots.append(element("span", `${name}: ${value}`, "slot"));
    const outputs = element("div", undefined, "outputs");
    for (const run of selected()) outputs.append(outputOf(run, index));
    const people = element("details");
    people.append(element("summary", `${mr.references.length} human references`));
    const texts = element("ul");
    for (const reference of mr.references) texts.append(element("li", reference));
    people.append(texts);
    made.append(slots, outputs, people);
    return made;
  }

  function outputOf(run, index) {
    const output = run.outputs[index], made = element("section", undefined, "output");
    made.append(element("h3", run.name));
    if (output === null) {
      made.append(element("p", "not decoded"));
      return made;
    }
    made.append(withValues(output.text, data.mrs[index].slots));
    if (output.errors) made.append(judged(output.errors, data.mrs[index].slots));
    const scores = data.columns.map((name, place) => `${name} ${output.scores[place].toFixed(3)}`);
    made.append(element("div", scores.join("  "), "scores"));
    return made;
  }

  // The text with the slots' values marked where they stand in it word for word.
  function withValues(text, slots) {
    const made = element("p"), lower = text.toLowerCase(), spans = [];
    for (const [name, value] of slots) {
      const start = lower.indexOf(value.toLowerCase());
      if (start >= 0 && lower.length === text.length) spans.push([start, start + value.length, name]);
    }
    spans.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    let end = 0;
    for (const [from, to, name] of spans) {
      if (from < end) continue;
      made.append(text.slice(end, from));
      const mark = element("mark", text.slice(from, to));
      mark.title = name;
      made.append(mark);
      end = to;
    }
    made.append(text.slice(end));
    return made;
  }

  // Each slot of the meaning representation, and whether the text says it; then what the text adds.
  function judged(found, slots) {
    const made = element("div"), kinds = new Map(found.map(([kind, name]) => [name, kind]));
    for (const [name] of slots) {
      const kind = kinds.get(name);
      made.append(element("span", kind ? `✗ ${name}: ${kind}` : `✓ ${name}`, kind ? "slot wrong" : "slot said"));
      kinds.delete(name);
    }
    for (const [name, kind] of kinds) made.append(element("span", `✗ ${name}: ${kind}`, "slot wrong"));
    return made;
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
  more.addEventListener("click", extend);
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && extend(), { rootMargin: "600px" })
    .observe(more);
  update();
  document.body.dataset.ready = Math.round(performance.now()); // milliseconds from the start of loading
})();
