// The list of runs as pages need it: sets that can be compared, variants (a recipe in several seeds), and the best of
// every family. What is chosen is chosen on val; what is shown was measured on test.

export const METRICS = ["r2c", "r2", "cos_std", "cka", "nmse", "smooth_l1", "knn", "procrustes", "rank_recovery", "probe_agreement", "cosine"];
const FLATTERING = "cosine"; // rewards copying the mean: shown, but greyed
const LOWER = new Set(["nmse", "smooth_l1"]);
export const COSTS = { macs: "MACs a clip", parameters: "parameters", latency_ms: "ms a clip" };

const own = (object, name) => (object && Object.hasOwn(object, name) ? object[name] : undefined);
export const dig = (object, ...names) => names.reduce(own, object);
const mean = (values) => (values.length && !values.includes(undefined) && !values.includes(null)
  ? values.reduce((a, b) => a + b, 0) / values.length : null);
export const flatters = (name) => name.split(" / ").at(-1) === FLATTERING;
// What a selector shows of a metric, which may stand behind its split and target.
export const metricOption = (name) => (flatters(name) ? [name, `${name} (flatters)`, "faint"] : [name, name]);
export const better = (metric, a, b) => b == null || (a != null && (LOWER.has(metric) ? a < b : a > b));

export function buildModel(list) {
  const byId = new Map(list.runs.map((run) => [run.id, run]));
  const families = [...new Set(list.runs.map((run) => run.family ?? "unknown"))].sort();
  return { ...list, byId, families, familyAt: (run) => families.indexOf(run.family ?? "unknown") };
}

// What a page shows, out of the address, with what is missing or does not exist replaced by the first there is.
export function chosen(model, state) {
  const set = model.sets.find((one) => one.kinds.includes(state.set)) ?? model.sets[0];
  const targets = set?.targets ?? [];
  return {
    set: set?.id, targets,
    runs: set ? model.runs.filter((run) => run.set === set.id) : [],
    target: targets.includes(state.teacher) ? state.teacher : targets[0],
    metric: METRICS.includes(state.metric) ? state.metric : "r2c",
    cost: Object.hasOwn(COSTS, state.cost ?? "") ? state.cost : "macs",
  };
}

export const deprived = (run) => !["none", null, undefined].includes(dig(run, "deficiency", "kind"));

// Runs of one recipe in several seeds are one variant. A seed that comes again is not one more: it starts another.
export function variants(runs) {
  const found = [];
  for (const run of runs.filter((one) => one.targets && !deprived(one))) {
    const fits = ({ first, seeds }) => run.recipe && first.recipe === run.recipe && !seeds.some((one) => one.seed === run.seed);
    const known = found.find(fits);
    if (known) known.seeds.push(run);
    else found.push({ seeds: [run], family: run.family ?? "unknown", first: run });
  }
  return found;
}

export const onVal = (variant, target) => mean(variant.seeds.map((run) => dig(run, "chosen", "r2c", target)));

// A variant's number on test: the mean over seeds, and an interval that spans those of all.
export function measured(variant, target, metric) {
  const each = variant.seeds.map((run) => dig(run, "targets", target, metric));
  return { value: mean(each), ...span(variant.seeds.map((run) => dig(run, "intervals", target, metric) ?? [])) };
}

// Why a variant's numbers in a metric are not to be trusted, in any of its seeds: too few clips or groups.
export const markOf = (variant, target, metric) => variant.seeds.map((run) => dig(run, "marks", target, metric)).find(Boolean);

export function gained(variant, target) {
  const each = variant.seeds.map((run) => dig(run, "gain", target) ?? {});
  return { value: mean(each.map((one) => one.value)), ...span(each.map((one) => [one.low, one.high])) };
}

// Of how many pixels a shift of the teacher's view makes the same error, and in how many seeds (times) it is beyond the
// largest shift that was measured: then there is no mean.
export function equivalentPixels(variant, target) {
  const each = variant.seeds.map((run) => dig(run, "equivalent_pixels", target) ?? {});
  const beyond = each.map((one) => one.beyond).filter((one) => one != null);
  return { value: mean(each.map((one) => one.value)), beyond: beyond.length ? Math.max(...beyond) : null, times: beyond.length };
}

// (1 - R2) / (1 - R2 of Bayes), on an oracle.
export function regret(variant, target) {
  const each = variant.seeds.map((run) => dig(run, "regret", target) ?? {});
  return { value: mean(each.map((one) => one.value)), ...span(each.map((one) => [one.low, one.high])) };
}

function span(pairs) {
  const whole = pairs.length && pairs.every(([low, high]) => low != null && high != null);
  return whole ? { low: Math.min(...pairs.map(([low]) => low)), high: Math.max(...pairs.map(([, high]) => high)) } : {};
}

export const costOf = (variant, name) => mean(variant.seeds.map((run) => dig(run, "cost", name)));

// family -> its variant that is best on val for a target; without numbers from val the first there is.
export function bestOfFamilies(all, target) {
  const best = new Map();
  for (const variant of all.filter((one) => dig(one.first, "targets", target))) {
    const known = best.get(variant.family);
    if (!known || (onVal(variant, target) ?? -Infinity) > (onVal(known, target) ?? -Infinity)) best.set(variant.family, variant);
  }
  return best;
}

// The families of a target, the best on val first.
export function standings(all, target) {
  return [...bestOfFamilies(all, target).values()].sort((a, b) => (onVal(b, target) ?? -Infinity) - (onVal(a, target) ?? -Infinity));
}

// By how much a variant is above a floor, paired, where every seed says it; else null.
export function aboveFloor(variant, name, target) {
  const each = variant.seeds.map((run) => dig(run, "above", name, target) ?? (name === "ridge" ? dig(run, "gain", target) : null));
  return each.every((one) => one?.value != null) ? { value: mean(each.map((one) => one.value)), ...span(each.map((one) => [one.low, one.high])) } : null;
}

// Floors and references that are made for their converter: another's say nothing of this one.
const MATCHED = new Set(["mlp", "skip", "large", "shuffled_converter"]);

// floor or reference -> its number beside a variant: the mean over its seeds, or that of the first run that has it. A twin
// is neither.
export function floorsOf(variant, runs, target, metric) {
  const found = new Map();
  for (const kind of ["floors", "references"]) {
    for (const run of [...variant.seeds, ...runs.filter((one) => !deprived(one))]) {
      for (const name of Object.keys(run[kind] ?? {})) {
        const value = MATCHED.has(name) && !variant.seeds.includes(run) ? null : dig(run, kind, name, target, metric);
        const ofAll = mean(variant.seeds.map((one) => dig(one, kind, name, target, metric)));
        if (value != null && name !== "twin" && !found.has(name)) found.set(name, { name, value: ofAll ?? value, kind });
      }
    }
  }
  return found;
}

// By how much the best is ahead of the next: paired where a contest trained both, else the bare difference.
export function leadOver(best, next, target) {
  const pairs = best.seeds.map((run) => {
    const rival = next.seeds.find((one) => one.seed === run.seed && folder(one) === folder(run));
    return rival && dig(run, "lead", rival.name.split("/").at(-1), target);
  });
  if (pairs.length && pairs.every(Boolean)) {
    return { value: mean(pairs.map((one) => one.value)), ...span(pairs.map((one) => [one.low, one.high])), paired: true };
  }
  const [ours, theirs] = [best, next].map((one) => measured(one, target, "r2c").value);
  return { value: ours == null || theirs == null ? null : ours - theirs, paired: false };
}

const folder = (run) => run.name.split("/").slice(0, -1).join("/");
