// What was measured during training: a few runs at a time, the best of every family first.

import { axis, card, tip } from "./card.js";
import { pointsOf, readOn, seriesOf } from "./data.js";
import { amount, h, number, replace, select, shortPath, unlessSame } from "./dom.js";
import { floorLines, lineGroups, nearAndFar, reach } from "./floors.js";
import { METRICS, chosen, floorsOf, metricOption, standings, variants } from "./runs.js";
import { change, currentState, note } from "./state.js";
import { colour, dash } from "./theme.js";

const MOST = 12; // runs in one chart
const LISTED = 300; // runs in the list; the filter finds the others
const AXES = { step: "step", seconds: "seconds of training", bytes: "bytes read" };
const TAKEN = ["train / seconds", "train / bytes"]; // axes, of which nobody wants a curve first

export function mountCurves(main) {
  const metric = select("metric", (value) => change({ series: value }));
  const along = select("against", (value) => change({ x: value, zoom: null }));
  const scale = select("spaced", (value) => change({ log: value, zoom: null }));
  const floors = select("floors", (value) => change({ floors: value }));
  const filter = h("input", { type: "search", id: "filter", placeholder: "filter runs (/)", "aria-label": "Filter runs", oninput: () => fillList() });
  const list = h("ul", { class: "runs" }), fill = unlessSame();
  const about = h("p", { class: "note" });
  const problems = h("ul", { class: "problems" });
  const chart = card("Curves", { height: 560 });
  let model, at, shown = [], turn = 0;
  replace(main, h("div", { class: "controls" }, metric.root, along.root, scale.root, floors.root),
    h("div", { class: "beside" }, h("aside", { class: "card" }, filter, about, list), h("div", {}, chart.root, problems)));

  function fillList() {
    const words = filter.value.toLowerCase().split(/\s+/);
    const wanted = model.runs.filter((run) => words.every((word) => `${run.name} ${run.family}`.toLowerCase().includes(word)));
    const first = [...wanted].sort((a, b) => shown.includes(b.id) - shown.includes(a.id)).slice(0, LISTED);
    const rows = first.map((run) => {
      const checked = shown.includes(run.id);
      return { id: run.id, name: run.name, checked, disabled: shown.length >= MOST && !checked, kind: run.state === "finished" ? run.family ?? "" : run.state };
    });
    const before = list.contains(document.activeElement) ? document.activeElement.value : null;
    fill(rows, () => replace(list, rows.map(({ id, name, checked, disabled, kind }) => h("li", {}, h("label", {},
      h("input", { type: "checkbox", value: id, checked, disabled, onchange: (event) => toggle(id, event.target.checked) }),
      h("span", { class: "name", title: name }, shortPath(name, 24)), h("span", { class: "faint" }, kind))))));
    if (before) [...list.querySelectorAll("input")].find((one) => one.value === before)?.focus();
    replace(about, `${shown.length} of ${model.runs.length} shown${wanted.length > LISTED ? `; the first ${LISTED} of ${wanted.length} are listed` : ""}. At most ${MOST} at a time${shown.length >= MOST ? ": take one away to choose another" : ""}.`);
  }
  function toggle(id, on) {
    const runs = on ? [...shown, id] : shown.filter((one) => one !== id);
    change({ runs: runs.join(",") || "none" });
  }

  return async function update(newModel, state) {
    const mine = ++turn;
    [model, at] = [newModel, chosen(newModel, state)];
    shown = selected(model, at, state);
    fillList();
    const runs = shown.map((id) => model.byId.get(id));
    const lists = await Promise.all(runs.map(seriesOf));
    if (mine !== turn) return;
    const names = metricNames(lists);
    const key = names.includes(state.series) ? state.series : preferred(names, at.target);
    metric.fill(names.map(metricOption), key, { always: true });
    replace(problems, runs.flatMap((run, i) => complaints(run, lists[i])));
    const found = await Promise.all(runs.map(async (run, i) => {
      const which = lists[i].series.findIndex((one) => nameOf(one) === key);
      return { run, points: which < 0 ? null : await pointsOf(run, lists[i], which) };
    }));
    if (mine !== turn) return;
    const lines = found.filter((one) => one.points?.step.length);
    const axes = Object.keys(AXES).filter((name) => name === "step" || (lines.length && lines.every((one) => one.points[name])));
    const x = axes.includes(state.x) ? state.x : "step";
    along.fill(axes.map((name) => [name, AXES[name]]), x, { always: true });
    scale.fill([["", "even"], ["log", "logarithmic"]], state.log ?? "");
    floors.fill([["", "near"], ["all", "all"], ["none", "none"]], state.floors ?? "");
    drawCurves(chart, { model, at, lines, key, x, log: state.log === "log", only: axes.length === 1, floors: state.floors, zoom: state.zoom });
    readOn(lists, () => mine === turn && chart.root.isConnected && update(newModel, currentState()));
  };
}

// The same curves, nearer by a factor around the middle of what is seen, or farther.
export function zoomBy(factor, state) {
  const [start, end] = bounds(state.zoom);
  const half = Math.min(50, (end - start) / factor / 2), middle = Math.min(100 - half, Math.max(half, (start + end) / 2));
  change({ zoom: half < 50 ? `${(middle - half).toFixed(1)}-${(middle + half).toFixed(1)}` : null });
}

const bounds = (zoom) => (/^\d+(\.\d+)?-\d+(\.\d+)?$/.test(zoom) ? zoom.split("-").map(Number) : [0, 100]);

