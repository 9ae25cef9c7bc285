// The pictures of this session, newest first, with their settings.

const at = (id) => document.getElementById(id);

/** Adds a picture: {src, parameters, seed}. `actions` are functions of it by their button's label. */
export function add(picture, actions) {
  const item = document.createElement("li");
  const prompt = picture.parameters.split("\n")[0];
  const image = Object.assign(document.createElement("img"), { src: picture.src, alt: prompt || "A picture" });
  const about = Object.assign(document.createElement("p"), {
    className: "about",
    textContent: `${prompt} · seed ${picture.seed}`,
    title: picture.parameters,
  });
  item.append(image, about, tools(picture, actions, item));
  at("gallery").prepend(item);
  at("gallery-empty").hidden = true;
}

function tools(picture, actions, item) {
  const row = Object.assign(document.createElement("div"), { className: "tools" });
  const link = Object.assign(document.createElement("a"), {
    className: "button",
    href: picture.src,
    download: `eri-${picture.seed}.png`,
    textContent: "Save",
  });
  const drop = () => {
    item.remove();
    at("gallery-empty").hidden = at("gallery").childElementCount > 0;
    at("stage").focus();
  };
  const all = { ...actions, Remove: drop };
  const made = Object.entries(all).map(([label, act]) => button(label, picture.seed, () => act(picture)));
  row.append(link, ...made);
  link.setAttribute("aria-label", `Save, seed ${picture.seed}`);
  return row;
}

function button(label, seed, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: label, onclick: act });
  made.setAttribute("aria-label", `${label}, seed ${seed}`);
  return made;
}
