// Which converter, for which teacher, at what cost, and can I believe it.

import { axis, card, tip, whiskers } from "./card.js";
import { pointsOf, readOn, seriesOf } from "./data.js";
import { floorLines, lineGroups, nearAndFar, reach } from "./floors.js";
import { amount, between, h, number, replace, select, short, signed, table } from "./dom.js";
import { COSTS, METRICS, better, chosen, costOf, dig, equivalentPixels, floorsOf, gained, leadOver, markOf, measured, metricOption, regret, standings, variants } from "./runs.js";
import { change, linkTo } from "./state.js";
import { colour, dash, shape } from "./theme.js";
import { verdict } from "./verdict.js";

const RISING = 0.005; // r2c gained over the last quarter of a run's steps above which it is said to be still rising

export function mountOverview(main) {
  const set = select("clips and view", (value) => change({ set: value }));
  const teacher = select("teacher", (value) => change({ teacher: value }));
  const metric = select("metric", (value) => change({ metric: value }));
  const cost = select("cost", (value) => change({ cost: value }));
  const answer = h("section", { class: "card wide" });
  const under = h("section", { class: "card wide", hidden: true });
  const heat = card("Families and floors by teacher", { height: 420 });
  const front = card("Quality against cost", { height: 420 });
  const rising = card("Is it still improving", { height: 260, wide: true });
  replace(main, h("div", { class: "controls" }, set.root, teacher.root, metric.root, cost.root),
    h("div", { class: "grid" }, answer, heat.root, front.root, rising.root, under));

  return (model, state) => {
    const at = chosen(model, state);
    const all = variants(at.runs);
    set.fill(model.sets.map((one, number) => [one.id, setName(one, number)]), at.set);
    teacher.fill(at.targets.map((name) => [name, name]), at.target);
    metric.fill(METRICS.filter((name) => at.runs.some((run) => measuredBy(run, name))).map(metricOption), at.metric);
    cost.fill(Object.entries(COSTS), at.cost);
    showOthers(under, model);
    if (!all.length) {
      replace(answer, h("h2", {}, "Nothing to compare yet"), h("p", { class: "note" }, model.runs.length
        ? "No run has a summary: they are listed below. Curves shows what they have measured so far."
        : `There is no run below ${model.roots.join(", ")}.`));
      [heat, front, rising].forEach((one) => one.say("Comes with the first summary.json."));
      return;
    }
    showAnswer(answer, model, at, all);
    front.height(Math.max(300, showHeat(heat, at, all)));
    showFront(front, model, at, all);
    return showRising(rising, model, at, all);
  };
}

const measuredBy = (run, metric) => Object.values(run.targets ?? {}).some((of) => of[metric] != null);

function setName(one, at) {
  const differs = one.differs.length ? `, other ${one.differs.join(", ")}` : "";
  return `${at + 1}: ${one.runs} runs, ${dig(one, "clips", "test") ?? "?"} test clips${differs}`;
}

// --- the answer, a row for each teacher

function showAnswer(root, model, at, all) {
  const rows = at.targets.map((target) => {
    const [best, next] = standings(all, target);
    if (!best) return [target, h("td", { colspan: 7 }, "no run")];
    const found = measured(best, target, "r2c");
    const gain = gained(best, target);
    const lead = next && leadOver(best, next, target);
    return [
      h("th", { scope: "row" }, h("a", { href: linkTo({ page: "overview", set: at.set, teacher: target, metric: at.metric, cost: at.cost }) }, target)),
      h("td", { class: "name" }, h("a", { href: linkTo({ page: "curves", set: at.set, teacher: target, runs: best.first.id }) }, best.family), count(best)),
      h("td", { class: "number" }, h("strong", {}, number(found.value)), ` ${between(found.low, found.high)}`, scales(best, target)),
      h("td", { class: "number" }, `${signed(gain.value)} ${between(gain.low, gain.high)}`),
      h("td", { class: "number" }, next ? `${signed(lead.value)} on ${next.family} ${lead.paired ? between(lead.low, lead.high) : "(not paired)"}` : "–"),
      h("td", { class: "number" }, costText(best)),
      h("td", {}, verdict(best, next, at.runs, target)),
    ];
  });
  replace(root, h("h2", {}, "The best converter of each teacher"),
    table(["teacher", "converter", "r2c on test, 95%", "above ridge, paired", "ahead of the next", "parameters, MACs, time a clip", "can I believe it"], rows),
    h("p", { class: "note" }, "Chosen by r2c on val, measured on test. r2c: 0 is copying the average clip, 1 is the teacher itself. ",
      "Over several seeds: their mean, and an interval that spans those of all. ",
      "As a shift: the teacher errs as much on its own view moved by so many pixels. Regret, on an oracle: 1 is the optimum."));
}

