// Talks to the server: JSON, server-sent events, and the API key.

let key = sessionStorage.getItem("eri-key") ?? "";

/** An answer of the server that is no success. */
export class ServerError extends Error {}

/** Returns the server's reply in JSON; `body` makes it a POST. Throws `ServerError`. */
export async function call(path, body) {
  return (await send(path, body)).json();
}

/** Yields the events of a request as {event, data}. Aborting `signal` cancels the request. */
export async function* stream(path, body, signal) {
  const reply = await send(path, body, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (text + value.replaceAll("\r", "")).split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const event = parsed(frame);
      if (event) yield event;
    }
  }
}

function parsed(frame) {
  const lines = frame.split("\n");
  const of = (name) =>
    lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim());
  const data = of("data").join("\n");
  return data ? { event: of("event")[0] ?? "message", data: JSON.parse(data) } : null;
}

async function send(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, credentials: "omit" }; // else a browser asks for a password
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const reply = await fetch(path, options);
  if (reply.ok) return reply;
  if (reply.status === 401) {
    await askForKey();
    return send(path, body, signal);
  }
  throw new ServerError(await message(reply));
}

async function message(reply) {
  const body = await reply.json().catch(() => ({}));
  const told = body.error?.message ?? body.errors ?? body.detail ?? body.error;
  return typeof told === "string" && told ? told : `The server answered ${reply.status}.`;
}

/** Opens the dialog, and resolves when a key was given. */
function askForKey() {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  return new Promise((resolve, reject) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue !== "given") return reject(new ServerError("An API key is needed."));
        key = field.value;
        sessionStorage.setItem("eri-key", key);
        resolve();
      },
      { once: true },
    );
    document.getElementById("key-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close("given");
    };
    dialog.returnValue = "";
    field.value = "";
    if (!dialog.open) dialog.showModal();
  });
}
