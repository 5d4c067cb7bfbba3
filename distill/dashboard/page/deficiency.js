// What was taken from a converter on purpose, what that cost, and what a residual from the student won back.

import { axis, card, tip, whiskers } from "./card.js";
import { get } from "./data.js";
import { between, h, number, replace, select, short, signed, table } from "./dom.js";
import { chosen, dig } from "./runs.js";
import { change } from "./state.js";
import { colour, dash, shape } from "./theme.js";

const READ = 24; // runs whose summaries are read
const PLAIN = 8; // where no run is deprived: those whose rank recovery is shown
const ALARMING = ["converted", "student", "student_rank", "converted_pca", "converted_supervised", "teacher"]; // no control

export function mountDeficiency(main) {
  const set = select("clips and view", (value) => change({ set: value }));
  const teacher = select("teacher", (value) => change({ teacher: value }));
  const task = select("task", (value) => change({ task: value }));
  const labels = select("labels of a class", (value) => change({ labels: value }));
  const arms = h("section", { class: "card wide" });
  const dials = card("Dial against r2c");
  const rank = card("Rank recovery");
  const heads = card("Accuracy with and without the residual", { wide: true });
  const alarms = h("section", { class: "card wide" });
  replace(main, h("div", { class: "controls" }, set.root, teacher.root, task.root, labels.root),
    h("div", { class: "grid" }, arms, dials.root, rank.root, heads.root, alarms));
  let turn = 0;

  return async (model, state) => {
    const mine = ++turn;
    const at = chosen(model, state);
    const looked = (one, target) => dig(one.summary, "deficiency", "targets", target) ?? dig(one.summary, "head", target) ?? recovery(one, target);
    const deprived = at.runs.filter((run) => dig(run, "deficiency", "kind") || run.head);
    const wanted = deprived.length ? deprived.slice(0, READ) : at.runs.slice(0, PLAIN);
    const found = await Promise.all(wanted.map(async (run) => ({ run, ...(await get(`runs/${run.id}`, String(run.stamp))) })));
    if (mine !== turn) return;
    const targets = at.targets.filter((target) => found.some((one) => looked(one, target)));
    at.target = targets.includes(state.teacher) ? state.teacher : targets[0] ?? at.target;
    const full = found.filter((one) => dig(one.summary, "targets", at.target)).sort((a, b) => whole(b) - whole(a) || byDial(a, b));
    set.fill(model.sets.map((one, number) => [one.id, `${number + 1}: ${one.runs} runs`]), at.set);
    teacher.fill(targets.map((name) => [name, name]), at.target);
    const measured = full.filter((one) => dig(one.summary, "deficiency", "targets", at.target));
    showArms(arms, measured, at.target, Math.max(0, deprived.length - READ));
    showDials(dials, model, measured, at.target);
    showRank(rank, measured.length ? measured : full, at.target);
    const withHead = full.filter((one) => dig(one.summary, "head", at.target));
    const tasks = [...new Set(withHead.flatMap((one) => Object.keys(one.summary.head[at.target])))];
    const which = tasks.includes(state.task) ? state.task : tasks[0];
    const budgets = [...new Set(withHead.flatMap((one) => Object.keys(dig(one.summary.head, at.target, which) ?? {})))];
    const budget = budgets.includes(state.labels) ? state.labels : budgets.at(-1);
    task.fill(tasks.map((name) => [name, name]), which);
    labels.fill(budgets.map((name) => [name, name]), budget);
    showHeads(heads, withHead, { target: at.target, task: which, budget });
    showAlarms(alarms, withHead, { target: at.target, task: which, budget });
  };
}

const about = (one) => one.summary.deficiency ?? {};
const name = (one) => one.run.name.split("/").at(-1);
const recovery = (one, target) => dig(about(one), "targets", target, "rank_recovery") ?? dig(one.summary, "rank_recovery", target);
const byDial = (a, b) => (about(a).kind ?? "").localeCompare(about(b).kind ?? "") || (about(a).strength ?? 0) - (about(b).strength ?? 0);
const whole = (one) => [undefined, "none"].includes(about(one).kind);

// --- every arm beside its twin

