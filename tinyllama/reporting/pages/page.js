"use strict";
// Shows one view at a time and draws its charts. All text of the page stands in its HTML already.

const page = JSON.parse(document.getElementById("data").textContent);
const runs = new Map(page.runs.map((run) => [run.name, run]));
const root = document.documentElement;
const cards = [...document.querySelectorAll(".card")];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const PRINTED_WIDTH = 680; // pixels of a sheet, A4 or letter, between its margins

// ---------------------------------------------------------------- plotly

async function unpackPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

// ---------------------------------------------------------------- colours

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

/** What a colour of page.css comes to in the light or dark of now: "rgb(0, 114, 178)". */
function colour(name, opacity = 1) {
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  return opacity === 1 ? found : found.replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
}

const variantColour = (run) => (run.variants.length > 1 ? "shared" : `variant-${page.variants.indexOf(run.variants[0]) % 6}`);
const corpusColour = (name) => `corpus-${page.corpora.indexOf(name) % 6}`;

// ---------------------------------------------------------------- traces

/** A line, and behind it the band between the lowest and highest values of its points. */
function lines(tokens, series, { name, tint, dash = "solid", hover, group, legend = true, axis = "y", scale = 1, mode = "lines" }) {
  if (!series || !series.mean) return [];
  const scaled = (values) => (scale === 1 ? values : values.map((value) => (value === null ? null : value * scale)));
  const traces = [];
  if (series.low) {
    const edge = { x: tokens, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: group, yaxis: axis };
    traces.push({ ...edge, y: scaled(series.low), name: "lowest" });
    traces.push({ ...edge, y: scaled(series.high), name: "highest", fill: "tonexty", fillcolor: colour(tint, 0.18) });
  }
  traces.push({
    x: tokens, y: scaled(series.mean), name, mode: tokens.length === 1 ? "markers" : mode, yaxis: axis,
    line: { color: colour(tint), width: 1.8, dash }, marker: { color: colour(tint), size: 6 },
    legendgroup: group, showlegend: legend, hovertemplate: hover, connectgaps: true,
  });
  return traces;
}

/** Skipped and unusual steps of a run, at their loss where it was a number. */
function remarks(run) {
  const kinds = [["skipped", true, "x-thin-open"], ["unusual", false, "diamond-open"]];
  const usual = run.loss.mean ? Math.max(...run.loss.mean.filter((value) => value !== null)) : 1;
  return kinds.flatMap(([name, skipped, symbol]) => {
    const found = run.remarks.filter((each) => each.skipped === skipped);
    return found.length === 0 ? [] : [{
      x: found.map((each) => each.tokens), y: found.map((each) => each.loss ?? usual), text: found.map((each) => plain(each.why)),
      name: `${name} steps`, mode: "markers", marker: { symbol, size: 9, color: colour("bad"), line: { width: 2, color: colour("bad") } },
      hovertemplate: `${name} step until %{x:,} tokens<br>%{text}<extra></extra>`,
    }];
  });
}

