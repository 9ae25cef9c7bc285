// The picture to start from, and the mask that is painted over it.

import { model } from "./form.js";

const at = (id) => document.getElementById(id);
const PAINT = "#ff3d7f"; // stands out on pictures; the mask that is sent is white on black
let spot = { x: 0, y: 0 }; // the keyboard's brush, in the canvas's pixels
let last = null; // the pointer's last place while it paints

/** Connects the controls of image to image. */
export function setUp() {
  const mask = at("mask");
  at("strength").oninput = () => (at("strength-value").textContent = at("strength").value);
  at("clear-mask").onclick = () => tell(clear, "The mask is empty.");
  at("invert-mask").onclick = () => tell(invert, "The mask is inverted.");
  at("remove-source").onclick = remove;
  at("brush").oninput = showRing;
  mask.onpointerdown = (event) => {
    mask.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
  };
  mask.onpointermove = (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = next;
  };
  mask.onpointerup = mask.onpointercancel = () => (last = null);
  mask.onkeydown = paintByKey;
  mask.onfocus = showRing;
}

/** Takes a picture, a data URL, as the one to start from. */
export async function use(data) {
  const image = at("source-image");
  image.src = data;
  await image.decode();
  Object.assign(at("mask"), { width: image.naturalWidth, height: image.naturalHeight });
  spot = { x: image.naturalWidth / 2, y: image.naturalHeight / 2 };
  fitSize("width", image.naturalWidth);
  fitSize("height", image.naturalHeight);
  at("edit-tools").hidden = false;
  showRing();
}

/** What a request has of them: picture, mask and strength, or nothing. */
export function edit() {
  if (at("edit-tools").hidden || at("edit").disabled) return {};
  const mask = painted() ? whiteOnBlack() : null;
  return {
    image: at("source-image").src,
    mask,
    strength: at("strength").valueAsNumber,
    only_masked: mask !== null && at("only-masked").checked,
  };
}

function remove() {
  at("edit-tools").hidden = true;
  at("source-image").removeAttribute("src");
  at("source").value = "";
  at("source").focus();
}

function fitSize(side, pixels) {
  const { multiple, sides } = model();
  const nearest = Math.round(pixels / multiple) * multiple;
  at(side).value = Math.min(Math.max(nearest, sides[side].least), sides[side].most);
}

const ink = () => at("mask").getContext("2d", { willReadFrequently: true });
const scale = () => at("mask").width / (at("mask").clientWidth || 1);
const radius = () => at("brush").valueAsNumber * scale();

function place(event) {
  return { x: event.offsetX * scale(), y: event.offsetY * scale() };
}

function stroke(from, to) {
  const pen = ink();
  pen.globalCompositeOperation = at("erase").checked ? "destination-out" : "source-over";
  pen.strokeStyle = PAINT;
  pen.lineWidth = 2 * radius();
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x + 0.01, to.y); // a line of no length paints nothing
  pen.stroke();
  spot = to;
  showRing();
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function paintByKey(event) {
  if (event.key === " ") {
    event.preventDefault();
    tell(() => stroke(spot, spot), `${at("erase").checked ? "Erased" : "Painted"} at ${where()}.`);
  } else if (event.key in MOVES) {
    event.preventDefault();
    const far = (event.shiftKey ? 4 : 1) * Math.max(1, radius() / 2);
    const [x, y] = MOVES[event.key];
    spot = { x: within(spot.x + x * far, at("mask").width), y: within(spot.y + y * far, at("mask").height) };
    tell(showRing, where());
  }
}

const within = (value, most) => Math.min(Math.max(value, 0), most);
const percent = (value, whole) => Math.round((100 * value) / whole);
const where = () =>
  `${percent(spot.x, at("mask").width)} % from the left, ${percent(spot.y, at("mask").height)} % from the top`;

function showRing() {
  const ring = at("brush-ring");
  const size = `${(2 * radius()) / scale()}px`;
  Object.assign(ring.style, {
    width: size,
    height: size,
    left: `${(100 * spot.x) / at("mask").width}%`,
    top: `${(100 * spot.y) / at("mask").height}%`,
  });
}

function tell(change, said) {
  change();
  at("mask-state").textContent = said;
}

function clear() {
  ink().clearRect(0, 0, at("mask").width, at("mask").height);
}

function invert() {
  const pen = ink();
  pen.globalCompositeOperation = "source-out";
  pen.fillStyle = PAINT;
  pen.fillRect(0, 0, at("mask").width, at("mask").height);
}

function painted() {
  const { width, height } = at("mask");
  const { data } = ink().getImageData(0, 0, width, height);
  for (let i = 3; i < data.length; i += 4) if (data[i]) return true;
  return false;
}

function whiteOnBlack() {
  const { width, height } = at("mask");
  const sheet = Object.assign(document.createElement("canvas"), { width, height });
  const pen = sheet.getContext("2d");
  pen.drawImage(at("mask"), 0, 0);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  pen.globalCompositeOperation = "destination-over";
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, width, height);
  return sheet.toDataURL("image/png");
}
