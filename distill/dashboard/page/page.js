// The frame: which page is shown, the list of runs kept up to date, and the keyboard. Every page is a module that
// builds its elements once (mount) and returns a function that shows a list of runs in a state.

import { forgetCards } from "./card.js";
import { mountCompare } from "./compare.js";
import { mountCurves, zoomBy } from "./curves.js";
import { exported, watch } from "./data.js";
import { mountDeficiency } from "./deficiency.js";
import { h, replace } from "./dom.js";
import { mountOverview } from "./overview.js";
import { buildModel, chosen } from "./runs.js";
import { change, currentState, linkTo } from "./state.js";
import { mountWhere } from "./where.js";

const PAGES = {
  overview: { title: "Overview", about: "which converter, for which teacher, at what cost", mount: mountOverview },
  curves: { title: "Curves", about: "how training went", mount: mountCurves },
  where: { title: "Where", about: "where a converter is wrong", mount: mountWhere },
  deficiency: { title: "Deficiency", about: "what was taken on purpose, and won back", mount: mountDeficiency },
  compare: { title: "Compare", about: "run B minus run A", mount: mountCompare },
};
const ALONG = ["set", "teacher"]; // what goes along from page to page
const KEYS = [["1 … 5", "the pages, in order"], ["[ and ]", "teacher before, teacher after"], ["/", "filter runs (Curves)"], ["+ and -", "nearer, farther (Curves)"], ["?", "this list"], ["Esc", "close it"]];

const main = document.querySelector("main");
const status = document.querySelector("#status");
const dialog = document.querySelector("dialog");
let model = null, shown = null, update = null;

function render() {
  const state = currentState();
  const page = PAGES[state.page] ? state.page : "overview";
  const kept = Object.fromEntries(ALONG.map((name) => [name, state[name]]));
  replace(document.querySelector("nav"), Object.entries(PAGES).map(([name, { title, about }], at) =>
    h("a", { href: linkTo({ page: name, ...kept }), title: `${about} (${at + 1})`, "aria-current": name === page ? "page" : null }, title)));
  if (!model) return;
  if (page !== shown) {
    forgetCards();
    update = PAGES[page].mount(main);
    shown = page;
    document.title = `${PAGES[page].title}: converters, beside their floors`;
  }
  Promise.resolve(update(model, state)).catch(complain);
}

function complain(error) {
  status.className = "lost";
  replace(status, `${error.message}: what is shown may be old`);
}

function received(list) {
  model = buildModel(list);
  const running = list.runs.filter((run) => run.state === "running").length;
  status.className = "";
  replace(status, `${list.runs.length} run${list.runs.length === 1 ? "" : "s"}${running ? `, ${running} running` : ""}, ${exported ? `exported ${exported}` : "live"}`);
  render();
}

function otherTeacher(by) {
  const state = currentState();
  if (!model) return;
  const { targets } = chosen(model, state);
  const at = Math.max(0, targets.indexOf(state.teacher)) + by;
  if (targets.length) change({ teacher: targets[(at + targets.length) % targets.length] });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const name = Object.keys(PAGES)[Number(event.key) - 1];
  const state = currentState();
  if (name) location.hash = linkTo({ page: name, ...Object.fromEntries(ALONG.map((key) => [key, state[key]])) });
  else if (event.key === "[") otherTeacher(-1);
  else if (event.key === "]") otherTeacher(1);
  else if (shown === "curves" && ["+", "-"].includes(event.key)) zoomBy(event.key === "+" ? 2 : 0.5, state);
  else if (event.key === "?") dialog.showModal();
  else if (event.key === "/" && document.querySelector("#filter")) {
    event.preventDefault();
    document.querySelector("#filter").focus();
  }
});
document.querySelector("#help").addEventListener("click", () => dialog.showModal());
replace(dialog, h("h2", {}, "Keys"), h("dl", {}, KEYS.flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)])),
  h("form", { method: "dialog" }, h("button", {}, "Close")));
window.addEventListener("hashchange", render);
render();
watch(received, complain);
