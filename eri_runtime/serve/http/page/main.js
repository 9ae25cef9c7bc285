// Connects the page's parts.

import { call } from "./api.js";
import { dataUrl } from "./files.js";
import { cancel, complain, draw, drawing, say } from "./drawing.js";
import { apply, fill, settings } from "./form.js";
import { add } from "./gallery.js";
import { edit, setUp, use } from "./mask.js";

const at = (id) => document.getElementById(id);

async function start() {
  setUp();
  fill(await call("eri/v1/page"));
  at("form").onsubmit = (event) => {
    event.preventDefault();
    attempt(drawOne);
  };
  at("cancel").onclick = cancel;
  at("read").onchange = ({ target }) => target.files[0] && readFile(target.files[0]);
  at("source").onchange = ({ target }) => target.files[0] && attempt(async () => use(await dataUrl(target.files[0])));
  document.addEventListener("keydown", shortcuts);
  dropping();
  at("prompt").focus();
}

async function drawOne() {
  if (drawing()) return;
  const pictures = await draw({ ...settings(), ...edit() });
  for (const picture of pictures) add(picture, { "Draw again": drawAgain, "Start from it": startFrom });
}

function shortcuts(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  if (event.key === "Escape" && !at("key-dialog").open) cancel();
}

/** Runs an action, and shows what goes wrong. */
async function attempt(action) {
  complain("");
  try {
    await action();
  } catch (error) {
    complain(error.message);
  }
}

const drawAgain = (picture) => attempt(() => read(picture.src));
const startFrom = (picture) => attempt(() => use(picture.src));

/** Fills the form from the parameters in a PNG, a data URL. */
async function read(image) {
  const { info, parameters } = await call("sdapi/v1/png-info", { image });
  if (!info) throw new Error("This picture has no settings in it.");
  const unset = apply(parameters);
  at("prompt").focus();
  say(unset.length ? `Settings read, but not these: ${unset.join(", ")}.` : "Settings read. Draw makes the picture again.");
}

const readFile = (file) => attempt(async () => read(await dataUrl(file)));

function dropping() {
  const mark = (is) => document.body.classList.toggle("dropping", is);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    const file = event.dataTransfer.files[0];
    if (file) readFile(file);
  });
}

attempt(start);
