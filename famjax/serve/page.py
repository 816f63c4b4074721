"""The page at `/`: a chat with the selected session, a chart of its memory, and the list of all sessions. It is one
file, and sends requests only to this server.

Text from models and users is inserted as text, never as HTML. The session's name is in the URL after `#`, so a reload
continues it. With sessions, the page stores no conversation, since the session's memory has it. On a server without
sessions, the page sends the whole conversation with every message instead.
"""

PAGE = r"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>famjax</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #5b6570; --line: #8884; --soft: #8882;
  --mark: #2a6fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --faint: #9aa4ae; --mark: #6fb1ee; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; color: var(--ink);
  background: var(--paper); display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem; }
header { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .6rem; align-items: baseline; }
h1 { font-size: 1.3rem; margin: 0 auto 0 0; } h2 { font-size: 1rem; margin: 0 0 .4rem; }
#log { min-height: 12rem; max-height: 60vh; overflow-y: auto; border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem; }
#log p { white-space: pre-wrap; overflow-wrap: break-word; margin: .3rem 0; padding: .4rem .7rem; border-radius: 8px; }
#log .user { background: var(--soft); margin-left: 15%; } #log .error { color: #c05a1c; }
form { display: flex; gap: .5rem; margin-top: .6rem; } textarea { flex: 1; min-width: 0; }
textarea, input, button, select { font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--line); border-radius: 6px; padding: .3rem .6rem; }
button { cursor: pointer; } small, #facts { color: var(--faint); font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--faint); }
svg rect { fill: var(--mark); } aside h2:not(:first-child) { margin-top: 1.2rem; }
#sessions { list-style: none; margin: 0; padding: 0; max-height: 40vh; overflow-y: auto; }
#sessions button { display: flex; width: 100%; gap: .6rem; justify-content: space-between; align-items: baseline;
  border: 0; text-align: left; overflow-wrap: anywhere; }
