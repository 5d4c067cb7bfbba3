// Whether a number can be believed: no, with care, or yes, and why.

import { h } from "./dom.js";
import { aboveFloor, dig, floorsOf, leadOver, markOf, measured } from "./runs.js";

const NEEDED = ["ridge", "pixels", "mlp", "shuffled"]; // floors without which nothing is believed but with care
const LEAK = 0.05; // r2c that a control on wrong pairs may reach
const ALONE = 0.9; // share of the number that pixels may reach

export function verdict(best, next, runs, target) {
  const found = { ...doubts(best, next, runs, target) };
  if (found.no.length) return say("no", "✕ no", found.no.join("; "));
  if (found.care.length) return say("care", "! with care", found.care.join("; "));
  const { paired, bare } = found;
  const floors = [paired.length ? `paired, above ${paired.join(", ")}` : null, bare.length ? `by the bare numbers, above ${bare.join(", ")}` : null];
  return say("yes", "✓ yes", [...floors, next ? `paired, ahead of ${next.family}` : null, `${best.seeds.length} seeds`].filter(Boolean).join("; "));
}

function say(kind, word, why) {
  return h("span", { class: `verdict ${kind}` }, h("b", {}, word), `: ${why}`);
}

// Reasons not to believe a number (no), or only with care, and the floors that it is above: paired, and by bare numbers.
function doubts(best, next, runs, target) {
  const [no, care, paired, bare] = [[], [], [], []];
  const { value } = measured(best, target, "r2c");
  const floors = new Map([...floorsOf(best, runs, target, "r2c")].filter(([, floor]) => floor.kind === "floors"));
  const at = (name) => floors.get(name)?.value ?? null;
  const anySeed = (read) => best.seeds.map(read).find(Boolean);
  if (value == null) return { no: ["not every seed has an r2c"], care, paired, bare };
  const mark = markOf(best, target, "r2c");
  if (mark) no.push(mark);
  if (anySeed((run) => run.weights === "standin")) no.push("stand-in backbones: this shows machinery only");
  if (Math.abs(at("shuffled")) > LEAK) no.push(`shuffled control is ${at("shuffled").toFixed(2)}: something leaks`);
  if (at("shuffled_converter") > LEAK) no.push(`the converter on wrong pairs reaches ${at("shuffled_converter").toFixed(2)}: something leaks`);
  if (at("pixels") != null && at("pixels") > ALONE * value) no.push(`pixels alone reach ${at("pixels").toFixed(2)}`);
  for (const name of new Set(["ridge", ...floors.keys()])) {
    const gap = aboveFloor(best, name, target);
    if (gap) (gap.low > 0 ? paired : no).push(gap.low > 0 ? name : `not shown to be above ${name}, paired`);
    else if (at(name) != null) (value > at(name) ? bare : no).push(value > at(name) ? name : `not above ${name}`);
  }
  for (const name of NEEDED) if (at(name) == null && !paired.includes(name)) care.push(`no ${name} floor`);
  if (!paired.includes("ridge") && bare.includes("ridge")) care.push("above ridge by the bare numbers alone");
  if (best.seeds.length < 3) care.push(`${best.seeds.length} seed${best.seeds.length > 1 ? "s" : ""}`);
  const refused = anySeed((run) => dig(run, "clips", "refused"));
  if (refused) care.push(`${refused} clips refused`);
  const lead = next && leadOver(best, next, target);
  if (lead && !(lead.paired && lead.low > 0)) care.push(`not shown to be ahead of ${next.family}`);
  return { no, care, paired, bare };
}