function showArms(root, full, target, unread) {
  if (!full.length) {
    return replace(root, h("h2", {}, "No run of this set was deprived of anything"), h("p", { class: "note" }, "recipe=deficiency_miniature makes such runs."));
  }
  const rows = full.map((one) => {
    const left = about(one).targets[target];
    const from = dig(about(one), "from_twin", target) ?? {};
    return [name(one), `${about(one).kind} ${about(one).strength || ""}`, number(dig(one.summary, "targets", target, "r2c")),
      from.r2c ? `${signed(from.r2c.value)} ${between(from.r2c.low, from.r2c.high)}` : "the twin", left.mask ? `${number(left.mask.on)} ±${number(left.mask.deviation)}` : "–",
      dig(left, "rank_recovery", "k") ?? "–", number(dig(left, "effective_rank", "converted"), 1), number(dig(left, "jacobian", "value"))];
  });
  const teacher = dig(about(full[0]), "targets", target, "effective_rank", "teacher");
  replace(root, h("h2", {}, `What a deficiency left: ${target}`),
    table(["run", "deficiency", "r2c", "from its twin, paired", "r2c with the mask on", "k*", "effective rank", "|J|² / variance"], rows),
    h("p", { class: "note" }, `k*: components of the teacher with R2 above 0.5. The teacher's effective rank is ${number(teacher, 1)}. The twin is the same converter, deprived of nothing.${unread ? ` ${unread} more runs are not read: the first ${READ} by name are shown.` : ""}`));
}

// --- dial against r2c, a line for each kind

function showDials(dials, model, full, target) {
  const kinds = [...new Set(full.filter((one) => !whole(one)).map((one) => about(one).kind))];
  if (!kinds.length) return dials.say("No run of this set has a dial.");
  const points = kinds.map((kind) => full.filter((one) => about(one).kind === kind).map((one) => ({
    one, x: about(one).strength, y: dig(one.summary, "targets", target, "r2c"), masked: dig(about(one), "targets", target, "mask", "on"),
  })).filter((point) => point.x > 0));
  const twins = full.filter(whole).map((one) => ({ name: name(one), run: one.run.name, y: dig(one.summary, "targets", target, "r2c") }));
  const masked = points.map((line) => line.filter((point) => point.masked != null));
  const line = (id, label, data, at, look, type, named) => ({
    id, name: label, type: "line", data, symbol: shape(at), symbolSize: 9, itemStyle: { color: colour(at, look) }, lineStyle: { color: colour(at, look), type },
    endLabel: { show: named, formatter: label, color: look.text }, labelLayout: { moveOverlap: "shiftY" },
  });
  const draw = (look) => ({
    grid: { left: 60, right: 140, top: 20, bottom: 46 },
    xAxis: axis(look, "strength of the dial", { type: "log" }),
    yAxis: axis(look, "r2c on test", { type: "value", scale: true, nameGap: 40 }),
    tooltip: tip(look, (at) => [at.seriesName, `strength ${at.value[0]}`, `r2c ${number(at.value[1], 4)}`]),
    series: [
      ...kinds.map((kind, at) => line(kind, kind, points[at].map((p) => [p.x, p.y]), at, look, "solid", true)),
      ...kinds.map((kind, at) => line(`${kind} masked`, `${kind}, mask on`, masked[at].map((p) => [p.x, p.masked]), at, look, "dotted", false)).filter((one) => one.data.length),
      { id: "twins", type: "line", data: [], markLine: { silent: true, symbol: "none", precision: 9, lineStyle: { color: look.faint, type: "dashed" },
        label: { position: "insideStartTop", color: look.faint, formatter: ({ data }) => data.text }, data: twins.map((twin) => ({ yAxis: twin.y, text: `twin ${twin.name}` })) } },
    ],
  });
  dials.title(`Dial against r2c: ${target}`);
  dials.show(draw, () => [["kind", "run", "strength", "r2c", "r2c with the mask on"], ...points.flatMap((line, at) => line.map((p) => [kinds[at], p.one.run.name, p.x, p.y, p.masked])), ...twins.map((twin) => ["twin", twin.run, null, twin.y])],
    `Strengths of different kinds are not the same amount. Dashed: the twin.${masked.some((line) => line.length) ? " Dotted: with the mask on." : ""}`);
}

// --- R2 of the teacher's components

function showRank(rank, full, target) {
  const lines = full.map((one) => ({ one, r2: dig(recovery(one, target), "r2") ?? [], k: dig(recovery(one, target), "k") })).filter((line) => line.r2.length);
  if (!lines.length) return rank.say("No run of this set has measured it.");
  const draw = (look) => ({
    grid: { left: 60, right: 120, top: 20, bottom: 46 },
    legend: { orient: "vertical", right: 0, top: 14, icon: "path://M0 0h24v3H0z", itemHeight: 3, formatter: (text) => short(text, 12), textStyle: { color: look.text } },
    xAxis: axis(look, "component of the teacher", { type: "value", min: 1, max: "dataMax" }),
    yAxis: axis(look, "R2", { type: "value", max: 1, min: -0.2, nameGap: 40 }),
    tooltip: tip(look, (at) => [`component ${at[0].value[0]}`, ...at.map((one) => `${one.seriesName} ${number(one.value[1])}`)], { trigger: "axis" }),
    series: lines.map(({ one, r2 }, at) => ({
      id: one.run.id, name: name(one), type: "line", showSymbol: false, data: r2.map((value, i) => [i + 1, value]),
      lineStyle: { color: colour(at, look), type: dash(at) }, itemStyle: { color: colour(at, look) },
      markLine: at ? undefined : { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: look.faint, type: "dashed" }, data: [{ yAxis: 0.5 }] },
    })),
  });
  rank.title(`Rank recovery: ${target}`);
  rank.show(draw, () => [["run", "component", "R2"], ...lines.flatMap(({ one, r2 }) => r2.map((value, i) => [one.run.name, i + 1, value]))],
    `k*, components above 0.5: ${lines.map(({ one, k }) => `${name(one)} ${k}`).join(", ")}.`);
}

