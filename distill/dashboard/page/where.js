// Where a converter is wrong: by place and time, by channel, by clip; and pictures of its tokens.

import { axis, card, save, tip } from "./card.js";
import { bytesOf, get } from "./data.js";
import { h, number, replace, select, table } from "./dom.js";
import { change } from "./state.js";

const ACROSS = 8; // frames in a row
const ROWS = [["thumbnails", "frames"], ["student", "student, by ridge"], ["converted", "converted"], ["teacher", "teacher"]];

export function mountWhere(main) {
  const run = select("run", (value) => change({ run: value }));
  const teacher = select("teacher", (value) => change({ teacher: value }));
  const candidate = select("errors of", (value) => change({ of: value }));
  const clip = select("clip", (value) => change({ clip: value }));
  const missing = h("section", { class: "card wide" });
  const places = card("r2c by place and frame", { height: 300, wide: true });
  const channels = card("Channels by r2c");
  const clips = h("section", { class: "card" });
  const pictures = h("section", { class: "card wide" });
  const parts = [places.root, channels.root, clips, pictures];
  replace(main, h("div", { class: "controls" }, run.root, teacher.root, candidate.root, clip.root), h("div", { class: "grid" }, missing, parts));
  let turn = 0;

  return async (model, state) => {
    const mine = ++turn;
    const id = model.byId.has(state.run) ? state.run : (model.runs.find((one) => one.where) ?? model.runs[0])?.id;
    const at = model.byId.get(id);
    run.fill(model.runs.map((one) => [one.id, `${one.name}${one.where ? "" : " (not written)"}`]), id, { always: true });
    const { targets = {}, problem } = (id && (await get(`runs/${id}/where`, String(at.stamp)))) ?? {};
    const names = Object.keys(targets);
    const target = names.includes(state.teacher) ? state.teacher : names[0];
    const among = target === undefined ? [] : targets[target];
    const of = among.includes(state.of) ? state.of : among[0];
    const path = `runs/${id}/where/${names.indexOf(target)}`;
    const answers = of === undefined ? [] : await Promise.all([`${path}/${among.indexOf(of)}`, path].map((one) => get(one, String(at.stamp))));
    const found = answers.length ? { ...answers[0], pictures: answers[1]?.pictures ?? [], problem: answers[0]?.problem ?? answers[1]?.problem } : null;
    if (mine !== turn) return;
    teacher.fill(names.map((name) => [name, name]), target);
    candidate.fill(among.map((name) => [name, name]), of);
    missing.hidden = Boolean(found && !found.problem);
    parts.forEach((part) => { part.hidden = !missing.hidden; });
    if (!missing.hidden) {
      clip.root.hidden = true;
      const why = problem ?? found?.problem;
      return replace(missing, h("h2", {}, why ? "The file is damaged" : "This run has not written it"), h("p", {}, why
        ?? `${at?.name ?? "There is no run"}: no where.json in its folder. A run writes it when it is evaluated, at its end; docs/metrics.md says what it holds.`));
    }
    const what = `${target}, ${of}`;
    showPlaces(places, found, what);
    showChannels(channels, found, what);
    replace(clips, h("h2", {}, `Clips by r2c: ${what}`), h("div", { class: "clips" }, clipTable("worst", found), clipTable("best", found)),
      h("p", { class: "note" }, `Of ${found.clips.of} test clips.${aboutPictures(found, of)}`));
    clip.fill(found.pictures.map((one, place) => [String(place), `${one.key}${one.label && `, ${one.label}`}, r2c ${number(one.r2c)}`]), String(pictureAt(found, state)));
    showPictures(pictures, found, pictureAt(found, state));
  };
}

// The clip of the address, else the best.
const pictureAt = (found, state) => (found.pictures[state.clip] ? Number(state.clip) : found.pictures.length - 1);

function clipTable(which, found) {
  return h("div", {}, h("h3", {}, which), table(["clip", "label", "r2c"], found.clips[which].map((one) => {
    const pictured = found.pictures.findIndex((picture) => picture.key === one.key);
    const name = pictured < 0 ? one.key : h("button", { type: "button", title: "show its pictures", onclick: () => change({ clip: String(pictured) }) }, one.key);
    return [h("td", {}, thumbnail(found.pictures[pictured]), name), h("td", {}, one.label), number(one.r2c)];
  })));
}