// What the number is worth, on the teacher's own scale and on an oracle's.
function scales(variant, target) {
  const pixels = equivalentPixels(variant, target), over = regret(variant, target);
  const line = (text) => h("div", { class: "faint" }, text);
  return [
    pixels.beyond != null || pixels.value != null ? line(asShift(pixels, variant.seeds.length)) : null,
    over.value != null ? line(`regret ${over.value.toFixed(2)} ${between(over.low, over.high)}`) : null,
  ];
}

function asShift({ value, beyond, times }, seeds) {
  if (!times) return `as a shift of ${value.toFixed(2)} px`;
  return times === seeds ? `worse than a shift of ${beyond} px` : `beyond ${beyond} px in ${times} of ${seeds} seeds`;
}

const count = (variant) => (variant.seeds.length > 1 ? h("span", { class: "faint" }, ` ${variant.seeds.length} seeds`) : null);

export function costText(variant) {
  const [parameters, macs, ms] = ["parameters", "macs", "latency_ms"].map((name) => costOf(variant, name));
  return parameters == null ? "–" : `${(parameters / 1e6).toFixed(2)} M, ${(macs / 1e9).toFixed(2)} G, ${ms?.toFixed(0) ?? "–"} ms`;
}

// --- families and floors by teacher

function showHeat(heat, at, all) {
  const families = [...new Set(all.map((one) => one.family))];
  const best = new Map(at.targets.map((target) => [target, standings(all, target)]));
  const cells = [], rows = new Map();
  const put = (name, target, cell) => {
    if (!rows.has(name)) rows.set(name, rows.size);
    cells.push({ name, target, ...cell });
  };
  const score = (family) => Math.max(...at.targets.map((t) => measured(best.get(t).find((v) => v.family === family) ?? { seeds: [] }, t, "r2c").value ?? -9));
  for (const family of families.sort((a, b) => score(b) - score(a))) {
    for (const target of at.targets) {
      const variant = best.get(target).find((one) => one.family === family);
      if (variant) put(family, target, { ...measured(variant, target, at.metric), kind: "family", mark: markOf(variant, target, at.metric), seeds: variant.seeds.length });
    }
  }
  rows.set("", rows.size); // an empty row before the floors
  for (const target of at.targets) {
    const [first] = best.get(target);
    const mark = first && markOf(first, target, at.metric); // floors are of the same clips; what was computed is of none
    if (first) for (const floor of floorsOf(first, at.runs, target, at.metric).values()) put(floor.name, target, { ...floor, mark: floor.name === "bayes" ? null : mark });
  }
  const names = [...rows.keys()];
  const values = cells.map((cell) => cell.value).filter((value) => value != null);
  const top = new Map(at.targets.map((target) => [target, cells.filter((cell) => cell.target === target && cell.kind === "family")
    .reduce((a, b) => (better(at.metric, b.value, a?.value) ? b : a), null)]));
  heat.title(`Families and floors by teacher: ${metricOption(at.metric)[1]} on test`);
  const height = 50 + names.length * 28;
  heat.height(height);
  const draw = (look) => heatOption(look, { at, names, cells, top, values });
  const csv = [["row", "kind", "teacher", at.metric, "low", "high", "seeds", "not to be trusted"], ...cells.map((c) => [c.name, c.kind, c.target, c.value, c.low, c.high, c.seeds, c.mark])];
  const marked = cells.some((cell) => cell.mark) ? " !: not to be trusted, there are too few clips." : "";
  heat.show(draw, () => csv, `★ best family of the column. Below: floors and references, beside the best run of the column.${marked} A click on a cell chooses its teacher.`,
    { click: (event) => event.data?.cell && change({ teacher: event.data.cell.target }) });
  return height;
}

