// Sorts and filters the trade-off tables, shows or hides their columns, and draws the rows of large ones when they come
// into view. Without it they are plain tables, large ones of their first rows.
"use strict";
{
  const MOST = 100; // rows of a large table that are drawn at first
  const STEP = 500; // the most that scrolling adds at once
  const AT_ONCE = 5000; // the most that a click adds: every row has dozens of cells to lay out
  const BLANK = "—";
  const NO_BAR = 255;
  const inOrder = new Intl.Collator(undefined, {numeric: true}).compare;
  const plain = text => text.toLowerCase().replace(/\s+/g, " ");

  // A variant of a table that the page has as elements. A missing value has no key.
  class Drawn {
    constructor(row, notes) { this.row = row; this.notes = notes; }
    get status() { return this.row.dataset.status; }
    get labels() { return (this.row.dataset.labels ?? "").split(" "); }
    get text() {
      const marks = [...this.row.querySelectorAll("sup")].map(each => each.textContent);
      return this.kept ??= plain([this.row.textContent, ...noted(marks, this.notes)].join(" "));
    }
    key(column) {
      const cell = this.row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
      const number = cell.dataset.sort === undefined || column === 0 ? NaN : Number(text);
      return Number.isNaN(number) ? (text === BLANK ? undefined : text) : number;
    }
  }

  // The footnotes that these numbers name.
  const noted = (marks, notes) => marks.flatMap(each => each.match(/\d+/g) ?? []).map(number => notes[number - 1]);

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // A variant of a table that the page has as data: see page_table.py. Its row looks as macros.html.j2 writes one.
  class Lazy {
    constructor(data, place) { this.data = data; this.place = place; }
    of(repeated) { return repeated.words[repeated.of[this.place]]; }
    get name() { return this.data.names[this.place]; }
    get status() { return this.of(this.data.statuses); }
    get marks() { return this.of(this.data.labels); }
    get labels() { return this.marks.split(" "); }
    get failed() { return this.status !== "ok"; }
    get facts() { return this.of(this.data.facts); }
    get badge() { return this.status.replaceAll("_", " "); }
    get text() {
      const {data, place} = this, marks = [data.isControl.has(place) ? "control" : "", data.isOnFront.has(place) ? "●" : ""];
      return this.kept ??= plain([
        this.name, ...marks, ...(this.failed ? [this.badge, this.of(data.reasons)] : []),
        ...data.cells.map(cells => cells[place]),
        ...noted([this.marks, ...data.cells.map(cells => cells[place].split("\n", 5)[4] ?? "")], data.notes),
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
      if (this.marks) row.dataset.labels = this.marks;
      const head = element("th", `${this.name} `, {scope: "row", "data-sort": this.name});
      if (data.isControl.has(place)) head.append(element("span", "control", {class: "badge base", title: CONTROL}), " ");
      if (data.isOnFront.has(place))
        head.append(element("span", "●", {class: "front", title: FRONT, role: "img", "aria-label": "on the Pareto front"}), " ");
      if (this.marks) head.append(element("sup", `⚠ ${this.marks}`, {class: "bad"}), " ");
      if (this.failed) {
        const reason = this.of(data.reasons);
        head.append(element("span", this.badge, {class: "badge bad"}), element("small", reason, {class: "why", title: reason}));
      }
      row.append(head, ...data.cells.map((cells, column) => {
        const [text, padding, interval, word, marks] = cells[place].split("\n");
        const cell = element("td", ""), number = data.key(column)?.[place] ?? NaN, bars = data.bar(column);
        if (!Number.isNaN(number)) cell.dataset.sort = number;
        cell.append(element("span", text, padding ? {"data-padding": padding} : {}));
        if (bars) {
          const [low, at, high] = bars.subarray(3 * place);
          cell.append(element("i", "", low === NO_BAR ? {} : {style: `--low:${low};--at:${at};--high:${high}`}));
        }
        if (interval || word || marks) {
          const below = element("small", `${interval} `);
          if (word) below.append(element("em", word, data.verdicts.includes(word) ? {class: word} : {}));
          if (marks) below.append(element("sup", marks));
          cell.append(below);
        }
        return cell;
      }));
      return row;
    }
  }
  const CONTROL = "The unquantized model on this engine: what the engine changes by itself.";
  const FRONT = "No other variant is both smaller and closer to the baseline.";

  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const decoded = (packed, decode) => {
    const known = new Map();
    return column => known.get(column) ??
      known.set(column, packed[column] === null ? undefined : decode(packed[column])).get(column);
  };

  const lazyItems = source => {
    const data = JSON.parse(source.textContent);
    data.isControl = new Set(data.controls);
    data.isOnFront = new Set(data.fronts);
    data.key = decoded(data.keys, text => new Float64Array(bytes(text).buffer));
    data.bar = decoded(data.bars, bytes);
    return data.names.map((_, place) => new Lazy(data, place));
  };

  // Missing values come last in either sort order.
  const compare = (one, other, sign) => {
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    if (typeof one === "number" && typeof other === "number") return sign * (one - other || 0);
    return sign * inOrder(String(one), String(other));
  };

  // What a reader chose is kept in the page's address, so that a link shows others the same rows and columns. Browsers
  // refuse that to a page within another, and to one that asks for it too often.
  const chosen = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const keep = (name, value) => {
    if (value === (chosen.get(name) ?? "")) return;
    if (value) chosen.set(name, value);
    else chosen.delete(name);
    try { history.replaceState(null, "", `#${chosen}`); } catch { /* the page works without it */ }
  };

  const setUp = section => {
    const table = section.querySelector("table[data-sortable]"), tools = section.querySelector(".tools");
    const heads = [...table.tHead.rows[1].cells], groups = [...table.tHead.rows[0].cells].slice(1);
    const body = table.tBodies[table.tBodies.length - 1], fixed = table.tBodies[0];
    const find = tools.querySelector("input[type=search]"), status = tools.querySelector("[data-by=status]");
    const label = tools.querySelector("[data-by=label]"), count = tools.querySelector("output");
    const more = section.querySelector(".more"), style = document.head.appendChild(document.createElement("style"));
    const source = section.querySelector("[data-rows]"), box = table.closest(".scroll");
    const listed = section.querySelector("[data-notes]"), first = listed ? [...listed.querySelectorAll("li")].map(each => each.textContent) : [];
    const items = source ? lazyItems(source) : [...body.rows].map(row => new Drawn(row, first));
    const notes = source ? items[0].data.notes : first;
    let found = items, shown = 0, begin = source ? MOST : AT_ONCE;

    const controls = Object.entries({find, status, label}).filter(([, control]) => control);
    const kept = name => chosen.get(`${table.id}.${name}`) ?? "", choose = (name, value) => keep(`${table.id}.${name}`, value);

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
      more.textContent = rest > AT_ONCE ? `Show ${AT_ONCE.toLocaleString("en")} more` : `Show all ${found.length.toLocaleString("en")}`;
    };

    const update = () => {
      const wanted = words();
      found = wanted.length || status.value || label?.value ? items.filter(item => matches(item, wanted)) : items;
      body.replaceChildren();
      shown = 0;
      draw(begin);
    };

    // Scrolling draws as many rows again as there are, so that long tables are laid out a few times only.
    box.addEventListener("scroll", () => {
      if (shown < found.length && box.scrollTop + 2 * box.clientHeight > box.scrollHeight) draw(shown + Math.min(shown, STEP));
    }, {passive: true});

    const sort = (head, column, up) => {
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map(items.map(item => [item, item.key(column)]));
      items.sort((a, b) => compare(keys.get(a), keys.get(b), up ? 1 : -1));
      box.scrollTop = 0;
      choose("sort", `${up ? "" : "-"}${column}`);
      update();
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
      sort(head, column, head.getAttribute("aria-sort") !== "ascending")));

    // Key columns are always shown, the others of a group when its chip is pressed. CSS rules hide the rest, so tables of
    // thousands of rows need not be traversed.
    const chips = [...tools.querySelectorAll("[data-group]")], spans = groups.map(group => group.colSpan);
    const keys = heads.slice(1).map(head => head.dataset.key !== undefined);
    if (!keys.includes(true)) keys.fill(true);
    const press = (chip, down) => chip.setAttribute("aria-pressed", String(down));
    const isPressed = chip => chip.getAttribute("aria-pressed") === "true";
    const paint = () => {
      const hidden = [];
      let column = 0;
      groups.forEach((group, number) => {
        const all = isPressed(chips[number]), end = column + spans[number];
        let count = 0;
        for (; column < end; column++) all || keys[column] ? count++ : hidden.push(`#${table.id} tr:not(.groups) > :nth-child(${column + 2})`);
        group.hidden = !count;
        group.colSpan = count || 1;
      });
      style.textContent = hidden.length ? `${hidden.join(", ")} { display: none }` : "";
      measure();
    };
    let column = 0;
    chips.forEach((chip, number) => {
      chip.hidden = keys.slice(column, column += spans[number]).every(Boolean);
    });
    for (const chip of chips) chip.addEventListener("click", () => {
      press(chip, !isPressed(chip));
      choose("columns", chips.filter(isPressed).map(each => each.textContent).join(","));
      paint();
    });

    // What ran, of the variants that the page does not have as elements: written when it is opened.
    const facts = section.querySelector("[data-facts]"), written = body.rows.length;
    if (source) facts.addEventListener("toggle", () => {
      const rest = items.filter(item => item.place >= written && item.facts).sort((a, b) => a.place - b.place);
      facts.querySelector("dl").append(...rest.flatMap(item => [element("dt", item.name), element("dd", item.facts)]));
    }, {once: true});

    // The footnotes of such variants likewise; and what a mark says, where the pointer is over it.
    const writeNotes = () => listed.querySelector("ol").append(...notes.slice(first.length).map(note => element("li", note)));
    if (source && listed.open) writeNotes();
    else if (source) listed.addEventListener("toggle", writeNotes, {once: true});
    if (source && !notes.length) listed.remove();
    table.addEventListener("pointerover", event => {
      const mark = event.target.closest("sup");
      if (mark && !mark.title) mark.title = noted([mark.textContent], notes).join("; ");
    });

    // A table that fits has no box of its own: its head sticks to the window. The baseline's row sticks below the head,
    // whose height depends on the fonts.
    const measure = () => {
      table.style.setProperty("--head", `${table.tHead.offsetHeight}px`);
      box.classList.toggle("fits", !box.classList.contains("long") && table.offsetWidth <= box.clientWidth);
    };
    const resized = new ResizeObserver(measure);
    for (const each of [table.tHead, box]) resized.observe(each);

    for (const [name, control] of controls) control.addEventListener("input", () => { choose(name, control.value); update(); });
    more.addEventListener("click", () => { begin = AT_ONCE; draw(shown + AT_ONCE); });
    tools.hidden = false;
    if (!fixed.rows.length) fixed.remove();
    for (const [name, control] of controls) if (kept(name)) control.value = kept(name);
    for (const chip of chips) press(chip, kept("columns").split(",").includes(chip.textContent));
    paint();
    const sorted = Math.abs(Number.parseInt(kept("sort")));
    if (heads[sorted]) sort(heads[sorted], sorted, !kept("sort").startsWith("-"));
    else update();
  };

  document.querySelectorAll("[data-trade-off]").forEach(setUp);
}
