// Elements out of plain values. Text is always text: nothing here, or anywhere on the page, reads markup from data.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false).map(asNode));
  return element;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

// Other children. What was opened stays open, and the keyboard's place is kept, where the same is there again.
export function replace(element, ...children) {
  const same = (a, b) => a.tagName === b.tagName && a.textContent === b.textContent && a.href === b.href;
  const open = [...element.querySelectorAll("details[open] > summary")];
  const place = element.contains(document.activeElement) && element !== document.activeElement ? document.activeElement : null;
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false).map(asNode));
  for (const summary of open.length ? element.querySelectorAll("details > summary") : []) {
    if (open.some((one) => same(one, summary))) summary.parentElement.open = true;
  }
  if (place && !place.isConnected) [...element.querySelectorAll(place.tagName)].find((one) => same(one, place))?.focus();
}

// fill(of, build): builds only where what it is built of is another than the last time. What is thrown away often, the
// browser keeps for long.
export function unlessSame() {
  let last = null;
  return (of, build) => {
    const now = JSON.stringify(of);
    if (now !== last) build();
    last = now;
  };
}

// A labelled <select>. It survives updates of the page: only other options are written anew, so focus stays.
export function select(label, choose) {
  const list = h("select", { "aria-label": label, onchange: () => choose(list.value) });
  const root = h("label", { class: "field" }, h("span", {}, label), list);
  const fill = unlessSame();
  return {
    root,
    // options: [value, text], and a class where there is one. The control hides where there is nothing to choose, unless it is always to be seen.
    fill(options, value, { always = false } = {}) {
      fill(options, () => replace(list, options.map(([key, text, kind]) => h("option", { value: key, class: kind }, text))));
      list.value = value ?? "";
      root.hidden = options.length < 2 && !always;
    },
  };
}

export function table(header, rows, attributes = {}) {
  const cells = (row, tag) => h("tr", {}, row.map((cell) => (cell instanceof HTMLTableCellElement ? cell : h(tag, {}, cell))));
  return h("table", attributes, h("thead", {}, cells(header, "th")), h("tbody", {}, rows.map((row) => cells(row, "td"))));
}

export function number(value, digits = 3) {
  return value == null ? "–" : value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
}

// 1500000 as 1.5 M; thousands in full.
export function amount(value, digits = 4) {
  const [size, unit] = [[1e12, " T"], [1e9, " G"], [1e6, " M"]].find(([least]) => value >= least) ?? [1, ""];
  return `${+(value / size).toPrecision(digits)}${unit}`;
}

export function signed(value, digits = 3) {
  return value == null ? "–" : (value < 0 ? "" : "+") + number(value, digits);
}

export function between(low, high, digits = 3) {
  return low == null || high == null ? "" : `[${number(low, digits)}, ${number(high, digits)}]`;
}

export function short(name, length = 28) {
  return name.length <= length ? name : `${name.slice(0, length - 1)}…`;
}

// The same for paths, of which the end tells more.
export function shortPath(name, length = 28) {
  return name.length <= length ? name : `…${name.slice(1 - length)}`;
}