function heatOption(look, { at, names, cells, top, values }) {
  const lower = better(at.metric, 0, 1), low = lower ? Math.min(...values) : 0, high = Math.max(...values);
  const amounts = lower ? [...look.amounts].reverse() : look.amounts;
  const dark = (value) => lower !== (value - low) / (high - low || 1) < 0.55;
  const data = cells.filter((cell) => cell.value != null).map((cell) => ({
    cell, value: [at.targets.indexOf(cell.target), names.indexOf(cell.name), cell.value],
    label: { color: dark(cell.value) ? "#fff" : "#111" },
  }));
  const label = ({ data: { cell } }) => {
    const star = top.get(cell.target)?.name === cell.name && cell.kind === "family" ? "★ " : "";
    return `${star}${number(cell.value, at.metric === "rank_recovery" ? 0 : 3)}${cell.low == null ? "" : ` ±${((cell.high - cell.low) / 2).toFixed(3)}`}${cell.mark ? " !" : ""}`;
  };
  return {
    grid: { left: 110, right: 10, top: 26, bottom: 10 },
    xAxis: axis(look, "", { type: "category", position: "top", data: at.targets, axisLabel: { color: look.text, interval: 0, formatter: (name) => short(name, 22) }, splitLine: { show: false } }),
    yAxis: axis(look, "", { type: "category", inverse: true, data: names, axisLabel: { color: look.text, formatter: (name) => short(name, 15) }, axisLine: { show: false }, splitLine: { show: false } }),
    visualMap: { show: false, dimension: 2, min: low, max: high, inRange: { color: amounts } },
    tooltip: tip(look, ({ data: { cell } }) => [`${cell.name}, ${cell.target}`, `${at.metric} ${number(cell.value, 4)} ${between(cell.low, cell.high, 4)}`,
      cell.kind === "family" ? `best of its family on val, ${cell.seeds} seed(s)` : cell.kind.slice(0, -1),
      ...(cell.mark ? [`not to be trusted: ${cell.mark}`] : [])]),
    series: [{
      id: "heat", type: "heatmap", progressive: 0, data, label: { show: true, formatter: label, fontSize: 12 }, itemStyle: { borderColor: look.surface, borderWidth: 2 },
      emphasis: { itemStyle: { borderColor: look.text } },
    }],
  };
}

// --- quality against cost

function showFront(front, model, at, all) {
  const points = all.filter((one) => dig(one.first, "targets", at.target)).map((variant) => ({
    variant, x: costOf(variant, at.cost), ...measured(variant, at.target, at.metric),
  })).filter((point) => point.x > 0 && point.value != null).sort((a, b) => a.x - b.x);
  const onFront = [];
  for (const point of points) if (better(at.metric, point.value, onFront.at(-1)?.value)) onFront.push(point);
  const [best] = standings(all, at.target);
  const known = best ? [...floorsOf(best, at.runs, at.target, at.metric).values()] : [];
  const { near, far } = nearAndFar(known, points);
  front.title(`Quality against cost: ${at.target}`);
  if (!points.length) return front.say("No run says what it costs.");
  const draw = (look) => ({
    grid: { left: 56, right: 118, top: 20, bottom: 46 },
    xAxis: axis(look, COSTS[at.cost], { type: "log", min: (r) => r.min / 1.5, max: (r) => r.max * 1.5, axisLabel: { color: look.faint, formatter: (value) => amount(value, 2), hideOverlap: true } }),
    yAxis: axis(look, at.metric, { type: "value", scale: true, nameGap: 40, ...reach(near, points) }),
    tooltip: tip(look, ({ data }) => (data?.point ? [`${data.point.variant.family}: ${data.point.variant.first.name}`,
      `${at.metric} ${number(data.point.value, 4)} ${between(data.point.low, data.point.high, 4)}`, costText(data.point.variant)] : [])),
    series: [
      { id: "front", type: "line", step: "end", silent: true, symbol: "none", data: onFront.map((p) => [p.x, p.value]), lineStyle: { color: look.faint, width: 1 } },
      whiskers("intervals", points.filter((p) => p.low != null).map((p) => [p.low, p.x, p.high]), () => look.line, { upright: true }),
      ...model.families.map((family, number) => ({
        id: `of ${family}`, name: family, type: "scatter", symbol: shape(number), symbolSize: 13, itemStyle: { color: colour(number, look), borderColor: look.surface },
        labelLayout: { hideOverlap: true }, data: points.filter((p) => p.variant.family === family).map((point) => ({
          point, value: [point.x, point.value],
          label: { show: onFront.includes(point) || points.length < 9, formatter: () => short(family, 16), position: onFront.includes(point) ? "top" : "bottom", distance: 8, color: look.text },
        })),
      })),
      { id: "floors", type: "scatter", data: [], markLine: floorLines(look, lineGroups(near, points)) },
    ],
  });
  front.show(draw, () => [["family", "run", "seeds", at.cost, at.metric, "low", "high"], ...points.map((p) => [p.variant.family, p.variant.first.name, p.variant.seeds.length, p.x, p.value, p.low, p.high]),
    ...known.map((floor) => [floor.name, floor.kind.slice(0, -1), null, null, floor.value])],
    `A point for each recipe, with its interval. The line joins what nothing cheaper beats. Dashed: floors, which cost nothing of this${far}.`,
    { click: (event) => event.data?.point && change({ page: "curves", runs: event.data.point.variant.first.id }) });
}

