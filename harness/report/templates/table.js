// Sorts and filters the trade-off tables, shows or hides their columns, and draws the rows of large ones when they come
// into view. Without it they are plain tables, large ones of their first rows.
"use strict";
{
  const MOST = 100; // rows of a large table that are drawn at first
  const STEP = 500; // the most that scrolling adds at once
  const BLANK = "—";
  const inOrder = new Intl.Collator(undefined, {numeric: true}).compare;
  const plain = text => text.toLowerCase().replace(/\s+/g, " ");

  // A variant of a table that the page has as elements. A missing value has no key.
  class Drawn {
    constructor(row) { this.row = row; }
    get status() { return this.row.dataset.status; }
    get labels() { return (this.row.dataset.labels ?? "").split(" "); }
    get text() { return this.kept ??= plain(this.row.textContent); }
    key(column) {
      const cell = this.row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
      const number = cell.dataset.sort === undefined || column === 0 ? NaN : Number(text);
      return Number.isNaN(number) ? (text === BLANK ? undefined : text) : number;
    }
  }

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // A variant of a table that the page has as data: see lazy_rows.py. Its row looks as macros.html.j2 writes one.
  class Lazy {
    constructor(data, place) { this.data = data; this.place = place; }
    of(repeated) { return repeated.words[repeated.of[this.place]]; }
    get name() { return this.data.names[this.place]; }
    get status() { return this.of(this.data.statuses); }
    get labels() { return this.data.labels[this.place].map(String); }
    get sentences() { return this.data.labels[this.place].map(number => `⚠ ${this.data.sentences[number - 1]}`); }
    get failed() { return this.status !== "ok"; }
    get facts() { return this.of(this.data.facts); }
    get badge() { return this.status.replaceAll("_", " "); }
    get text() {
      const {data, place} = this, marks = [data.isControl.has(place) ? "control" : "", data.isOnFront.has(place) ? "●" : ""];
      return this.kept ??= plain([
        this.name, ...marks, ...(this.failed ? [this.badge, this.of(data.reasons)] : []), ...this.sentences,
        ...data.cells.map(cells => cells[place]),
      ].join(" "));
    }
    key(column) {
      if (column === 0) return this.name;
      const number = this.data.key(column - 1)?.[this.place] ?? NaN, text = this.data.cells[column - 1][this.place];
      return Number.isNaN(number) ? (text === BLANK ? undefined : text.split("\n", 1)[0]) : number;
    }
    get row() {
      const {data, place} = this;
      const row = element("tr", "", {...(this.failed ? {class: "failed"} : {}), "data-status": this.status});
      if (this.labels.length) row.dataset.labels = this.labels.join(" ");
      const head = element("th", `${this.name} `, {scope: "row", "data-sort": this.name});
      if (data.isControl.has(place)) head.append(element("span", "control", {class: "badge base", title: CONTROL}), " ");
      if (data.isOnFront.has(place))
        head.append(element("span", "●", {class: "front", title: FRONT, role: "img", "aria-label": "on the Pareto front"}), " ");
      if (this.failed)
        head.append(element("span", this.badge, {class: "badge bad"}), element("small", this.of(data.reasons), {class: "why"}));
      head.append(...this.sentences.map(sentence => element("small", sentence)));
      row.append(head, ...data.cells.map((cells, column) => {
        const [text, interval, ...notes] = cells[place].split("\n");
        const cell = element("td", text), number = data.key(column)?.[place] ?? NaN;
        if (!Number.isNaN(number)) cell.dataset.sort = number;
        if (interval) cell.append(element("small", interval));
        cell.append(...notes.map(note => element("small", note, data.verdicts.includes(note) ? {class: note} : {})));
        return cell;
      }));
      return row;
    }
  }
  const CONTROL = "The unquantized model on this engine: what the engine changes by itself.";
  const FRONT = "No other variant is both smaller and closer to the baseline.";

  const decode = text => new Float64Array(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);

  const lazyItems = source => {
    const data = JSON.parse(source.textContent), decoded = new Map();
    data.isControl = new Set(data.controls);
    data.isOnFront = new Set(data.fronts);
    data.key = column => decoded.get(column) ??
      decoded.set(column, data.keys[column] === null ? undefined : decode(data.keys[column])).get(column);
    return data.names.map((_, place) => new Lazy(data, place));
  };

  // Missing values come last in either sort order.
  const compare = (one, other, sign) => {
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    if (typeof one === "number" && typeof other === "number") return sign * (one - other || 0);
    return sign * inOrder(String(one), String(other));
  };

  const setUp = section => {
    const table = section.querySelector("table[data-sortable]"), tools = section.querySelector(".tools");
    const heads = [...table.tHead.rows[1].cells], groups = [...table.tHead.rows[0].cells].slice(1);
    const body = table.tBodies[table.tBodies.length - 1], fixed = table.tBodies[0];
    const find = tools.querySelector("input[type=search]"), status = tools.querySelector("[data-by=status]");
    const label = tools.querySelector("[data-by=label]"), count = tools.querySelector("output");
    const more = section.querySelector(".more"), style = document.head.appendChild(document.createElement("style"));
    const source = section.querySelector("[data-rows]"), box = table.closest(".scroll");
    const items = source ? lazyItems(source) : [...body.rows].map(row => new Drawn(row));
    let found = items, shown = 0, all = !source;

    const words = () => find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (item, words) =>
      (!status.value || item.status === status.value) &&
      (!label || !label.value || item.labels.includes(label.value)) &&
      words.every(word => item.text.includes(word));

    const draw = upTo => {
      body.append(...found.slice(shown, upTo).map(item => item.row));
      shown = Math.min(upTo, found.length);
      const rest = found.length - shown;
      count.textContent = `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} variants` +
        (rest ? `, the first ${shown.toLocaleString("en")} shown` : "");
      more.hidden = !rest;
      more.textContent = `Show all ${found.length.toLocaleString("en")}`;
    };

    const update = () => {
      const wanted = words();
      found = wanted.length || status.value || label?.value ? items.filter(item => matches(item, wanted)) : items;
      body.replaceChildren();
      shown = 0;
      draw(all ? found.length : MOST);
    };

    // Scrolling draws as many rows again as there are, so that long tables are laid out a few times only.
    box.addEventListener("scroll", () => {
      if (shown < found.length && box.scrollTop + 2 * box.clientHeight > box.scrollHeight) draw(shown + Math.min(shown, STEP));
    }, {passive: true});

    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map(items.map(item => [item, item.key(column)]));
      items.sort((a, b) => compare(keys.get(a), keys.get(b), up ? 1 : -1));
      box.scrollTop = 0;
      update();
    }));

    // One CSS rule per group hides its columns, so tables of thousands of rows need not be traversed.
    const chips = [...tools.querySelectorAll("[data-group]")];
    const paint = () => {
      let column = 2;
      const hidden = groups.flatMap((group, number) => {
        const first = column;
        column += group.colSpan;
        if (chips[number].getAttribute("aria-pressed") === "true") return [];
        const id = `#${table.id}`;
        const cells = `:nth-child(n+${first}):nth-child(-n+${column - 1})`;
        return [`${id} tr:not(.groups) > ${cells}`, `${id} tr.groups > :nth-child(${number + 2})`];
      });
      style.textContent = hidden.length ? `${hidden.join(", ")} { display: none }` : "";
      measure();
    };
    for (const chip of chips) chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      paint();
    });

    // What ran, of the variants that the page does not have as elements: written when it is opened.
    const facts = section.querySelector("[data-facts]"), written = body.rows.length;
    if (source) facts.addEventListener("toggle", () => {
      const rest = items.filter(item => item.place >= written && item.facts).sort((a, b) => a.place - b.place);
      facts.querySelector("dl").append(...rest.flatMap(item => [element("dt", item.name), element("dd", item.facts)]));
    }, {once: true});

    // The baseline's row sticks below the head, whose height depends on the fonts.
    const measure = () => table.style.setProperty("--head", `${table.tHead.offsetHeight}px`);
    new ResizeObserver(measure).observe(table.tHead);

    for (const control of [find, status, label]) control?.addEventListener("input", update);
    more.addEventListener("click", () => { all = true; update(); });
    tools.hidden = false;
    if (!fixed.rows.length) fixed.remove();
    paint();
    update();
  };

  document.querySelectorAll("[data-trade-off]").forEach(setUp);
}