/** Text that plotly does not take for HTML. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

const at = (what, format = ".4f", unit = "") => `${plain(what)}: %{y:${format}}${unit}<br>until %{x:,} tokens<extra></extra>`;

const DRAWN = {
  "family-loss": () => {
    const named = new Set();
    const traces = page.runs.flatMap((run) => {
      const group = `${run.variants.join(", ")}${run.branch ? ` (${run.title.split(" (")[1] ?? "branch)"}` : ""}`;
      const legend = !named.has(group);
      named.add(group);
      const dash = run.branch ? "dot" : "solid";
      return lines(run.tokens, run.loss, { name: plain(group), tint: variantColour(run), dash, group, legend, hover: at(run.title) });
    });
    return { traces, borders: page.runs, unit: "loss" };
  },
  "family-validation": (corpus) => {
    const known = page.runs.filter((run) => run.validation[corpus]);
    const traces = known.flatMap((run) => {
      const found = fromParent(run, corpus);
      return lines(found.tokens, found, { name: plain(run.title), tint: variantColour(run), dash: run.branch ? "dot" : "solid", mode: "lines+markers", hover: at(run.title), legend: false });
    });
    return { traces, borders: page.runs, unit: "loss" };
  },
  loss: (name) => {
    const run = runs.get(name);
    return { traces: [...lines(run.tokens, run.loss, { name: "loss", tint: variantColour(run), hover: at("loss"), legend: false }), ...remarks(run)], pauses: run.pauses, unit: "loss" };
  },
  corpus_losses: (name) => {
    const run = runs.get(name);
    return { traces: perCorpus(run.corpus_losses, () => run.tokens, "lines"), unit: "loss" };
  },
  validation: (name) => {
    const run = runs.get(name);
    return { traces: perCorpus(run.validation, (found) => found.tokens, "lines+markers"), unit: "loss" };
  },
  mixture: (name) => {
    const run = runs.get(name);
    const traces = Object.entries(run.mixture).flatMap(([corpus, found]) => {
      const tint = corpusColour(corpus);
      const [read] = lines(run.tokens, { mean: found.sampled }, { name: plain(corpus), tint, group: corpus, hover: at(`${corpus}, read`, ".1%") });
      const [declared] = lines(run.tokens, { mean: found.declared }, { name: `${plain(corpus)}, declared`, tint, group: corpus, hover: at(`${corpus}, declared`, ".1%"), legend: false });
      declared.line = { color: colour(tint, 0.3), width: 7 };
      return [declared, read];
    });
    return { traces, unit: "share of samples", percent: true };
  },
  learning_rate: (name) => {
    const run = runs.get(name);
    const batch = { mean: run.tokens.map(() => run.batch_tokens) };
    return {
      traces: [
        ...lines(run.tokens, run.learning_rate, { name: "learning rate", tint: "accent", hover: at("learning rate", ".3e") }),
        ...lines(run.tokens, batch, { name: "batch, tokens (right)", tint: "pale", dash: "dot", axis: "y2", hover: at("batch", ",", " tokens") }),
      ],
      unit: "learning rate", second: run.batch_tokens,
    };
  },
  grad_norm: (name) => single(name, "grad_norm", "gradient norm", { format: ".4g" }),
  tokens_per_second: (name) => single(name, "tokens_per_second", "tokens/s", { format: ",.0f", zero: true }),
  data_wait: (name) => single(name, "data_wait", "ms a step", { format: ".2f", scale: 1000, zero: true }),
};

/** Validation of a run, from its parent's weights on, with which it begins. */
function fromParent(run, corpus) {
  const own = run.validation[corpus];
  const before = runs.get(run.parent)?.validation[corpus];
  const place = before ? before.tokens.indexOf(run.start) : -1;
  if (place < 0 || own.low || before.low) return own;
  return { tokens: [run.start, ...own.tokens], mean: [before.mean[place], ...own.mean] };
}

function single(name, metric, unit, { format, scale = 1, zero = false }) {
  const run = runs.get(name);
  return { traces: lines(run.tokens, run[metric], { name: unit, tint: "accent", hover: at(unit, format), legend: false, scale }), unit, zero, pauses: run.pauses };
}

function perCorpus(groups, tokensOf, mode) {
  return Object.entries(groups).flatMap(([corpus, found]) => {
    const place = page.corpora.indexOf(corpus);
    return lines(tokensOf(found), found, { name: plain(corpus), tint: corpusColour(corpus), dash: DASHES[place % 6], mode, group: corpus, hover: at(corpus) });
  });
}

// ---------------------------------------------------------------- charts

function layout({ unit, borders, pauses = [], second, percent, zero }, width, legend) {
  const grid = { gridcolor: colour("faint"), linecolor: colour("line"), zerolinecolor: colour("line"), tickcolor: colour("line"), automargin: true };
  const label = (text) => ({ text, font: { size: 12, color: colour("pale") }, standoff: 6 });
  const found = {
    autosize: true, paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)", hovermode: "closest", showlegend: legend,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    margin: { l: 8, r: 10, t: borders ? 24 : 10, b: 8 }, legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    xaxis: { ...grid, title: label("tokens of life"), exponentformat: "B", nticks: 7 },
    yaxis: { ...grid, title: label(unit), nticks: 6, ...(percent ? { tickformat: ".0%", range: [-0.02, 1.04] } : {}), ...(zero ? { rangemode: "tozero" } : {}) },
    shapes: [], annotations: [],
  };
  if (unit === "learning rate") found.yaxis.exponentformat = "e";
  if (second) found.yaxis2 = { ...grid, overlaying: "y", side: "right", title: label("tokens a batch"), range: [0, 1.08 * second], tickvals: [0, second], showgrid: false, exponentformat: "B" };
  for (const pause of pauses) found.shapes.push(upright(pause.tokens, "warm", "dot"));
  if (borders) markStages(found, borders, width);
  return found;
}

function upright(tokens, tint, dash) {
  return { type: "line", x0: tokens, x1: tokens, yref: "paper", y0: 0, y1: 1, line: { color: colour(tint), width: 1, dash } };
}

/** A line where a stage begins, and its name over it where there is room. */
function markStages(found, borders, width) {
  const end = Math.max(...borders.map((run) => run.end));
  const begin = Math.min(...borders.map((run) => run.start));
  const stages = new Map();
  for (const run of borders) stages.set(`${run.stage} ${run.start}`, run);
  let free = -Infinity;
  for (const run of [...stages.values()].sort((one, other) => one.start - other.start)) {
    if (run.start > begin) found.shapes.push(upright(run.start, "pale", "dash"));
    const place = ((run.start - begin) / (end - begin)) * (width - 70);
    const size = 7 * run.stage.length;
    const anchor = place + size > width - 55 ? "right" : "left";
    const left = anchor === "left" ? place : place - size;
    if (left < free) continue;
    free = left + size;
    found.annotations.push({ x: run.start, y: 1, yref: "paper", yanchor: "bottom", xanchor: anchor, text: plain(run.stage), showarrow: false, font: { size: 11, color: colour("pale") } });
  }
  found.xaxis.range = [begin - 0.01 * (end - begin), end + 0.01 * (end - begin)];
}

