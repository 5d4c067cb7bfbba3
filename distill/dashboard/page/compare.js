// Run B minus run A, or why the two cannot be compared.

import { axis, card, tip, whiskers } from "./card.js";
import { get } from "./data.js";
import { between, h, number, replace, select, signed, table } from "./dom.js";
import { chosen, flatters, metricOption, standings, variants } from "./runs.js";
import { change } from "./state.js";

export function mountCompare(main) {
  const a = select("A", (value) => change({ a: value }));
  const b = select("B", (value) => change({ b: value }));
  const swap = h("button", { type: "button" }, "Swap");
  const verdict = h("section", { class: "card wide" });
  const chart = card("B minus A in r2c on test", { height: 260, wide: true });
  const numbers = h("section", { class: "card wide" });
  const recipe = h("section", { class: "card wide" });
  replace(main, h("div", { class: "controls" }, a.root, b.root, swap), h("div", { class: "grid" }, verdict, chart.root, recipe, numbers));
  let turn = 0;

  return async (model, state) => {
    const mine = ++turn;
    const [first, second] = pair(model, state);
    for (const part of [a.root, b.root, swap, chart.root, numbers, recipe]) part.hidden = !second;
    if (!second) {
      return replace(verdict, h("h2", {}, "It takes two runs"), h("p", { class: "note" }, model.runs.length ? "There is one." : `There is no run below ${model.roots.join(", ")}.`));
    }
    const options = model.runs.map((run) => [run.id, `${run.name} (${run.state === "finished" ? run.family : run.state})`]);
    a.fill(options, first, { always: true });
    b.fill(options, second, { always: true });
    swap.onclick = () => change({ a: second, b: first });
    const stamp = [first, second].map((id) => model.byId.get(id).stamp).join();
    const found = await get(`compare/${first}/${second}`, stamp);
    if (mine !== turn) return;
    if (!found) {
      [numbers, recipe].forEach((one) => replace(one));
      replace(verdict, h("h2", {}, "Not in this file"), h("p", {}, "An export holds the comparisons between its best runs on val. The served page compares any two."));
      return chart.say("");
    }
    show({ verdict, chart, numbers, recipe }, found);
  };
}

// The runs of the address, or the two families that are best on val for the first teacher.
function pair(model, state) {
  const at = chosen(model, state);
  const likely = [...standings(variants(at.runs), at.target).map((one) => one.first.id).slice(0, 2).reverse(), ...at.runs.map((run) => run.id), ...model.runs.map((run) => run.id)];
  const first = model.byId.has(state.a) ? state.a : likely.find((id) => id !== state.b);
  const second = model.byId.has(state.b) ? state.b : likely.find((id) => id !== first);
  return [first, second];
}

function show({ verdict, chart, numbers, recipe }, found) {
  replace(recipe, h("h2", {}, "What differs in the recipes"), found.recipe.length
    ? table(["key", "A", "B"], found.recipe.map(([key, a, b]) => [key, a ?? "not there", b ?? "not there"]))
    : h("p", {}, "Nothing but names and folders."));
  const hashes = found.digests && table(["digest", "A", "B", ""], Object.entries(found.digests).map(([name, [a, b]]) =>
    [name, short12(a), short12(b), a !== b ? h("b", {}, "differs") : a == null ? h("b", {}, "not told") : "same"]));
  if (found.refused) {
    replace(verdict, h("h2", {}, "These two cannot be compared"), h("p", { class: "verdict no" }, found.refused), hashes);
    replace(numbers, h("h2", {}, "Numbers"), h("p", { class: "note" }, "Not shown, for they would not mean the same."));
    return chart.say("");
  }
  const all = Object.entries(found.targets).map(([target, metrics]) => ({ target, ...metrics.r2c, note: found.notes[target], mark: found.marks[target].r2c }));
  const changes = all.filter((one) => one.value != null);
  replace(verdict, h("h2", {}, "Which is better in r2c"), h("ul", {}, all.map((one) => h("li", {}, h("b", {}, one.target), `: ${judge(one)}`))),
    h("details", {}, h("summary", {}, "Same clips, view and normaliser"), hashes));
  replace(numbers, h("h2", {}, "Numbers on test"), h("div", { class: "tiles" }, Object.entries(found.targets).map(([target, metrics]) => h("div", {}, h("h3", {}, target),
    table(["metric", "A", "B", "B − A"], Object.entries(metrics).filter(([, at]) => at.a != null || at.b != null).map(numbersOf)),
    h("p", { class: "note" }, [found.notes[target], ...Object.entries(found.marks[target]).map(([name, why]) => `not to be trusted: ${name} (${why})`)].join("; "))))));
  drawChanges(chart, changes);
}

function numbersOf([name, at]) {
  const digits = name === "rank_recovery" ? 0 : 4; // a count
  const cells = [metricOption(name)[1], number(at.a, digits), number(at.b, digits), `${signed(at.value, digits)} ${between(at.low, at.high, digits)}`];
  return flatters(name) ? cells.map((cell) => h("td", { class: "faint" }, cell)) : cells;
}

const short12 = (text) => (text == null ? "not there" : String(text).slice(0, 12));

function judge({ value, low, high, note, mark }) {
  if (value == null) return note;
  if (mark) return `not told apart, ${signed(value, 4)}: ${mark}`;
  const by = `${signed(value, 4)} ${between(low, high, 4)}`;
  if (low == null) return `${by}: without an interval, nothing is shown`;
  return low > 0 ? `B is better, ${by}` : high < 0 ? `B is worse, ${by}` : `not told apart, ${by}`;
}

function drawChanges(chart, changes) {
  if (!changes.length) return chart.say("There is no r2c of both.");
  chart.height(90 + 44 * changes.length);
  const ends = changes.map((one) => [one.value, one.low ?? one.value, one.high ?? one.value]);
  const tint = (one, look) => (one.mark ? look.faint : one.low > 0 ? look.colours[0] : one.high < 0 ? look.colours[1] : look.faint);
  const draw = (look) => ({
    grid: { left: 150, right: 30, top: 16, bottom: 46 },
    xAxis: axis(look, "r2c of B − r2c of A", { type: "value" }),
    yAxis: axis(look, "", { type: "category", inverse: true, data: changes.map((one) => one.target), axisLabel: { color: look.text, width: 136, overflow: "truncate" } }),
    tooltip: tip(look, ({ dataIndex }) => [changes[dataIndex].target, judge(changes[dataIndex]), changes[dataIndex].note]),
    series: [
      whiskers("intervals", ends.map(([, low, high], at) => [low, at, high]), (at) => tint(changes[at], look)),
      { id: "values", type: "scatter", symbolSize: 12, data: changes.map((one, at) => ({ value: [one.value, at], itemStyle: { color: tint(one, look) } })),
        markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: look.text, type: "solid" }, data: [{ xAxis: 0 }] } },
    ],
  });
  chart.show(draw, () => [["teacher", "B minus A", "low", "high", "interval"], ...changes.map((one) => [one.target, one.value, one.low, one.high, one.note])],
    "Blue: B better, orange: B worse, grey: not told apart. 95% intervals, paired over groups of test clips.");
}
