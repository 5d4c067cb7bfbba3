// Where answers come from: the server that sent this page, or the recording inside an exported file.

const recording = document.getElementById("recorded");
const recorded = recording && JSON.parse(recording.textContent);
const KEPT = 400; // answers that are remembered
const EVERY = 2000; // milliseconds between two looks at the list of runs

const answers = new Map();

export const exported = recorded ? recorded.about : null;

// The answer to a path; null where there is none. stamp: another one, and it is asked for again.
export async function get(path, stamp = "") {
  const known = answers.get(path);
  if (known && known.stamp === stamp) return known.answer;
  const answer = recorded ? unpack(recorded[path]) : fetchJson(path);
  answers.delete(path);
  answers.set(path, { stamp, answer });
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  answer.catch(() => answers.delete(path));
  return answer;
}

async function fetchJson(path) {
  const response = await fetch(`api/${path}`);
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`the server answers ${response.status} to ${path}`);
  return response.json();
}

async function unpack(text) {
  if (text === undefined) return null;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

// Calls changed(list of runs) now and whenever the list is another, and lost(error) while it cannot be had.
export async function watch(changed, lost) {
  if (recorded) return changed(await unpack(recorded.runs));
  let tag = null;
  for (;;) {
    try {
      const response = await fetch("api/runs");
      if (!response.ok) throw new Error(`the server answers ${response.status}`);
      if (response.headers.get("ETag") !== tag) changed(await response.json());
      tag = response.headers.get("ETag");
    } catch (error) {
      lost(error);
      tag = null;
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}
