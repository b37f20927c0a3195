// The page: camera, files, drawing, and what the networks see in them.

import { connectBoard } from "./board.js";
import { Problem, classify, describe, load, start } from "./networks.js";
import { attempt, complain, element, find, forget, percent, say, show, stopwatch } from "./page.js";
import { colours, digit, square } from "./pixels.js";

const ANNOUNCE = 2000; // milliseconds between two announcements of what a camera sees

const networks = {}; // by name, those that can be run
let head = null; // the optimizer that is chosen
let pixels = null; // of the latest picture: { bytes, side }
let opened = null; // the file that was chosen last

// Pictures

const pictureTime = stopwatch();
let announced = { name: null, at: 0 };

async function look(source) {
  const network = networks.photographs;
  const began = performance.now();
  if (source) {
    const image = square(source, network?.side ?? 32);
    pixels = { bytes: colours(image), side: image.width };
  }
  if (!network || !pixels) return;
  const classes = await classify(network, head, pixels.bytes, pixels.side);
  const time = pictureTime(performance.now() - began);
  if (!announced.at) performance.mark("answer"); // the first one
  show(find("classes"), classes);
  const frames = camera.running ? `, ${camera.frames()} frames a second` : "";
  find("time").textContent = `${time}${frames}`;
  announce(classes[0]);
}

function announce({ name, share }) {
  const now = performance.now();
  if (camera.running && (name === announced.name || now - announced.at < ANNOUNCE)) return;
  announced = { name, at: now };
  say(`Most probable: ${name}, ${percent(share)}.`);
  find("picture").setAttribute("aria-label", `A picture, most probably of class ${name}`);
}

async function open(file) {
  camera.stop();
  forget();
  opened = file;
  let image = null;
  try {
    image = await createImageBitmap(file);
  } catch {
    complain(`${file.name || "This"} is not a picture that this browser can read.`);
    return;
  }
  // A large picture may be ready after a small one that was chosen later.
  if (opened === file) {
    draw(image);
    await attempt(() => look(image), "The picture cannot be classified.");
  }
  image.close();
}

function draw(image) {
  const canvas = find("picture");
  const side = Math.min(image.width, image.height);
  const [left, top] = [(image.width - side) / 2, (image.height - side) / 2];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // behind what is transparent, as in `square`
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, left, top, side, side, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", "A picture");
  find("hint").hidden = true;
}

// The camera

const camera = {
  running: false,
  starting: false,
  facing: "environment",
  stream: null,
  times: [],

  frames() {
    const times = this.times;
    if (times.length < 2) return "0";
    return ((1000 * (times.length - 1)) / (times.at(-1) - times[0])).toFixed(1);
  },

  async start() {
    if (this.starting) return; // the user is asked for permission
    this.starting = true;
    opened = null; // a picture that is still being read comes too late
    forget();
    try {
      this.stream = await this.ask();
      const [track] = this.stream.getVideoTracks();
      track.addEventListener("ended", () => {
        this.stop();
        complain("The camera was switched off or removed.");
      });
      const video = find("video");
      video.srcObject = this.stream;
      await video.play();
      this.running = true;
      this.times = [];
      this.shown();
      this.next();
    } catch (error) {
      this.stop();
      throw error;
    } finally {
      this.starting = false;
    }
  },

  async ask() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Problem("This browser gives pages no camera here (it does with HTTPS): choose a picture instead.");
    }
    const wanted = { facingMode: this.facing, width: { ideal: 640 }, height: { ideal: 480 } };
    try {
      return await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      throw new Problem(
        refused
          ? "The camera may not be used by this page: choose a picture instead."
          : "There is no camera that can be used: choose a picture instead.",
      );
    }
  },

  stop() {
    if (this.running) draw(frameOf(find("video"))); // it is black when the camera is off
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    if (!this.running) return;
    this.running = false;
    this.shown();
  },

  shown() {
    find("video").hidden = !this.running;
    find("picture").hidden = this.running;
    find("turn").hidden = !this.running;
    find("hint").hidden = true;
    find("camera").classList.toggle("on", this.running);
    find("camera").textContent = this.running ? "Stop the camera" : "Start the camera";
  },

  // One frame after the other, never two at a time.
  next() {
    const video = find("video");
    const { stream } = this;
    const frame = async () => {
      if (this.stream !== stream) return;
      this.times.push(performance.now());
      if (this.times.length > 20) this.times.shift();
      const done = await attempt(() => look(video).then(() => true), "A frame cannot be classified.");
      if (this.stream !== stream) return;
      if (done) this.next();
      else this.stop();
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(frame);
    else requestAnimationFrame(frame);
  },
};

