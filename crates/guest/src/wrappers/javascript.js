// The JavaScript interpreter: reads executions from the control socket, runs each as a module, reports its exit code.
//
// Between executions it blocks in read(2), so an idle Bun runs no timers and no collector. An execution lasts until its module is
// evaluated and the event loop is empty, which is when `beforeExit` fires; an exception that nobody catches ends it at once, and what it
// had left to do is done in the next one.
// The module is a real file in the home directory while it runs, so relative imports, node_modules, __dirname, CommonJS and the
// source lines in stack traces are what they would be for a script that lies there. A home that takes no file, because programs have
// filled it, does not keep the next one from making room: then the module is one in name only, which has no CommonJS, and whose traces
// show lines as Bun has rewritten them. After the last execution the process exits as that script's would, with the listeners of `exit`.
//
// What a program declares at its top, the next one finds in globalThis: variables as they are by then (an assignment reaches the
// functions that use them, and a constant stays one), imports by loading them again on first use. For that, lines are added behind the
// program, so none of its own moves: a function that has the declarations in its scope, and the import of a module that takes
// it from there before the program begins. A program that uses CommonJS's `module` or `exports` cannot import, so its declarations
// end with it.
//
// A rehearsal is a module of its own name, and does not count. What it declares ends with it, and what it adds to globalThis is taken away.
//
// Bun writes to a pipe asynchronously through process.stdout and would lose what is not written when the program exits; Node writes
// synchronously. So both streams are replaced, on first use, by ones that do.

const fs = require("node:fs");
const { Writable } = require("node:stream");
const { setRandomSeed } = require("bun:jsc");

const CONTROL_FD = 1000;
// What Node answers when a top-level await can never settle.
const UNSETTLED_EXIT_CODE = 13;
// Bun draws random bytes ahead and hands out pieces of at most so many from there.
const BUFFERED_RANDOM_BYTES = 2048;
const SMALL_RANDOM_BYTES = 256;
const MAX_MARKER_BYTES = 1024 * 1024;
const MAX_ORDER_BYTES = 256;
const MODULE_NAME = /^\.main-[0-9]+\.ts$/;

