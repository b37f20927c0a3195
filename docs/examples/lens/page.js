// What the parts of the page share: messages to the user, and lists of classes.

import { Problem } from "./networks.js";

const BEST = 5;

export const find = (id) => document.getElementById(id);

// Messages

export function say(text) {
  if (find("status").textContent !== text) find("status").textContent = text;
}

// A problem that does not last is shown until the user does the next thing.
export function complain(text, lasting = false) {
  const shown = [...find("problems").children].some((line) => line.textContent === text);
  if (shown) return;
  const line = document.createElement("p");
  line.className = lasting ? "problem lasting" : "problem";
  line.textContent = text;
  find("problems").append(line);
}

export function forget() {
  for (const line of find("problems").querySelectorAll(":not(.lasting)")) line.remove();
}

// What happens in `work` may fail: the page says so and goes on.
export async function attempt(work, otherwise, lasting = false) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    complain(error instanceof Problem ? error.message : otherwise, lasting);
    return null;
  }
}

// Results

export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

export function percent(share, digits = 0) {
  return `${(100 * share).toFixed(digits)} %`;
}

export function show(list, classes) {
  const lines = classes.slice(0, BEST).map(({ name, share }) => {
    const line = document.createElement("li");
    const bar = element("div", "bar");
    const length = element("span", "");
    bar.setAttribute("aria-hidden", "true");
    length.style.width = `${100 * share}%`;
    bar.append(length);
    line.append(element("span", "name", name), bar, element("span", "share", percent(share)));
    return line;
  });
  list.replaceChildren(...lines);
}

// The median of the latest times, which one slow frame does not move.
export function stopwatch() {
  const times = [];
  return (milliseconds) => {
    times.push(milliseconds);
    if (times.length > 15) times.shift();
    const middle = [...times].sort((a, b) => a - b)[times.length >> 1];
    return `${middle.toFixed(1)} ms a frame`;
  };
}
