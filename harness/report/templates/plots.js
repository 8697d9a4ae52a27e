// Draws each plot when it scrolls near the window, in the colours of the page; draws all of them for printing.
"use strict";
{
  const plots = [...document.querySelectorAll("[data-figure]")], drawn = new Set();
  const style = getComputedStyle(document.documentElement);
  const onPaper = {"--ink": "#000", "--soft": "#444", "--grid": "rgba(90, 100, 112, .25)"};
  // On a sheet two figures stand side by side, and the main one beside the answer, whatever the window's width is.
  const paperWidth = plot => plot.closest(".main") ? 750 : 640;
  let paper = false;

  const dye = (plot, layout) => {
    const of = name => paper ? onPaper[name] : style.getPropertyValue(name).trim();
    layout.font = {...layout.font, color: of("--ink")};
    layout.width = paper ? paperWidth(plot) : undefined;
    for (const name of Object.keys(layout).filter(name => /^[xy]axis\d*$/.test(name)))
      layout[name] = {...layout[name], gridcolor: of("--grid"), color: of("--soft")};
    return layout;
  };
  const paint = () => drawn.forEach(plot => Plotly.react(plot, plot.data, dye(plot, {...plot.layout})));

  // plotly is large: it is compiled when the first plot is needed, after the tables have loaded.
  const load = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };

  const draw = plot => {
    if (drawn.has(plot)) return;
    load();
    drawn.add(plot);
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    Plotly.newPlot(plot, figure.data, dye(plot, figure.layout), {displaylogo: false, responsive: true, displayModeBar: false});
  };

  // One after another, so that the first is seen before the last is drawn.
  const waiting = [];
  const next = () => {
    if (waiting.length) { draw(waiting.shift()); setTimeout(next); }
  };
  const near = new IntersectionObserver(entries => {
    const idle = !waiting.length;
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); waiting.push(entry.target); }
    if (idle) setTimeout(next);
  }, {rootMargin: "400px"});
  plots.forEach(plot => near.observe(plot));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  addEventListener("beforeprint", () => { paper = true; plots.forEach(draw); paint(); });
  addEventListener("afterprint", () => { paper = false; paint(); drawn.forEach(plot => Plotly.Plots.resize(plot)); });
}