const { readSync, writeSync, readFileSync, writeFileSync, unlinkSync, readdirSync, fstatSync, openSync, closeSync } = fs;
// A program may replace whatever it reaches by name.
const { Atomics, Buffer, Bun, Number, Object, Uint8Array, process, setImmediate } = globalThis;
const getRandomValues = crypto.getRandomValues.bind(crypto);
const { inspect } = Bun;
const { env } = process;
const HOME = env.HOME;
const exit = process.reallyExit.bind(process);
const leave = process.exit.bind(process);
const on = process.on.bind(process);
const listenersOf = process.listeners.bind(process);
const received = Buffer.alloc(MAX_ORDER_BYTES);
const wait = new Int32Array(new SharedArrayBuffer(4));
const transpiler = new Bun.Transpiler({ loader: "ts", replMode: true });
const USES_COMMONJS = /(^|[^.\w$"'`])(module|exports)\s*[.[=]|require\.main/;

let executions = 0;
let rehearsals = 0;
let markers = []; // see findMarkers; unknown after a program
let running = null; // { isLast, rehearsal, token, path, saved, settled, imports, names, scope }

// The standard streams as they were at the start, out of the way of what a program closes.
const streams = [0, 1, 2].map((fd) => {
  const { dev, ino } = fstatSync(fd);
  return { fd, dev, ino, kept: openSync(`/proc/self/fd/${fd}`, fd === 0 ? "r" : "a") };
});

function restoreStreams() {
  for (const { fd, dev, ino, kept } of streams) {
    let now;
    try {
      now = fstatSync(fd);
    } catch {
      now = undefined;
    }
    if (now?.dev === dev && now?.ino === ino) continue;
    if (now !== undefined) closeSync(fd);
    // It takes the lowest number that is free, which is this one.
    openSync(`/proc/self/fd/${kept}`, fd === 0 ? "r" : "a");
  }
}

function writeAll(fd, text) {
  let bytes = Buffer.from(text);
  while (bytes.length > 0) {
    try {
      const count = writeSync(fd, bytes);
      if (count === bytes.length) return true;
      bytes = bytes.subarray(count);
    } catch (error) {
      // Bun may have made the pipe non-blocking: wait for the reader.
      if (error.code !== "EAGAIN") return false;
      Atomics.wait(wait, 0, 0, 1);
    }
  }
  return true;
}

function replaceStream(name, fd) {
  let stream;
  Object.defineProperty(process, name, {
    configurable: true,
    enumerable: true,
    get() {
      if (stream === undefined || stream.writableEnded || stream.destroyed) {
        const write = (chunk, _encoding, done) => {
          writeAll(fd, chunk);
          done();
        };
        stream = Object.assign(new Writable({ decodeStrings: true, write }), { fd });
      }
      return stream;
    },
  });
}

// Whether the agent has been told. A report is short enough to be written at once.
function report(line) {
  try {
    return writeSync(CONTROL_FD, line) === line.length;
  } catch {
    return false;
  }
}

// Its verb, its token and its argument, each of which is a line.
function readOrder() {
  let order = "";
  for (;;) {
    const count = readSync(CONTROL_FD, received, 0, MAX_ORDER_BYTES);
    if (count === 0) exit(0); // the agent is gone
    order += received.latin1Slice(0, count);
    const lines = order.split("\n");
    if (lines.length > 3) return lines;
  }
}

function applyEnvironment(path) {
  const saved = [];
  const pairs = readFileSync(path, "utf8");
  if (pairs === "") return saved;
  for (const pair of pairs.split("\0")) {
    const at = pair.indexOf("=");
    if (at < 1) continue;
    const name = pair.slice(0, at);
    saved.push([name, env[name]]);
    env[name] = pair.slice(at + 1);
  }
  return saved;
}

function restoreEnvironment(saved) {
  for (const [name, value] of saved.reverse()) {
    if (value === undefined) delete env[name];
    else env[name] = value;
  }
}

// What a rehearsal may change of what the first program finds.
function surroundings(number) {
  return { number, names: new Set(Object.getOwnPropertyNames(globalThis)), variables: { ...env }, place: process.cwd() };
}

function restoreSurroundings({ names, variables, place, number }, path) {
  for (const name of Object.getOwnPropertyNames(globalThis)) {
    if (!names.has(name)) delete globalThis[name];
  }
  for (const name of Object.keys(env)) {
    if (!(name in variables)) delete env[name];
  }
  Object.assign(env, variables);
  process.chdir(place);
  forgetModule(path, number);
  // What is collected and compiled now is not in a program's time.
  Bun.gc(true);
}

function forgetModule(path, number) {
  for (const name of [path, takerOf(number)]) delete require.cache[name];
}

const takerOf = (number) => `exec-sandbox:${number}`;

function removeQuietly(path) {
  try {
    unlinkSync(path);
  } catch {
    // The program removed or hid it: its own business.
  }
}

// What the program declares at its top: names of its own, and what it imports under which name.
function declarations(source) {
  const text = transpiler.transformSync(source);
  const names = [];
  const imports = [];
  if (USES_COMMONJS.test(text) && !/^\s*(import|export)\b/m.test(source)) return { names, imports };
  const imported = new Set();
  for (const [, clause] of source.matchAll(/\bimport\s+([^"'`;()]+?)\s*from\b/g)) {
    for (const [name] of clause.matchAll(/[\p{ID_Start}$_][\p{ID_Continue}$]*/gu)) imported.add(name);
  }
  const modules = new Map();
  for (const [, local, module] of text.matchAll(/^(?: {2}| {4}value: )([\p{ID_Start}$_][\p{ID_Continue}$]*) = await import\((".*?")\);?$/gmu)) {
    modules.set(local, JSON.parse(module));
  }
  const parts = new Map();
  for (const [, local, object, part] of text.matchAll(/^(?: {2}| {4}value: )([^ ]+) = (import_[^ .]+)\.([^ .;]+);?$/gm)) {
    if (modules.has(object)) parts.set(local, { module: modules.get(object), part });
  }
  for (const [, local, module, part] of text.matchAll(/^(?: {2}| {4}value: )([^ ]+) = \(await import\((".*?")\)\)\.([^ .;]+);?$/gm)) {
    parts.set(local, { module: JSON.parse(module), part });
  }
  for (const line of text.split("\n")) {
    if (!line.startsWith("var ")) break;
    for (const name of line.slice(4, -1).split(", ")) {
      if (!imported.has(name)) {
        if (!(name.startsWith("import_") && modules.has(name) && !source.includes(name))) names.push(name);
      } else if (parts.has(name)) imports.push({ name, ...parts.get(name) });
      else if (modules.has(name)) imports.push({ name, module: modules.get(name), part: null });
    }
  }
  return { names, imports };
}

// The lines behind a program: `eval`, because an assignment to a constant would be refused where it is written out.
function epilogue(names, number) {
  const accessors = names.map((name) => `get ${name}(){return ${name}},set ${name}(value){eval("${name}=value")}`);
  return `\n;export function __exec_sandbox_scope(){return{__proto__:null,${accessors.join()}}}\nimport "${takerOf(number)}";\n`;
}

// A module that is no file, and can be imported by this name.
function offerModule(name, contents) {
  const load = () => ({ contents, loader: "ts" });
  Bun.plugin({ name: "exec-sandbox", setup: (build) => void build.module(name, load) });
}

function offerScope(execution, number) {
  const taker = takerOf(number);
  const take = `globalThis["${taker}"](program.__exec_sandbox_scope())`;
  offerModule(taker, `import * as program from ${JSON.stringify(execution.path)};${take}`);
  Object.defineProperty(globalThis, taker, {
    configurable: true,
    value: (scope) => {
      delete globalThis[taker];
      execution.scope = scope;
    },
  });
}

// Lets the next program find what this one declared. What it has not come to declare stays what it was.
function keepDeclarations({ names, imports, scope }) {
  const keep = (name, accessors) => {
    try {
      accessors.get();
      Object.defineProperty(globalThis, name, { configurable: true, enumerable: true, ...accessors });
    } catch {
      // Not declared yet when the program ended, or a name that globalThis does not give away.
    }
  };
  if (scope !== undefined) {
    for (const name of names) keep(name, { get: () => scope[name], set: (value) => void (scope[name] = value) });
  }
  for (const { name, module, part } of imports) {
    const get = () => {
      const found = require(Bun.resolveSync(module, HOME));
      return part === null || (part === "default" && !("default" in found)) ? found : found[part];
    };
    Object.defineProperty(globalThis, name, { configurable: true, enumerable: true, get });
  }
}

// The program, and what is added so that its declarations are found.
function prepared(source, execution, number) {
  try {
    Object.assign(execution, declarations(source));
    if (execution.names.length === 0) return source;
    offerScope(execution, number);
    return source + epilogue(execution.names, number);
  } catch {
    return source; // a syntax error: shown when the module is loaded
  }
}

function evaluate(source, execution, number) {
  const { path } = execution;
  // After the last program nobody looks for what it declared.
  const program = execution.isLast ? source : prepared(source, execution, number);
  try {
    writeFileSync(path, program);
  } catch {
    removeQuietly(path); // the part that found room
    // Bun runs one that is no file only if it is seen to be a module, and does not stay for it by itself.
    offerModule(path, `${program}\n;export {};\n`);
    setImmediate(() => {});
  }
  return import(path);
}

// Where BoringSSL notices that its generator's state is a copy: pages that the kernel would wipe in a forked child (MADV_WIPEONFORK).
// Nobody wipes them in a copy of the machine, so this does. The search takes long; after a rehearsal it is made where there is time.
function findMarkers() {
  const found = [];
  let range;
  for (const line of readFileSync("/proc/self/smaps", "latin1").split("\n")) {
    const bounds = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (bounds !== null) range = [Number(`0x${bounds[1]}`), Number(`0x${bounds[2]}`)];
    else if (/^VmFlags:.* wf( |$)/.test(line)) found.push(range);
  }
  return found;
}

function wipe(markers) {
  const memory = openSync("/proc/self/mem", "r+");
  for (const [start, end] of markers) {
    if (end - start > MAX_MARKER_BYTES) exit(70); // a program's own: another interpreter is better than a copy
    writeSync(memory, Buffer.alloc(end - start), 0, end - start, start);
  }
  closeSync(memory);
}

// In a copy of a machine: what is drawn from here on is not what other copies draw.
function reseed(seed) {
  try {
    setRandomSeed(Number(`0x${seed.slice(0, 8)}`));
    markers ??= findMarkers();
    if (markers.length === 0) return; // no generator has been used
    wipe(markers);
    // What Bun had drawn ahead.
    for (let drawn = 0; drawn <= BUFFERED_RANDOM_BYTES; drawn += SMALL_RANDOM_BYTES) {
      getRandomValues(new Uint8Array(SMALL_RANDOM_BYTES));
    }
  } catch {
    exit(70); // a program broke what this stands on
  }
}

// A number for the names of the next program. That of a rehearsal is no program's.
function numberFor(verb) {
  if (verb !== "rehearse") return `${(executions += 1)}`;
  return `0${(rehearsals += 1)}`;
}

function next() {
  let order = readOrder();
  while (order[0] === "seed") {
    reseed(order[2]);
    if (!report("\nseeded " + order[1] + "\n")) exit(70);
    order = readOrder();
  }
  const verb = order[0];
  if (verb !== "exec" && verb !== "last" && verb !== "rehearse") exit(70);
  const dir = order[2];
  const number = numberFor(verb);
  const path = HOME + "/.main-" + number + ".ts";
  const rehearsal = verb === "rehearse" ? surroundings(number) : undefined;
  const execution = {
    isLast: verb === "last",
    rehearsal,
    token: order[1],
    path,
    saved: applyEnvironment(dir + "/env"),
    settled: false,
    imports: [],
    names: [],
    scope: undefined,
  };
  running = execution;
  process.exitCode = 0;
  Bun.main = process.argv[1] = path;
  let module;
  try {
    module = evaluate(readFileSync(dir + "/code", "utf8"), execution, number);
  } catch (error) {
    fail(error);
    return;
  }
  settle(module, execution);
}

async function settle(module, execution) {
  try {
    await module;
    execution.settled = true;
  } catch (error) {
    if (running === execution) fail(error);
  }
}

// What the next execution needs of the language, which a program may have taken away.
function probe() {
  const [verb, token] = "exec\ntoken".split("\n");
  const { names } = declarations("const probed = 1");
  if (`${verb} ${token} ${names}` !== "exec token probed") throw new Error("not what it was");
}

// Bun takes itself apart for longer than most programs run, and would take the processor from the agent, which has somebody to tell; so
// this waits until it is ended, or the agent is gone.
function reportLast(token, code) {
  if (report("\ndone " + token + " " + (code & 255) + "\n")) readSync(CONTROL_FD, received, 0, 1);
}

function finishLast(code) {
  if (running === null) return; // called to be compiled, which takes longer than all that it does
  const { token, path } = running;
  if (listenersOf("exit").length > 1) {
    // The program's own come first.
    on("exit", () => reportLast(token, process.exitCode));
    leave(code & 255);
  }
  reportLast(token, code);
  removeQuietly(path);
  exit(code & 255);
}

function finish(code) {
  if (running.isLast) finishLast(code);
  const { rehearsal, token, path, saved } = running;
  try {
    if (rehearsal === undefined) keepDeclarations(running);
    running = null;
    removeQuietly(path);
    restoreEnvironment(saved);
    if (rehearsal !== undefined) restoreSurroundings(rehearsal, path);
    markers = rehearsal !== undefined ? findMarkers() : undefined;
    restoreStreams();
    listen();
    probe();
    if (!report(`\ndone ${token} ${code & 255}\n`)) exit(code & 255);
  } catch {
    exit(code & 255); // a program broke what all of this stands on: then its end is the interpreter's
  }
  next();
}

function fail(error) {
  writeAll(2, `${inspect(error, { colors: false })}\n`);
  finish(1);
}

function uncaught(event, error) {
  // A program with a listener of its own has caught it.
  if (running === null || process.listenerCount(event) > 1) return;
  fail(error);
}

const listeners = {
  uncaughtException: (error) => uncaught("uncaughtException", error),
  unhandledRejection: (error) => uncaught("unhandledRejection", error),
  exit: () => {
    if (running !== null) removeQuietly(running.path);
  },
  beforeExit: () => {
    if (running === null) return;
    if (!running.settled) {
      writeAll(2, "Warning: a top-level await can never settle: nothing is left that could settle it\n");
      finish(UNSETTLED_EXIT_CODE);
      return;
    }
    finish(Number(process.exitCode));
  },
};

// A program may have removed them.
function listen() {
  for (const [event, listener] of Object.entries(listeners)) {
    if (!listenersOf(event).includes(listener)) on(event, listener);
  }
}

replaceStream("stdout", 1);
replaceStream("stderr", 2);
for (const name of readdirSync(HOME)) {
  if (MODULE_NAME.test(name)) removeQuietly(`${HOME}/${name}`); // an interpreter that was killed left it
}
// Exercised before the first program comes: a module is made of one, found, loaded and asked.
const first = { isLast: false, path: `${HOME}/.main-0.ts` };
await evaluate("const warm: number = await 1; export {};", first, 0);
removeQuietly(first.path);
void first.scope?.warm;
forgetModule(first.path, 0);
// So is what a copy does before anything else, and at the end: a function is compiled when it is first called.
finishLast(0);
reseed(Math.floor(Math.random() * 2 ** 32).toString(16).padStart(8, "0"));
listen();
report("ready\n");
next();
