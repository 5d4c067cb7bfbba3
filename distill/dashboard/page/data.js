// Where answers come from: the server that sent this page, or the recording inside an exported file.

const recorded = (path) => document.getElementById(`recorded:${path}`)?.textContent;
const KEPT = 400; // answers that are remembered
const AGAIN = 200; // milliseconds until a file that is being read is asked for again
const EVERY = 2000; // milliseconds between two looks at the list of runs

const answers = new Map();

export const exported = recorded("about"); // when

// The answer to a path; null where there is none. stamp: another one, and it is asked for again.
export async function get(path, stamp = "") {
  const known = answers.get(path);
  if (known && known.stamp === stamp) return known.answer;
  const answer = exported ? unpack(recorded(path)) : fetchJson(path);
  answers.delete(path);
  answers.set(path, { stamp, answer });
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  answer.catch(() => answers.delete(path));
  return answer;
}

// What a run's metrics are, as far as the server has read them: a file that is large it reads on with each such question.
export async function seriesOf(run) {
  const path = `runs/${run.id}/series`;
  const found = await get(path, String(run.stamp));
  if (found.read < 1) answers.delete(path);
  return found;
}

// The points of one of them, for the same state of the reading.
export const pointsOf = (run, { read }, which) => get(`runs/${run.id}/series/${which}`, `${run.stamp} ${read}`);

// Comes again a moment later, where any was not read to its end, as long as it is wanted.
export function readOn(lists, again) {
  if (lists.some(({ read }) => read < 1)) setTimeout(again, AGAIN);
}

async function fetchJson(path) {
  const response = await fetch(`api/${path}`);
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`the server answers ${response.status} to ${path}`);
  return response.json();
}

export function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

async function unpack(text) {
  if (text === undefined) return null;
  const plain = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

// Calls changed(list of runs) now and whenever the list is another, and lost(error) while it cannot be had.
export async function watch(changed, lost) {
  if (exported) return changed(await unpack(recorded("runs")));
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
