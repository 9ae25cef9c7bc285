// The form: filled with what a model can do, read as a request, set from a picture's parameters.

const at = (id) => document.getElementById(id);
const IGNORED = new Set(["Prompt", "Negative prompt", "Model hash", "Version", "Inpaint area", "Masked area padding"]);
let page; // the server's models, LoRAs and limits

/** Fills the lists from what the server has, and sets the defaults of its first model. */
export function fill(described) {
  page = described;
  at("model").replaceChildren(...page.models.map((model) => new Option(model.name)));
  at("sigmas").replaceChildren(...page.sigmas.map((name) => new Option(titled(name), name)));
  at("lora-list").replaceChildren(...page.loras.map(loraRow));
  at("loras").hidden = !page.loras.length;
  at("count").max = page.limits.pictures;
  at("steps").max = page.limits.steps;
  at("model").onchange = useModel;
  useModel();
}

/** The description of the chosen model. */
export const model = () => page.models.find((each) => each.name === at("model").value);

function useModel() {
  const chosen = model();
  at("sampler").replaceChildren(...chosen.samplers.map(({ name, label }) => new Option(label, name)));
  at("sampler").value = chosen.sampler;
  at("sigmas").value = "default";
  for (const side of ["width", "height"]) {
    const { least, most } = chosen.sides[side];
    Object.assign(at(side), { min: least, max: most, step: chosen.multiple, value: chosen[side] });
  }
  at("steps").value = chosen.steps;
  at("guidance").value = chosen.guidance_scale;
  at("edit").disabled = !chosen.edits;
}

function loraRow(name, index) {
  const row = document.createElement("li");
  const label = Object.assign(document.createElement("label"), { className: "inline" });
  const chosen = Object.assign(document.createElement("input"), { type: "checkbox", id: `lora-${index}` });
  const text = Object.assign(document.createElement("span"), { className: "name", textContent: name });
  label.append(chosen, text);
  const weight = Object.assign(document.createElement("input"), { type: "number", step: "any", value: 1 });
  weight.setAttribute("aria-label", `Weight of ${name}`);
  weight.oninput = () => (chosen.checked = true);
  row.dataset.lora = name;
  row.append(label, weight);
  return row;
}

const loraInputs = () =>
  [...at("lora-list").children].map((row) => [row.dataset.lora, ...row.querySelectorAll("input")]);

/** The request's settings, without the picture to start from. */
export function settings() {
  const chosen = loraInputs().filter(([, box]) => box.checked);
  const seed = at("seed").value.trim();
  return {
    model: at("model").value,
    prompt: at("prompt").value,
    negative_prompt: at("negative").value || null,
    width: at("width").valueAsNumber,
    height: at("height").valueAsNumber,
    n: at("count").valueAsNumber,
    seed: seed || null, // as text: a seed may be larger than JavaScript's exact integers
    steps: at("steps").valueAsNumber,
    guidance_scale: at("guidance").valueAsNumber,
    sampler: at("sampler").value,
    sigmas: at("sigmas").value,
    loras: Object.fromEntries(chosen.map(([name, , weight]) => [name, weight.valueAsNumber || 0])),
  };
}

/** Sets the form from a picture's parameters; returns the names of those that it cannot set. */
export function apply(parameters) {
  at("prompt").value = parameters.Prompt ?? "";
  at("negative").value = parameters["Negative prompt"] ?? "";
  const rest = Object.entries(parameters).filter(([name]) => !IGNORED.has(name));
  rest.sort(([a], [b]) => (b === "Model") - (a === "Model")); // its defaults come before the other values
  for (const [, box] of loraInputs()) box.checked = false;
  at("sigmas").value = "default";
  return rest.filter(([name, value]) => !setOne(name, value)).map(([name]) => name);
}

const SETTERS = {
  Model: (value) => choose("model", value, useModel),
  Steps: (value) => put("steps", value),
  Sampler: (value) => chooseLabel("sampler", value),
  "Schedule type": (value) => chooseLabel("sigmas", value),
  "CFG scale": (value) => model()?.embeds_guidance || put("guidance", value),
  "Distilled CFG Scale": (value) => put("guidance", value),
  Seed: (value) => put("seed", value),
  Size: (value) => value.split("x").every((side, i) => put(["width", "height"][i], side)),
  "Denoising strength": (value) => put("strength", value),
  Loras: (value) => value.split(";").every(setLora),
};

function setOne(name, value) {
  return Boolean(SETTERS[name]?.(value));
}

function put(id, value) {
  at(id).value = value;
  at(id).dispatchEvent(new Event("input"));
  return at(id).value !== "";
}

function choose(id, value, then = () => {}) {
  const known = [...at(id).options].some((option) => option.value === value);
  if (known) {
    at(id).value = value;
    then();
  }
  return known;
}

function chooseLabel(id, label) {
  const found = [...at(id).options].find(({ text }) => text.toLowerCase() === label.toLowerCase());
  return found ? choose(id, found.value) : false;
}

function setLora(text) {
  const [, name, weight] = text.trim().match(/^(.*): (\S+)$/) ?? [];
  const row = loraInputs().find(([known]) => known === name);
  if (row) {
    row[2].value = weight;
    row[1].checked = true;
  }
  return Boolean(row);
}

const titled = (name) => name[0].toUpperCase() + name.slice(1);
