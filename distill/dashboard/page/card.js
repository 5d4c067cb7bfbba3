// A chart with its title, and the same as PNG, CSV and table.
/* global echarts */

import { bytesOf } from "./data.js";
import { h, replace, table } from "./dom.js";
import { darkness, theme } from "./theme.js";

const TABLED = 1000; // rows of a table; every cell is an element

const cards = new Set();
darkness.addEventListener("change", () => cards.forEach((one) => one.redraw()));

export function forgetCards() {
  cards.forEach((one) => one.dispose());
  cards.clear();
}

// card.show(draw, rows, note, on): draw(theme) gives ECharts' options, rows() the data, their header first, on says what
// a click or a zoom does.
export function card(title, { height = 320, wide = false } = {}) {
  const canvas = h("div", { class: "canvas", role: "img", "aria-label": title });
  canvas.style.height = `${height}px`;
  const note = h("p", { class: "note" });
  const data = h("div", { class: "data", hidden: true, tabindex: "0" });
  const button = (text, about, act) => h("button", { type: "button", title: about, onclick: act }, text);
  const asTable = button("Table", "The same as a table", () => toggle());
  const tools = h("div", { class: "tools" }, asTable,
    button("CSV", "Save the data", () => save(`${called}.csv`, new Blob([csvOf(rows())], { type: "text/csv" }))),
    button("PNG", "Save the picture", () => picture((blob) => save(`${called}.png`, blob))));
  const heading = h("h2", {}, title);
  let called = title;
  const root = h("section", { class: wide ? "card wide" : "card" }, h("div", { class: "head" }, heading, tools), canvas, data, note);
  let chart = null, draw = null, rows = () => [[]], acts = {}, gone = false;

  const sizes = new ResizeObserver(() => chart && chart.resize());
  sizes.observe(canvas);

  function redraw() {
    if (!draw) return;
    const look = theme();
    chart ??= echarts.init(canvas, null, { renderer: "canvas" });
    for (const [event, act] of Object.entries(acts)) chart.off(event).on(event, act);
    chart.setOption({ animation: false, textStyle: { fontFamily: look.font, fontSize: 12 }, ...draw(look) }, { notMerge: true });
  }
  // A picture that ECharts is still painting, piece by piece, it would go on painting when it is gone, and fail: first it
  // is painted anew, empty.
  function end() {
    if (!chart) return;
    chart.clear();
    chart.getZr().refreshImmediately();
    chart.dispose();
    chart = null;
  }
  function fillTable() {
    if (data.hidden) return;
    const [header, ...all] = rows();
    replace(data, all.length > TABLED && h("p", { class: "note" }, `The first ${TABLED} of ${all.length} rows; the CSV has all.`),
      table(header, all.slice(0, TABLED).map((row) => row.map((cell) => cell ?? ""))));
  }
  function toggle() {
    data.hidden = !data.hidden;
    canvas.hidden = !data.hidden;
    asTable.setAttribute("aria-pressed", String(!data.hidden));
    fillTable();
  }
  function picture(done) {
    if (!chart) return;
    const url = chart.getDataURL({ pixelRatio: 2, backgroundColor: theme().surface }); // fetching it, the page's policy forbids
    done(new Blob([bytesOf(url.split(",")[1])], { type: "image/png" }));
  }
  const one = {
    root,
    redraw,
    dispose: () => { sizes.disconnect(); end(); gone = true; },
    show(newDraw, newRows, text = "", on = {}) {
      if (gone) return; // data that came when its page was left
      [draw, rows, acts] = [newDraw, newRows, on];
      tools.hidden = false;
      canvas.hidden = !data.hidden;
      replace(note, text);
      redraw();
      fillTable();
      if (!performance.getEntriesByName("first-chart").length) performance.mark("first-chart");
    },
    // Says in words why there is nothing to see.
    say(text) {
      draw = null;
      end();
      rows = () => [[]];
      canvas.hidden = tools.hidden = data.hidden = true;
      replace(note, text);
    },
    height(pixels) {
      canvas.style.height = `${pixels}px`;
      if (chart) chart.resize();
    },
    empty: () => !draw,
    width: () => canvas.clientWidth,
    title(text) {
      called = text;
      replace(heading, text);
      canvas.setAttribute("aria-label", text);
    },
  };
  cards.add(one);
  return one;
}

export function save(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name.replace(/[^\w.-]+/g, "_") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A cell that a spreadsheet would take for a formula gets a quote in front.
export function csvOf(rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

// --- what the charts' options have in common

export function axis(look, name, more = {}) {
  return {
    name, nameLocation: "middle", nameGap: 30, nameTextStyle: { color: look.faint },
    axisLabel: { color: look.faint, hideOverlap: true }, axisLine: { lineStyle: { color: look.line } },
    axisTick: { show: false }, splitLine: { lineStyle: { color: look.line, opacity: 0.6 } }, ...more,
  };
}

// Whiskers from low to high for data [low, place, high]: along x, or upright. tint(at) -> colour of the at-th.
export function whiskers(id, data, tint, { upright = false } = {}) {
  const renderItem = (params, api) => {
    const [from, to] = [0, 2].map((end) => api.coord(upright ? [api.value(1), api.value(end)] : [api.value(end), api.value(1)]));
    return { type: "line", shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1] }, style: { stroke: tint(params.dataIndex), lineWidth: 2.5 } };
  };
  return { id, type: "custom", silent: true, data, encode: upright ? { x: 1, y: [0, 2] } : { x: [0, 2], y: 1 }, renderItem };
}

// Lines of text beside the pointer, built of text nodes. lines(what ECharts points at) -> array of strings.
export function tip(look, lines, more = {}) {
  return {
    confine: true, backgroundColor: look.surface, borderColor: look.line, textStyle: { color: look.text, fontSize: 12 },
    formatter: (at) => h("div", {}, lines(at).map((line) => h("div", {}, line))), ...more,
  };
}
