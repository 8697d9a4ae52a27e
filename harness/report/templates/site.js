// Finds models and sweeps by words, and lays two rows of a model side by side. Without it, the tables are plain tables.
"use strict";
{
  const plain = text => text.toLowerCase().replace(/\s+/g, " ");
  const element = (name, text = "", attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  const setUpSearch = search => {
    const find = search.querySelector("input"), count = search.querySelector("output");
    const sections = [...search.querySelectorAll("[data-found]")].map(section => [section,
      [...section.querySelector("tbody").rows].map(row => [row, plain(`${row.textContent} ${row.dataset.words}`)])]);
    const update = () => {
      const words = plain(find.value).split(" ").filter(Boolean);
      count.textContent = sections.map(([section, rows]) => {
        let shown = 0;
        for (const [row, text] of rows) {
          row.hidden = !words.every(word => text.includes(word));
          shown += !row.hidden;
        }
        section.hidden = !shown;
        return `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${section.dataset.found}${rows.length === 1 ? "" : "s"}`;
      }).join(", ");
    };
    find.addEventListener("input", update);
    search.querySelector(".tools").hidden = false;
    update();
  };

  const MOST_DIFFERENCES = 4, LONGEST = 60, SHORT = 8; // letters of a text, and of a key, that are shown
  const FIELDS = ["name", "heading", "unit", "text", "interval", "direction", "value", "low", "high", "exact", "key"];
  const figures = row => new Map(row.figures.map(values => {
    const figure = Object.fromEntries(FIELDS.map((field, place) => [field, values[place]]));
    return [figure.name, figure];
  }));
  const short = text => text === undefined ? "none" : text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
  const number = value => value.toLocaleString("en", {maximumSignificantDigits: 3});

  const differing = (one, other) => {
    const names = [...new Set([...Object.keys(one), ...Object.keys(other)])].filter(name => one[name] !== other[name]).sort();
    const told = names.slice(0, MOST_DIFFERENCES).map(name => `${name.replace(/^asked /, "")}: ${short(one[name])} and ${short(other[name])}`);
    return [...told, ...(names.length > MOST_DIFFERENCES ? [`and ${names.length - MOST_DIFFERENCES} more`] : [])].join("; ");
  };

  // The second beside the first, in words. Intervals that overlap are no proof that two are equal.
  const beside = (one, other) => {
    if (one.value === other.value) return ["the same", ""];
    const change = one.value > 0 && other.value > 0 ? `× ${number(other.value / one.value)}` : "";
    const better = one.direction === "neither" ? "" : (other.value < one.value) === (one.direction === "lower") ? "better" : "worse";
    const judged = words => [change, [words, better].filter(Boolean).join(": ")];
    if (one.exact && other.exact) return judged("counted exactly");
    if ([one.low, one.high, other.low, other.high].includes(null)) return [change, "not every figure has an interval"];
    if (one.low <= other.high && other.low <= one.high) return [change, "the intervals overlap"];
    return judged("the intervals do not overlap");
  };

  const setUpComparison = section => {
    const {rows, conditions, first, keys: shown} = JSON.parse(section.querySelector("[data-rows]").textContent);
    const sides = [...section.querySelectorAll("select")], result = section.querySelector("[data-result]");
    const found = rows.map(figures);
    for (const [place, side] of sides.entries()) {
      side.append(...rows.map((row, number) => element("option", row.name, {value: number})));
      side.selectedIndex = first[place];
      side.addEventListener("input", () => draw());
    }
    const cell = figure => {
      const made = element("td", figure ? `${figure.text}${figure.unit ? ` ${figure.unit}` : ""}` : "—");
      if (figure?.interval) made.append(element("small", figure.interval));
      return made;
    };
    const draw = () => {
      const [one, other] = sides.map(side => found[side.value]);
      const names = [...new Set([...one.keys(), ...other.keys()])];
      const table = element("table");
      const head = table.createTHead().insertRow();
      head.append(...["Figure", "One", "Other", "Other against one"].map(text => element("th", text, {scope: "col"})), element("th", "Standing", {scope: "col", class: "words"}));
      const body = table.createTBody();
      for (const name of names) {
        const [mine, theirs] = [one.get(name), other.get(name)];
        const line = body.insertRow();
        const keys = [...new Set([mine, theirs].filter(Boolean).map(each => each.key.slice(0, SHORT)))];
        const heading = element("th", `${(mine ?? theirs).heading} `, {scope: "row"});
        if (shown) heading.append(...keys.flatMap(key => [element("code", key, {title: "Comparability key"}), " "]));
        line.append(heading, cell(mine), cell(theirs));
        const alike = mine && theirs && mine.key === theirs.key;
        const [change, words] = !mine || !theirs ? ["", "measured in one of them only"]
          : alike ? beside(mine, theirs) : ["", `incomparable: ${differing(conditions[mine.key], conditions[theirs.key])}`];
        const standing = words.split(": ")[1];
        line.append(element("td", change), element("td", "", {class: "words"}));
        line.lastChild.append(element("small", words, ["better", "worse"].includes(standing) ? {class: standing} : {}));
      }
      const box = element("div", "", {class: "scroll site", tabindex: "0", role: "region", "aria-label": "Two rows side by side"});
      box.append(table);
      result.replaceChildren(box);
    };
    section.querySelector("form").hidden = false;
    if (rows.length) draw();
  };

  document.querySelectorAll("[data-search]").forEach(setUpSearch);
  document.querySelectorAll("[data-compare]").forEach(setUpComparison);
}
