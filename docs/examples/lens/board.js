// The canvas that digits are drawn on, by pointer or keys.

import { find, say } from "./page.js";

const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// `finish` is called after every stroke, `cleared` when nothing is drawn any more.
export function connectBoard(finish, cleared) {
  const board = find("board");
  const context = board.getContext("2d");
  const pen = { x: 140, y: 60, down: false };

  // The pen of the keyboard, which one would not see otherwise.
  function point() {
    const mark = find("pen");
    mark.classList.toggle("down", pen.down);
    mark.style.left = `${(100 * pen.x) / board.width}%`;
    mark.style.top = `${(100 * pen.y) / board.height}%`;
  }

  function clear() {
    pen.down = false;
    point();
    context.fillStyle = "#000";
    context.fillRect(0, 0, board.width, board.height);
    cleared();
  }

  function line(x, y) {
    context.strokeStyle = "#fff";
    context.lineWidth = 22;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(pen.x, pen.y);
    context.lineTo(x, y);
    context.stroke();
    [pen.x, pen.y] = [x, y];
  }

  function place(event) {
    const box = board.getBoundingClientRect();
    const scale = board.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  let drawing = false;
  board.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary) return; // another button, a second finger
    board.setPointerCapture(event.pointerId);
    drawing = true;
    [pen.x, pen.y] = place(event);
    line(pen.x, pen.y);
  });
  board.addEventListener("pointermove", (event) => {
    if (drawing && event.isPrimary) line(...place(event));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    board.addEventListener(end, (event) => {
      if (!drawing || !event.isPrimary) return;
      finish();
      drawing = false;
    });
  }

  board.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move && event.key !== " " && event.key !== "Escape") return;
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
    event.preventDefault();
    if (event.key === "Escape") clear();
    else if (event.key === " ") {
      if (event.repeat) return;
      pen.down = !pen.down;
      say(pen.down ? "The pen is down." : "The pen is up.");
      if (pen.down) line(pen.x, pen.y);
      else finish();
    } else {
      const x = Math.min(Math.max(pen.x + 10 * move[0], 15), board.width - 15);
      const y = Math.min(Math.max(pen.y + 10 * move[1], 15), board.height - 15);
      if (pen.down) line(x, y);
      else [pen.x, pen.y] = [x, y];
    }
    point();
  });
  find("clear").addEventListener("click", clear);
  clear();
}