// The runs of the address, or the best of every family on val for the teacher; without any summary the newest ones.
function selected(model, at, state) {
  if (state.runs) return state.runs.split(",").filter((id) => model.byId.has(id)).slice(0, MOST);
  const best = standings(variants(at.runs), at.target).map((one) => one.first.id);
  const open = model.runs.filter((run) => run.state === "running").map((run) => run.id);
  const newest = [...model.runs].sort((a, b) => b.changed - a.changed).map((run) => run.id);
  return (best.length + open.length ? [...best, ...open] : newest).slice(0, MOST / 2);
}

const nameOf = (one) => [one.split, one.target, one.metric].filter((part) => part != null).join(" / ") + (one.converter ? ` (${one.converter})` : "");

function metricNames(lists) {
  return [...new Set(lists.flatMap((one) => one.series.map(nameOf)))].sort();
}

function preferred(names, target) {
  return names.find((name) => name === `val / ${target} / r2c`) ?? names.find((name) => name.endsWith("/ r2c")) ?? names.find((name) => name === "train / loss") ?? names.find((name) => !TAKEN.includes(name)) ?? names[0];
}

function complaints(run, { problems, read }) {
  const found = read < 1 ? [...problems, `${Math.floor(100 * read)}% of metrics.jsonl are read so far`] : problems;
  return found.map((problem) => h("li", {}, h("b", {}, run.name), `: ${problem}`));
}

// Pairs one behind the other, as ECharts keeps them.
function flat(along, value, log) {
  const found = new Float64Array(2 * along.length);
  let end = 0;
  for (let at = 0; at < along.length; at++) {
    if (along[at] == null || (log && along[at] <= 0)) continue;
    found[end++] = along[at];
    found[end++] = value[at] ?? NaN;
  }
  return found.subarray(0, end);
}

function drawCurves(chart, { model, at, lines, key, x, log, only, floors, zoom }) {
  if (!lines.length) return chart.say(key ? `None of the chosen runs holds ${key}.` : "The chosen runs hold no metrics.");
  const [, target, metric] = key.replace(/ \(.*\)$/, "").split(" / ");
  const [best] = standings(variants(at.runs), target);
  const known = best && floors !== "none" && METRICS.includes(metric) ? [...floorsOf(best, at.runs, target, metric).values()] : [];
  const values = lines.flatMap((one) => one.points.value).filter((value) => value != null).map((value) => ({ value }));
  const { near, far } = nearAndFar(known, values, { all: floors === "all" });
  const groups = lineGroups(near, values);
  const twins = new Map();
  const styled = lines.map((one) => {
    const family = model.familyAt(one.run);
    const again = twins.get(family) ?? 0;
    twins.set(family, again + 1);
    return { ...one, family, again };
  });
  const [start, end] = bounds(zoom);
  const option = (look) => ({
    grid: { left: 64, right: 130, top: 20, bottom: 48 },
    xAxis: axis(look, AXES[x], { type: log ? "log" : "value", max: "dataMax", min: log ? "dataMin" : null, axisLabel: { color: look.faint, hideOverlap: true, formatter: (value) => amount(value) } }),
    yAxis: axis(look, key, { type: "value", scale: true, nameGap: 48, ...(near.length ? reach(near, values) : {}) }),
    dataZoom: [{ type: "inside", filterMode: "none", start, end }],
    tooltip: tip(look, (at) => [`${AXES[x]}: ${amount(at[0].value[0])}`, ...at.map((one) => `${one.seriesName}: ${number(one.value[1], 4)}`)], { trigger: "axis" }),
    series: [
      ...styled.map(({ run, points, family, again }) => ({
        id: run.id, name: run.name, type: "line", showSymbol: points.step.length < 30, symbolSize: 5,
        dimensions: ["along", "value"], data: flat(points[x], points.value, log),
        lineStyle: { color: colour(family, look), type: dash(again), width: 1.8 }, itemStyle: { color: colour(family, look) },
        endLabel: { show: true, formatter: shortPath(run.name, 18), color: look.text, fontSize: 11 }, labelLayout: { moveOverlap: "shiftY" },
      })),
      { id: "floors", type: "line", data: [], markLine: { ...floorLines(look, groups), label: { ...floorLines(look, groups).label, position: "insideStartTop" } } },
    ],
  });
  const rows = () => [["run", x, key], ...known.map((floor) => [`${floor.kind.slice(0, -1)} ${floor.name}`, null, floor.value]),
    ...lines.flatMap(({ run, points }) => points[x].map((along, i) => [run.name, along, points.value[i]]))];
  const notes = ["Colour: family. Dash: further runs of it. The wheel zooms, and so do + and −."];
  if (known.length) notes.push(`Dashed: floors and references of the best run, on test${far}.`);
  if (new Set(lines.map((one) => one.run.set)).size > 1) notes.push("These runs are not all known to be on the same clips, view and normaliser: do not compare them.");
  if (only) notes.push("Of these runs not all have taken down seconds and bytes: steps are the only axis that they share.");
  if (x === "seconds") notes.push("Wall time on whatever machine a run was, all contestants of a contest together.");
  if (x === "bytes") notes.push("Student and teachers as they lie in the store, times the clips of the steps so far.");
  if (lines.some(({ points }) => points.points > points.step.length)) notes.push("Thinned to about 600 points a line; extremes are kept.");
  chart.title(key);
  chart.show(option, rows, notes.join(" "), {
    datazoom: ({ batch: [at] }) => note({ zoom: at.start > 0 || at.end < 100 ? `${at.start.toFixed(1)}-${at.end.toFixed(1)}` : null }),
  });
}
