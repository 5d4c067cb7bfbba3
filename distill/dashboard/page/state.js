// What is shown stands in the address, behind the #: any state can be linked to, and the browser's back works.

export function currentState() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { ...Object.fromEntries(new URLSearchParams(query)), page: path || "overview" };
}

export function linkTo(state) {
  const { page, ...rest } = state;
  const chosen = Object.entries(rest).filter(([, value]) => value != null && value !== "");
  return `#/${page}${chosen.length ? `?${new URLSearchParams(chosen)}` : ""}`;
}

// The same without showing the page anew, for what a chart did already; once nothing more has happened for a moment.
let waiting = null;
export function note(entries) {
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, "", linkTo({ ...currentState(), ...entries })), 300);
}

// Changes some of the state; null forgets an entry.
export function change(entries) {
  location.hash = linkTo({ ...currentState(), ...entries });
}