function frameOf(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas;
}

function connectPictures() {
  const drop = find("drop");
  const input = find("file");
  const chosen = () => {
    if (input.files.length) open(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  };
  input.addEventListener("change", chosen);
  chosen(); // before this script was there
  // Anywhere: beside the frame, a browser would show the picture in place of the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) open(file);
  });
  const start = () => attempt(() => camera.start(), "The camera cannot be started.");
  find("camera").addEventListener("click", () => (camera.running ? camera.stop() : start()));
  find("turn").addEventListener("click", async () => {
    camera.facing = camera.facing === "user" ? "environment" : "user";
    camera.stop();
    await start();
    find(camera.running ? "turn" : "camera").focus(); // the button was hidden for a moment
  });
}

// Digits

const digitTime = stopwatch();

async function read() {
  const network = networks.digits;
  const began = performance.now();
  const bytes = digit(find("board"));
  if (!network || !bytes) return;
  const classes = await classify(network, network.heads[0].name, bytes, network.side);
  find("digit-time").textContent = digitTime(performance.now() - began);
  show(find("digit-classes"), classes);
  say(`Most probable digit: ${classes[0].name}, ${percent(classes[0].share)}.`);
}

function cleared() {
  find("digit-classes").replaceChildren();
  find("digit-time").textContent = "No digit yet.";
}

// Networks

function choose(network) {
  head = network.heads[0].name;
  for (const { name, title, accuracy } of network.heads) {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = "head";
    radio.value = name;
    radio.checked = name === head;
    radio.addEventListener("change", () => {
      head = name;
      if (!camera.running) attempt(() => look(null), "The picture cannot be classified.");
    });
    const score = element("span", "score", `${percent(accuracy, 1)} right`);
    label.append(radio, element("span", "", title), score);
    find("heads").append(label);
  }
}

function tabulate(network) {
  const size = network.files[network.served].bytes / 1e6;
  const digits = size < 0.1 ? 2 : 1;
  for (const { title, training_loss, accuracy } of network.heads) {
    const row = document.createElement("tr");
    const cells = [
      network.title,
      title,
      training_loss.toPrecision(3),
      `${percent(accuracy, 1)} of ${network.held_out.toLocaleString("en")}`,
      `${size.toFixed(digits)} MB, ${network.served}`,
    ];
    row.append(...cells.map((text) => element("td", "", text)));
    find("table").append(row);
  }
}

async function listed() {
  const described = await describe();
  for (const network of described) {
    tabulate(network);
    if (network.name === "photographs") choose(network);
  }
  return described;
}

async function main() {
  connectPictures();
  connectBoard(() => attempt(read, "The digit cannot be classified."), cleared);
  const described = (await attempt(listed, "The file models/models.json is damaged.", true)) ?? [];
  const runs = await attempt(() => start().then(() => true), "The networks cannot be started.", true);
  if (runs) {
    for (const network of described) {
      const failed = `The network for ${network.name} cannot be loaded.`;
      const found = await attempt(() => load(network), failed, true);
      if (!found) continue;
      networks[network.name] = found;
      // The first run of a network prepares it: better now than with the first picture.
      const blank = new Uint8Array(network.side ** 2 * network.channels);
      await attempt(
        () => classify(found, found.heads[0].name, blank, network.side),
        `The network for ${network.name} cannot be run.`,
        true,
      );
      performance.mark(`ready ${network.name}`);
      // What was shown while it loaded.
      if (network.name === "photographs" && pixels) await look(null);
    }
  }
  const names = Object.keys(networks);
  if (names.length && !pixels) say(`Ready for ${names.join(" and ")}.`);
  if (!names.length) say("No network can be run here.");
  await keepForLater(names.length > 0);
}

// Not before the networks are loaded: they come first.
async function keepForLater(useful) {
  if (!useful || !("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    find("offline").textContent = "This page is stored on this device and works without a network.";
    performance.mark("stored");
  } catch (error) {
    console.warn("The page is not stored for later:", error.message);
  }
}

main();
