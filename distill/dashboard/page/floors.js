// Floors and references as lines of a chart.

import { number, short } from "./dom.js";

// Splits floors into those to draw and, in words, those too far from the points to be drawn on one axis with them.
export function nearAndFar(floors, points, { all = false } = {}) {
  const values = points.flatMap((one) => [one.value, one.low ?? one.value, one.high ?? one.value]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const near = floors.filter(({ value }) => all || (value > low - 2 * (high - low) && value < high + 2 * (high - low)));
  const far = floors.filter((one) => !near.includes(one)).map((one) => `${one.name} ${number(one.value)}`);
  return { near, far: far.length ? `; too far to be drawn: ${far.join(", ")}` : "" };
}

// Bounds of an axis on which both floors and points are to be seen.
export function reach(floors, points) {
  const values = [...floors, ...points].flatMap((one) => [one.value, one.low ?? one.value, one.high ?? one.value]);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const step = 10 ** Math.ceil(Math.log10(most - least || 1)) / 5;
  const alone = most === least ? 1 : 0; // a single value lies in the middle
  return { min: +((Math.floor(least / step) - alone) * step).toFixed(9), max: +((Math.ceil(most / step) + alone) * step).toFixed(9) };
}

// Floors whose lines would lie on each other share one label.
export function lineGroups(floors, points) {
  const { min, max } = reach(floors, points);
  const near = (max - min) / 22;
  const groups = [];
  for (const floor of floors.sort((a, b) => a.value - b.value)) {
    const last = groups.at(-1);
    if (last && floor.value - last.value < near) last.names.push(floor.name);
    else groups.push({ value: floor.value, names: [floor.name] });
  }
  return groups;
}

export function floorLines(look, groups) {
  return {
    silent: true, symbol: "none", precision: 9, lineStyle: { color: look.faint, type: "dashed", width: 1 },
    label: { position: "end", color: look.faint, fontSize: 11, lineHeight: 13, width: 108, overflow: "break", formatter: ({ data }) => data.text },
    data: groups.map((one) => ({ yAxis: one.value, text: one.names.map((name) => short(name, 16)).join(", ") })),
  };
}