function aboutPictures({ main, pictures }, of) {
  if (!pictures.length) return "";
  return main ? " A click shows a clip's pictures." : ` Pictures there are of the converter's worst and best alone, and these are those of ${of}: some may have none.`;
}

function thumbnail(picture) {
  if (!picture?.thumbnails) return null;
  const { shape: [, height, width], bytes } = picture.thumbnails;
  return paint({ shape: [height, width, 3], bytes }, 32); // the first frame
}

// --- r2c by place, the frames side by side

function showPlaces(places, { grid, positions, special }, target) {
  const extra = Object.entries(special).map(([name, value]) => `${name} ${number(value)}`);
  places.title(`r2c by place, a square for each frame of tokens: ${target}`);
  if (!grid.length) return places.say(`This target has no grid${extra.length ? `: ${extra.join(", ")}` : ""}.`);
  const [t, height, width] = grid;
  const across = Math.min(t, ACROSS), down = Math.ceil(t / across);
  const cells = positions.map((value, at) => {
    const [frame, y, x] = [Math.floor(at / (height * width)), Math.floor(at / width) % height, at % width];
    return { frame, y, x, value, column: (frame % across) * (width + 1) + x, line: Math.floor(frame / across) * (height + 1) + y };
  });
  const known = cells.map((cell) => cell.value).filter((value) => value != null);
  const middling = (Math.min(...known) + Math.max(...known)) / 2; // a range of less than 0.02 is spread no further
  const low = Math.min(...known, middling - 0.01), high = Math.max(...known, middling + 0.01);
  const columns = [...Array(across * (width + 1) - 1).keys()], lines = [...Array(down * (height + 1) - 1).keys()];
  const side = Math.min(28, (places.width() - 120) / columns.length);
  places.height(40 + lines.length * side);
  const middle = Math.floor(width / 2);
  const draw = (look) => ({
    grid: { left: 4, top: 24, width: columns.length * side, height: lines.length * side },
    xAxis: axis(look, "", { type: "category", position: "top", data: columns, splitLine: { show: false }, axisLine: { show: false },
      axisLabel: { color: look.faint, interval: (at) => at % (width + 1) === middle, formatter: (at) => `frame ${inColumn(Math.floor(at / (width + 1)), across, t)}` } }),
    yAxis: axis(look, "", { type: "category", inverse: true, data: lines, splitLine: { show: false }, axisLine: { show: false }, axisLabel: { show: false } }),
    visualMap: { min: low, max: high, calculable: false, left: columns.length * side + 24, top: 24, itemHeight: 90, textStyle: { color: look.faint }, precision: 2, text: [number(high, 2), number(low, 2)], inRange: { color: look.amounts } },
    tooltip: tip(look, ({ data: { cell } }) => [`frame ${cell.frame + 1}, row ${cell.y + 1}, column ${cell.x + 1}`, `r2c ${number(cell.value)}`]),
    series: [{ id: "places", type: "heatmap", progressive: 0, data: cells.map((cell) => ({ cell, value: [cell.column, cell.line, cell.value ?? "-"] })) }],
  });
  places.show(draw, () => [["frame", "row", "column", "r2c"], ...cells.map((cell) => [cell.frame + 1, cell.y + 1, cell.x + 1, cell.value])],
    [`Bright: well converted; the colours span what there is, ${number(low, 2)} to ${number(high, 2)}.${down > 1 ? ` ${across} frames a row, in their order.` : ""}`, ...(extra.length ? [`Special tokens: ${extra.join(", ")}.`] : [])].join(" "));
}

const inColumn = (first, across, t) => Array.from({ length: Math.ceil((t - first) / across) }, (_, at) => first + at * across + 1).join(", ");