#sessions button[aria-current="true"] { background: var(--soft); }
#sessions button:disabled { cursor: default; opacity: .6; } #sessions small { white-space: nowrap; }
@media (max-width: 700px) { body { grid-template-columns: minmax(0, 1fr); } }
</style></head><body>
<header><h1 id="model">famjax</h1>
<label>session <input id="session" value="me" size="12" maxlength="64" autocomplete="off"></label>
<label>key <input id="key" type="password" size="8" autocomplete="off" placeholder="none"></label>
</header>
<main><div id="log" aria-live="polite"></div>
<form id="form"><textarea id="text" rows="2" placeholder="What do you want to say?" aria-label="message"></textarea>
<button id="send">Send</button><button id="stop" type="button" hidden>Stop</button></form>
<small id="hint"></small></main>
<aside><h2>Memory</h2><div id="facts"></div><div id="picture"></div>
<h2>Sessions</h2><ul id="sessions"></ul><small id="which"></small></aside>
<script>
"use strict";
const $ = id => document.getElementById(id);
let model = "", leaving = null, kept = true;
let said = [];  // the conversation, on a server that keeps no sessions
const headers = () => {
  const found = {"Content-Type": "application/json"};
  if ($("key").value) found["Authorization"] = "Bearer " + $("key").value;
  return found;
};
const call = async path => {
  const answer = await fetch(path, {headers: headers()});
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error.message);
  return body;
};
const say = (kind, text) => {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  $("log").append(line);
  $("log").scrollTop = $("log").scrollHeight;
  return line;
};
const element = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
};
// Bars: a layer each, as long as the root mean square of its feedback activations (of its keys if it has no FAM).
const draw = memory => {
  const norm = layer => layer.fam.length ? Math.sqrt(layer.fam.reduce((s, x) => s + x * x, 0) / layer.fam.length)
    : layer.keys;
  const norms = memory.layers.map(norm), most = Math.max(...norms, 1e-9), step = 18;
  const svg = element("svg", {viewBox: `0 0 320 ${step * norms.length + 20}`, role: "img",
    "aria-label": "norm of the memory by layer"});
  norms.forEach((value, i) => {
    svg.append(element("text", {x: 0, y: step * i + 13}, "layer " + i));
    svg.append(element("rect", {x: 56, y: step * i + 3, width: 200 * value / most, height: 12, rx: 3}));
    svg.append(element("text", {x: 62 + 200 * value / most, y: step * i + 13}, value.toPrecision(3)));
  });
  const what = memory.layers.some(layer => layer.fam.length) ? "feedback activations" : "keys";
  svg.append(element("text", {x: 0, y: step * norms.length + 14}, "root mean square of " + what + ", by layer"));
  $("picture").replaceChildren(svg);
};
const html = (name, fields, ...children) => {
  const one = Object.assign(document.createElement(name), fields);
  one.append(...children);
  return one;
};
const tokens = count => count.toLocaleString() + (count === 1 ? " token" : " tokens");
// The sessions, each with what it has read; one that another model made cannot be continued.
const listed = (list, name) => {
  $("sessions").replaceChildren(...list.map(one => {
    const facts = one.same_model ? tokens(one.tokens) : "of another model";
    const button = html("button", {type: "button", disabled: !one.same_model},
      html("span", {textContent: one.id}), html("small", {textContent: facts}));
    button.setAttribute("aria-current", one.id === name);
    button.addEventListener("click", () => { $("session").value = one.id; pick(); });
    return html("li", {}, button);
  }));
  $("which").textContent = list.length ? "A new name above begins another." : "none yet; the first message begins one";
};
const refresh = async () => {
  if (!kept) return;
  try {
    const list = (await call("/v1/sessions")).data, name = $("session").value;
    listed(list, name);
    if (!list.some(one => one.id === name)) {
      $("facts").textContent = "nothing read yet";
      $("picture").replaceChildren();
      return;
    }
    const memory = await call(`/v1/sessions/${encodeURIComponent(name)}/memory`);
    if (name !== $("session").value) return;  // another one has been picked meanwhile
    $("facts").textContent = `${tokens(memory.tokens)} read, `
      + `${memory.updates.toLocaleString()} updates, ${memory.bytes.toLocaleString()} bytes`;
    draw(memory);
  } catch (error) { $("facts").textContent = error.message; }
};
const pick = () => {
  location.hash = $("session").value;
  $("log").replaceChildren();
  return refresh();
};
const read = async (answer, line) => {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", whole = false;;) {
    const {done, value} = await reader.read();
    if (done && !whole) throw new Error("the connection ended before the answer did; this turn is forgotten");
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") { whole = true; continue; }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      for (const choice of chunk.choices) line.textContent += choice.delta.content || "";
      $("log").scrollTop = $("log").scrollHeight;
    }
  }
};
$("form").addEventListener("submit", async event => {
  event.preventDefault();
  const text = $("text").value;
  if (!text.trim() || leaving) return;
  $("text").value = "";
  say("user", text);
  const line = say("model", ""), message = {role: "user", content: text};
  leaving = new AbortController();
  $("stop").hidden = !($("send").disabled = true);
  try {
    const body = {model, stream: true, messages: [...said, message]};
    if (kept) body.session = $("session").value;
    const answer = await fetch("/v1/chat/completions",
      {method: "POST", headers: headers(), body: JSON.stringify(body), signal: leaving.signal});
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    await read(answer, line);
    if (!kept) said.push(message, {role: "assistant", content: line.textContent});
  } catch (error) {
    say("error", error.name === "AbortError" ? "stopped; this turn is forgotten" : error.message);
  }
  leaving = null;
  $("stop").hidden = !($("send").disabled = false);
  refresh();
});
$("stop").addEventListener("click", () => leaving && leaving.abort());
$("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form").requestSubmit(); }
});
$("session").addEventListener("change", pick);
const begin = async () => {
  try {
    const found = (await call("/v1/models")).data[0];
    [model, kept] = [found.id, found.sessions];
  } catch (error) {
    say("error", error.message);
    return;
  }
  $("model").textContent = model;
  $("log").replaceChildren();
  $("session").disabled = !kept;
  $("hint").textContent = kept ? "An answer that is stopped is forgotten, with its question. The page does not show "
    + "what was said before it was loaded; the session remembers it."
    : "The whole conversation is sent with every message.";
  if (kept) return refresh();
  $("facts").textContent = "none, without a session";
  $("which").textContent = "none; famjax serve --sessions DIR keeps some";
};
if (/^#[\w.-]+$/.test(location.hash)) $("session").value = location.hash.slice(1);
$("key").addEventListener("change", begin);
begin();
</script></body></html>
"""