// --- heads

function showHeads(heads, full, { target, task, budget }) {
  const arms = full.map((one) => ({ one, arms: dig(one.summary.head, target, task, budget) })).filter((at) => at.arms);
  if (!arms.length) return heads.say("No run of this set fitted heads (head.tasks=[...] in the recipe).");
  const rows = arms.flatMap(({ one, arms }) => [["converted", "alone"], ["converted_supervised", "+ residual"]].map(([arm, label]) => ({
    label: `${short(name(one), 14)} ${label}`, arm, ...dig(arms, arm, "accuracy"), alarms: dig(arms, arm, "alarms") ?? [], difference: dig(arms, arm, "difference"),
  }))).filter((row) => row.value != null);
  const lines = [["chance", dig(arms[0].arms, "converted", "chance")], ["student", dig(arms[0].arms, "student", "accuracy", "value")], ["teacher", dig(arms[0].arms, "teacher", "accuracy", "value")]];
  heads.title(`Accuracy of ${task} from tokens converted to ${target}, with and without the residual`);
  heads.height(80 + rows.length * 24);
  const tint = (row, look) => look.colours[row.arm === "converted" ? 1 : 0];
  const draw = (look) => ({
    grid: { left: 170, right: 40, top: 40, bottom: 44 },
    xAxis: axis(look, "accuracy on test", { type: "value", min: 0, max: 1 }),
    yAxis: axis(look, "", { type: "category", inverse: true, data: rows.map((row) => row.label), axisLabel: { color: look.text, interval: 0 } }),
    tooltip: tip(look, ({ dataIndex }) => [rows[dataIndex].label, `${number(rows[dataIndex].value)} ${between(rows[dataIndex].low, rows[dataIndex].high)}`, ...rows[dataIndex].alarms]),
    series: [
      whiskers("intervals", rows.map((row, at) => [row.low, at, row.high]), (at) => tint(rows[at], look)),
      { id: "values", type: "scatter", symbolSize: 11, data: rows.map((row, at) => ({ value: [row.value, at], symbol: row.arm === "converted" ? "circle" : "diamond", itemStyle: { color: tint(row, look) } })),
        markLine: { silent: true, symbol: "none", precision: 9, lineStyle: { color: look.faint, type: "dashed" }, label: { position: "start", color: look.faint, formatter: ({ data }) => data.text },
          data: lines.filter(([, x]) => x != null).map(([text, x], at) => ({ xAxis: x, text, label: { distance: [0, 4 + 14 * (at % 2)] } })) } },
    ],
  });
  heads.show(draw, () => [["run", "arm", "accuracy", "low", "high", "gained", "gained, low", "gained, high"],
    ...rows.map((row) => [row.label, row.arm, row.value, row.low, row.high, row.difference?.value, row.difference?.low, row.difference?.high]),
    ...lines.filter(([, x]) => x != null).map(([text, x]) => [name(arms[0].one), text, x])],
  `Circle: converted tokens alone. Diamond: with a residual from the student. Gained, paired: ${rows.filter((row) => row.arm !== "converted").map((row) =>
    `${row.label.replace(" + residual", "")} ${signed(row.difference?.value)} ${between(row.difference?.low, row.difference?.high)}`).join("; ")}.`);
}

function showAlarms(root, full, { target, task, budget }) {
  const found = full.flatMap((one) => Object.entries(one.summary.head[target]).flatMap(([of, budgets]) => Object.entries(budgets).flatMap(([labels, arms]) =>
    ALARMING.flatMap((arm) => (dig(arms, arm, "alarms") ?? []).map((text) => ({ here: of === task && labels === budget, text: `${name(one)}, ${of}, ${labels} labels, ${arm}: ${text}` }))))));
  const list = (alarms) => h("ul", { class: "problems" }, alarms.map(({ text }) => h("li", {}, text)));
  const [here, rest] = [found.filter((one) => one.here), found.filter((one) => !one.here)];
  root.hidden = !full.length;
  replace(root, h("h2", {}, `Alarms of gates: ${here.length} of ${task}, ${found.length} in all`), here.length ? list(here) : h("p", { class: "note" }, "These heads read both of their inputs."),
    rest.length ? h("details", {}, h("summary", {}, "Other tasks and numbers of labels"), list(rest)) : null);
}