function showChannels(channels, { channels: { counts, bounds, below } }, target) {
  const bars = counts.map((count, at) => [(bounds[at] + bounds[at + 1]) / 2, count]);
  channels.title(`Channels by r2c: ${target}`);
  const draw = (look) => ({
    grid: { left: 50, right: 16, top: 16, bottom: 46 },
    xAxis: axis(look, "r2c of a channel", { type: "value", min: bounds[0], max: bounds.at(-1), axisLabel: { color: look.faint, formatter: (value) => value.toFixed(bounds.at(-1) - bounds[0] < 0.1 ? 3 : 2), hideOverlap: true } }),
    yAxis: axis(look, "channels", { type: "value", nameGap: 34, minInterval: 1 }),
    tooltip: tip(look, ({ dataIndex }) => [`r2c ${number(bounds[dataIndex])} to ${number(bounds[dataIndex + 1])}`, `${counts[dataIndex]} channels`]),
    series: [{ id: "channels", type: "bar", barWidth: "96%", data: bars, itemStyle: { color: look.colours[0] } }],
  });
  channels.show(draw, () => [["from", "to", "channels"], ...counts.map((count, at) => [bounds[at], bounds[at + 1], count])], below ? `${below} channels lie below −1 and are not drawn.` : "");
}

// --- pictures: principal components of tokens as red, green and blue, frames in a row

function showPictures(root, { pictures, shares }, at) {
  const picture = pictures[at];
  if (!picture) return replace(root, h("h2", {}, "Pictures of tokens"), h("p", { class: "note" }, "This run has none of this target: it is pooled, or nothing of it can be shown."));
  const shown = ROWS.filter(([name]) => picture[name]);
  const strips = new Map(shown.map(([name]) => [name, paint(picture[name], 96)]));
  const title = picture.teacher ? `Tokens of ${picture.key} as colours: three principal components` : `Frames of ${picture.key}: the tokens are pooled, and have no picture`;
  replace(root, h("div", { class: "head" }, h("h2", {}, title),
    h("div", { class: "tools" }, h("button", { type: "button", onclick: () => together(strips).toBlob((blob) => save(`tokens ${picture.key}.png`, blob)) }, "PNG"),
      h("button", { type: "button", onclick: () => save(`tokens ${picture.key}.csv`, new Blob([coloursOf(picture, shown)], { type: "text/csv" })) }, "CSV"))),
  h("div", { class: "pictures" }, shown.flatMap(([name, label]) => [h("span", {}, label), strips.get(name)])),
  h("p", { class: "note" }, !picture.teacher ? "" : "Converted and teacher's tokens, and what ridge makes of the student's, on one basis: the same colour means the same, grey the average at that place. ",
    shares?.length ? `The three directions hold ${shares.map((share) => `${(100 * share).toFixed(0)}%`).join(", ")} of the teacher's variance. ` : "", "Frames run from left to right."));
}

// A canvas of an image (h w 3) or of frames (t h w 3) in a row, `high` pixels high on the page.
function paint(image, high) {
  const [height, width] = image.shape.slice(-3);
  const frames = image.shape.length > 3 ? image.shape[0] : 1;
  const gap = frames > 1 ? 2 : 0, across = Math.round((high * width) / height);
  const canvas = h("canvas", { width: frames * (across + gap) - gap, height: high });
  const one = h("canvas", { width, height });
  const [context, small] = [canvas, one].map((at) => at.getContext("2d")), bytes = bytesOf(image.bytes);
  context.imageSmoothingEnabled = false;
  for (let frame = 0; frame < frames; frame++) {
    const pixels = small.createImageData(width, height);
    pixels.data.fill(255); // opaque
    for (let at = 0, from = 3 * frame * width * height; at < width * height; at++) {
      for (let channel = 0; channel < 3; channel++) pixels.data[4 * at + channel] = bytes[from++];
    }
    small.putImageData(pixels, 0, 0);
    context.drawImage(one, frame * (across + gap), 0, across, high);
  }
  return canvas;
}

function together(strips) {
  const scale = 2, all = [...strips.values()];
  const canvas = h("canvas", { width: scale * Math.max(...all.map((one) => one.width)), height: scale * all.reduce((sum, one) => sum + one.height + 3, 0) });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  let y = 0;
  for (const one of all) {
    context.drawImage(one, 0, y, one.width * scale, one.height * scale);
    y += (one.height + 3) * scale;
  }
  return canvas;
}

function coloursOf(picture, shown) {
  const rows = shown.flatMap(([name]) => {
    const bytes = bytesOf(picture[name].bytes);
    return Array.from({ length: bytes.length / 3 }, (_, at) => `${name},${at},${bytes.subarray(3 * at, 3 * at + 3).join(",")}`);
  });
  return ["tokens,number,red,green,blue", ...rows].join("\n");
}