/** Draw a chart, or draw it again in other colours or at the width of paper. */
function draw(canvas, printed) {
  const width = printed && (canvas.closest(".wide") ? PRINTED_WIDTH : PRINTED_WIDTH / 2 - 10);
  const drawn = DRAWN[canvas.dataset.chart](canvas.dataset.of);
  if (drawn.pauses?.length) drawn.traces.push({ x: [null], y: [null], mode: "lines", name: "restart or pause", line: { color: colour("warm"), width: 1, dash: "dot" } });
  const legend = drawn.traces.filter((trace) => trace.showlegend !== false).length > 0;
  const shape = layout(drawn, width ?? canvas.clientWidth, legend);
  if (width) Object.assign(shape, { autosize: false, width, height: canvas.clientHeight });
  const options = { responsive: !width, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  canvas.dataset.drawn = "";
  return Plotly.react(canvas, drawn.traces, shape, options);
}

const shownCharts = () => document.querySelectorAll(".view.shown .chart");

function drawShown() {
  if (window.Plotly) for (const canvas of shownCharts()) if (!("drawn" in canvas.dataset)) draw(canvas);
}

function redraw(printed) {
  if (window.Plotly) for (const canvas of document.querySelectorAll(printed ? ".chart" : ".chart[data-drawn]")) draw(canvas, printed);
}

// ---------------------------------------------------------------- views

const nameInAddress = () => decodeURIComponent(location.hash.slice(1));

function show(wanted) {
  const name = runs.has(wanted) ? wanted : "family";
  for (const view of document.querySelectorAll(".view")) view.classList.toggle("shown", view.id === name);
  for (const card of cards) card.setAttribute("aria-selected", card.dataset.view === name);
  document.querySelector(".whole").setAttribute("aria-current", name === "family");
  const reached = cards.find((card) => card.dataset.view === name) ?? cards[0];
  for (const card of cards) card.tabIndex = card === reached ? 0 : -1;
  drawShown();
}

function go(name) {
  if (name !== nameInAddress()) history.pushState(null, "", `#${name}`);
  show(name);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-view]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.dataset.view);
  const shown = document.querySelector(".view.shown");
  if (link.closest(".view")) document.querySelector(".tree").scrollIntoView();
  else if (shown.getBoundingClientRect().top > 0.8 * innerHeight) shown.scrollIntoView();
});

document.querySelector("[role=tree]").addEventListener("keydown", (event) => {
  const here = event.target.closest(".card");
  if (!here || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = cards.indexOf(here);
  const item = here.parentElement;
  const target = {
    ArrowDown: () => cards[place + 1],
    ArrowUp: () => cards[place - 1],
    ArrowRight: () => item.querySelector(":scope > ul .card"),
    ArrowLeft: () => item.parentElement.closest("li")?.querySelector(":scope > .card"),
    Home: () => cards[0],
    End: () => cards.at(-1),
    " ": () => here,
  }[event.key];
  if (!target) return;
  event.preventDefault();
  const card = target();
  if (!card) return;
  go(card.dataset.view);
  card.focus();
});

for (const happening of ["popstate", "hashchange"]) window.addEventListener(happening, () => show(nameInAddress()));

// ---------------------------------------------------------------- light and dark

const themeButton = document.getElementById("theme");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches;
}

function themeHasChanged() {
  themeButton.textContent = isDark() ? "Light" : "Dark";
  redraw();
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  themeHasChanged();
});
systemIsDark.addEventListener("change", themeHasChanged);

// ---------------------------------------------------------------- on paper

let closed = [];

window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
  for (const view of document.querySelectorAll(".view")) view.classList.add("shown");
  root.dataset.printing = root.dataset.theme ?? "";
  root.dataset.theme = "light";
  redraw(true);
});

window.addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  if (root.dataset.printing) root.dataset.theme = root.dataset.printing;
  else delete root.dataset.theme;
  for (const canvas of document.querySelectorAll(".chart")) Plotly.purge(canvas), delete canvas.dataset.drawn;
  show(nameInAddress());
});

// ---------------------------------------------------------------- begin

root.classList.add("scripted");
themeButton.textContent = isDark() ? "Light" : "Dark";
show(nameInAddress());
unpackPlotly().then(() => {
  drawShown();
  root.dataset.ready = "";
});
