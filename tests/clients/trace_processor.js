// Perfetto's trace processor as its own interface runs it, under Node: `node FILE DIRECTORY`, where
// DIRECTORY is a distribution of that interface. What comes on standard input is what the interface
// would send, a TraceProcessorRpcStream; the answers go to standard output.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const { stderr } = process;
const directory = process.argv[2];
const requests = new Uint8Array(fs.readFileSync(0));

// The bundle is a web worker's, and fetches the WebAssembly module beside it, without waiting.
globalThis.self = globalThis;
globalThis.importScripts = () => {};
globalThis.WorkerGlobalScope = Object;
globalThis.location = { href: `file://${directory}/engine_bundle.js` };
globalThis.XMLHttpRequest = class {
  open(method, name) {
    this.name = path.basename(String(name));
  }
  send() {
    this.response = new Uint8Array(fs.readFileSync(path.join(directory, this.name))).buffer;
    this.status = 200;
  }
};
// Its own messages must not mix with the answers.
console.log = console.info = console.warn = (...said) => stderr.write(`${said.join(" ")}\n`);
// Else it would find that this is Node, and go other ways.
globalThis.process = undefined;

vm.runInThisContext(fs.readFileSync(path.join(directory, "engine_bundle.js"), "utf8"));
const port = { postMessage: (answer) => fs.writeSync(1, answer) };
globalThis.self.onmessage({ data: port });
// It takes requests once its promises are kept.
setTimeout(() => port.onmessage({ data: requests }), 0);