// --- is it still improving

async function showRising(rising, model, at, all) {
  const turn = (rising.turn = {});
  if (rising.empty()) rising.say("Reading the metrics of the best runs …");
  const best = standings(all, at.target).slice(0, 6);
  const found = await Promise.all(best.map(async ({ first, family }) => {
    const list = await seriesOf(first);
    const which = list.series.findIndex((one) => one.split === "val" && one.metric === "r2c" && one.target === at.target && !one.converter);
    return { run: first, family, read: list.read, points: which < 0 ? null : await pointsOf(first, list, which) };
  }));
  if (turn !== rising.turn) return;
  readOn(found, () => turn === rising.turn && rising.root.isConnected && showRising(rising, model, at, all));
  const shown = found.filter((one) => one.points);
  rising.title(`Is it still improving: r2c on val, ${at.target}`);
  if (!shown.length) return rising.say("These runs hold no r2c on val for this teacher.");
  const draw = (look) => ({
    grid: { left: 56, right: 118, top: 16, bottom: 42 },
    xAxis: axis(look, "step", { type: "value", max: "dataMax" }),
    yAxis: axis(look, "r2c on val", { type: "value", scale: true, nameGap: 40 }),
    tooltip: tip(look, (at) => [`step ${at[0].value[0]}`, ...at.map((one) => `${one.seriesName} ${number(one.value[1], 4)}`)], { trigger: "axis" }),
    series: shown.map(({ run, family, points }) => ({
      id: run.id, name: family, type: "line", showSymbol: points.step.length < 30, symbol: shape(model.familyAt(run)),
      data: points.step.map((step, i) => [step, points.value[i]]),
      lineStyle: { color: colour(model.familyAt(run), look), type: dash(model.familyAt(run)) }, itemStyle: { color: colour(model.familyAt(run), look) },
      endLabel: { show: true, formatter: short(family, 16), color: look.text }, labelLayout: { moveOverlap: "shiftY" },
    })),
  });
  const words = shown.map(({ family, points }) => {
    const late = lastQuarter(points);
    return late == null ? `${family}: too few points` : `${family} ${late > RISING ? "still rises" : "has levelled off"} (${signed(late)})`;
  });
  rising.show(draw, () => [["family", "run", "step", "r2c"], ...shown.flatMap(({ run, family, points }) => points.step.map((step, i) => [family, run.name, step, points.value[i]]))],
    `Over the last quarter of the steps: ${words.join("; ")}. Above +${RISING} counts as rising. Of several seeds the first.${found.some(({ read }) => read < 1) ? " Not all of their metrics are read yet." : ""}`);
}

function lastQuarter({ step, value }) {
  const from = step.findLastIndex((one) => one <= 0.75 * step.at(-1));
  return from < 0 || value[from] == null || value.at(-1) == null ? null : value.at(-1) - value[from];
}

// --- runs that have not ended, and what is broken

function showOthers(root, model) {
  const open = model.runs.filter((run) => run.state !== "finished");
  const broken = model.runs.filter((run) => run.problems.length);
  root.hidden = !open.length && !broken.length;
  if (root.hidden) return;
  replace(root,
    open.length ? [h("h2", {}, "Runs without a summary"), table(["run", "state", "step", "r2c on val"], open.map((run) => [
      h("td", {}, h("a", { href: linkTo({ page: "curves", runs: run.id }) }, run.name)), run.state, `${run.step ?? "–"} of ${run.steps ?? "?"}`,
      Object.entries(run.validated ?? {}).map(([target, value]) => `${target} ${number(value)}`).join(", ") || "–",
    ]))] : null,
    broken.length ? [h("h2", {}, "What is broken"), h("ul", {}, broken.map((run) => h("li", {}, h("b", {}, run.name), `: ${run.problems.join("; ")}`)))] : null);
}
