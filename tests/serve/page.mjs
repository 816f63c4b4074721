// Runs the script of the server's page against a server, with plain objects in place of a browser's elements.
// Usage: node page.mjs PAGE.html URL; prints what the page then shows, as JSON.
import fs from "fs";

const [file, base] = process.argv.slice(2);
const html = fs.readFileSync(file, "utf8");
const script = html.match(/<script>([\s\S]*)<\/script>/)[1];

class Element {
  constructor(tag) {
    Object.assign(this, {tag, children: [], attributes: {}, listeners: {}, textContent: "", value: ""});
  }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
}

const elements = {};
for (const [, id] of html.matchAll(/ id="([a-z]+)"/g)) elements[id] = new Element(id);
elements.session.value = "me";
global.location = {hash: ""};
global.document = {
  getElementById: id => { if (!elements[id]) throw new Error(`no element ${id}`); return elements[id]; },
  createElement: tag => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
};
const real = fetch;
let asked = 0;
global.fetch = (path, options) => { asked += 1; return real(base + path, options); };
const until = async condition => {
  while (!condition()) await new Promise(resolve => setTimeout(resolve, 50));
};

new Function(script)();
await until(() => elements.facts.textContent !== "" && asked >= 2);
const before = elements.facts.textContent;
elements.text.value = "Hello";
await elements.form.listeners.submit({preventDefault() {}});
await until(() => elements.facts.textContent !== before);
await until(() => elements.picture.children.length);
console.log(JSON.stringify({
  model: elements.model.textContent,
  log: elements.log.children.map(line => [line.className, line.textContent]),
  facts: elements.facts.textContent,
  sessions: elements.sessions.children.map(one => one.children[0].children.map(part => part.textContent)),
  bars: elements.picture.children[0].children.filter(child => child.tag === "rect").length,
}));
process.exit(0);
