// Questions to the server this page came from; all of them GET.

/** What the server answers as JSON; an Error with its one line where it cannot. */
export async function ask(name, parameters = {}) {
  const response = await fetched(name, parameters);
  const answer = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
  if (!response.ok) throw new Error(answer.error ?? `the server answers ${response.status}`);
  return answer;
}

/** What the server answers as bytes. */
export async function askBytes(name, parameters) {
  const response = await fetched(name, parameters);
  if (response.ok) return response.arrayBuffer();
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.error ?? `the server answers ${response.status}`);
}

async function fetched(name, parameters) {
  try {
    return await fetch(address(name, parameters));
  } catch {
    throw new Error("the server does not answer: has genomepred view been stopped?");
  }
}

/** Address of a question. */
export function address(name, parameters) {
  return `api/${name}?${new URLSearchParams(parameters)}`;
}
