// One drawing at a time: its steps, previews and pictures.

import { stream } from "./api.js";

const at = (id) => document.getElementById(id);
let running = null; // the AbortController of the drawing

/** Draws a request; returns its pictures as [{src, parameters, seed}], or none if it was cancelled. */
export async function draw(request) {
  running = new AbortController();
  busy(true);
  say("Drawing.");
  try {
    for await (const { event, data } of stream("eri/v1/generate", request, running.signal)) {
      if (event === "error") throw new Error(data.error.message);
      if (event === "progress") step(data);
      if (event === "pictures") return finished(data);
    }
    throw new Error("The connection ended before the picture was there.");
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    show([], false);
    say("Cancelled.");
    return [];
  } finally {
    running = null;
    busy(false);
  }
}

/** Cancels the drawing, if there is one; the server stops at its next step. */
export function cancel() {
  running?.abort();
}

/** Whether a picture is being drawn. */
export const drawing = () => running !== null;

/** Says something in the status line, which screen readers read out. */
export function say(text) {
  at("status").textContent = text;
}

/** Shows an error, which screen readers read out at once; an empty text removes it. */
export function complain(text) {
  at("error").textContent = text;
  if (text) say("");
}

function busy(is) {
  at("draw").disabled = is;
  at("cancel").disabled = !is;
  at("stage").setAttribute("aria-busy", String(is));
  at("progress").value = 0;
  at("step").textContent = is ? "waiting" : "";
}

function step({ step: made, total, images }) {
  at("progress").value = made / total;
  at("step").textContent = `step ${made} of ${total}`;
  if (images.length) show(images, true);
}

function finished({ images, seeds, parameters }) {
  show(images, false);
  say(images.length === 1 ? "The picture is done." : `${images.length} pictures are done.`);
  return images.map((src, i) => ({ src, seed: seeds[i], parameters: parameters[i] }));
}

function show(sources, preview) {
  const alt = preview ? "Preview" : "The picture";
  const images = sources.map((src) => Object.assign(document.createElement("img"), { src, alt }));
  at("preview").replaceChildren(...images);
  at("preview").classList.toggle("several", images.length > 1);
  at("preview").classList.toggle("drawing", preview);
  at("empty").hidden = images.length > 0;
}
