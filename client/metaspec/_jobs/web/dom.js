// Elements of the page, and requests. Addresses are relative to the page: behind the prefix of a proxy they hold, too.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// What the service refuses, with the field that is wrong.
export class Refused extends Error {
  constructor(status, { detail, field }) {
    super(detail || `HTTP ${status}`);
    Object.assign(this, { status, field });
  }
}

export async function send(path, method = "GET", body) {
  const options = { method, ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) };
  const answer = await fetch(path, options).catch(() => { throw new Error("The service does not answer."); });
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer.status === 204 ? null : answer.json();
}
