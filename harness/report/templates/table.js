// Sorts and filters the trade-off tables and shows or hides their columns. Without it they are plain tables.
"use strict";
{
  const MOST = 100; // rows drawn before "show all"
  const BLANK = "—";

  const keyOf = (row, column) => {
    const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
    const number = cell.dataset.sort === undefined || column === 0 ? NaN : Number(text);
    return Number.isNaN(number) ? (text === BLANK ? undefined : text) : number;
  };

  // Missing values come last in either sort order.
  const compare = (one, other, sign) => {
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    if (typeof one === "number" && typeof other === "number") return sign * (one - other || 0);
    return sign * String(one).localeCompare(String(other), undefined, {numeric: true});
  };

  const setUp = section => {
    const table = section.querySelector("table[data-sortable]"), tools = section.querySelector(".tools");
    const heads = [...table.tHead.rows[1].cells], groups = [...table.tHead.rows[0].cells].slice(1);
    const body = table.tBodies[table.tBodies.length - 1], fixed = table.tBodies[0];
    const find = tools.querySelector("input[type=search]"), status = tools.querySelector("[data-by=status]");
    const label = tools.querySelector("[data-by=label]"), count = tools.querySelector("output");
    const more = section.querySelector(".more"), style = document.head.appendChild(document.createElement("style"));
    let rows = [...body.rows], all = false;
    const texts = new Map();
    const textOf = row => texts.get(row) ?? texts.set(row, row.textContent.toLowerCase().replace(/\s+/g, " ")).get(row);

    const matches = row =>
      (!status.value || row.dataset.status === status.value) &&
      (!label || !label.value || (row.dataset.labels ?? "").split(" ").includes(label.value)) &&
      find.value.toLowerCase().split(/\s+/).every(word => textOf(row).includes(word));

    const update = () => {
      const filtered = find.value.trim() || status.value || label?.value;
      const found = filtered ? rows.filter(matches) : rows;
      const shown = new Set(all ? found : found.slice(0, MOST));
      for (const row of rows) row.classList.toggle("late", !shown.has(row));
      const rest = found.length - shown.size;
      count.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} variants` +
        (rest ? `, the first ${MOST} shown` : "");
      more.hidden = !rest;
      more.textContent = `Show all ${found.length.toLocaleString("en")}`;
    };

    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map(rows.map(row => [row, keyOf(row, column)]));
      rows.sort((a, b) => compare(keys.get(a), keys.get(b), up ? 1 : -1));
      body.append(...rows);
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
