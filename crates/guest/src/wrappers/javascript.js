// The JavaScript interpreter: reads executions from the control socket, runs each as a module, reports its exit code.
//
// Between executions it blocks in read(2), so an idle Bun runs no timers and no collector. An execution lasts until its module is
// evaluated and the event loop is empty, which is when `beforeExit` fires; an exception that nobody catches ends it at once.
// The module is a real file in the home directory while it runs, so relative imports, node_modules, __dirname, CommonJS and the
// source lines in stack traces are what they would be for a script that lies there.
//
// Bun writes to a pipe asynchronously through process.stdout and would lose what is not written when the program exits; Node writes
// synchronously. So both streams are replaced, on first use, by ones that do.

const fs = require("node:fs");
const { Writable } = require("node:stream");

const CONTROL_FD = 1000;
const HOME = "/home/user";
// What Node answers when a top-level await can never settle.
const UNSETTLED_EXIT_CODE = 13;
const MODULE_NAME = /^\.main-[0-9]+\.ts$/;

const { readSync, writeSync, readFileSync, writeFileSync, unlinkSync, readdirSync } = fs;
const inspect = Bun.inspect;
const env = process.env;
const wait = new Int32Array(new SharedArrayBuffer(4));

let executions = 0;
let running = null; // { token, path, saved, settled }

function writeAll(fd, text) {
  let bytes = Buffer.from(text);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(writeSync(fd, bytes));
    } catch (error) {
      // Bun may have made the pipe non-blocking: wait for the reader.
      if (error.code !== "EAGAIN") return;
      Atomics.wait(wait, 0, 0, 1);
    }
  }
}

function replaceStream(name, fd) {
  let stream;
  Object.defineProperty(process, name, {
    configurable: true,
    enumerable: true,
    get() {
      if (stream === undefined || stream.writableEnded) {
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

function readLine() {
  const byte = Buffer.alloc(256);
  let line = "";
  for (;;) {
    const count = readSync(CONTROL_FD, byte, 0, byte.length);
    if (count === 0) process.exit(0); // the agent is gone
    line += byte.latin1Slice(0, count);
    if (line.endsWith("\n")) return line.slice(0, -1);
  }
}

function applyEnvironment(path) {
  const saved = [];
  for (const pair of readFileSync(path, "utf8").split("\0")) {
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

function removeQuietly(path) {
  try {
    unlinkSync(path);
  } catch {
    // The program removed or hid it: its own business.
  }
}

function next() {
  const [verb, token, dir] = readLine().split(" ");
  if (verb !== "exec") process.exit(70);
  executions += 1;
  const path = `${HOME}/.main-${executions}.ts`;
  const execution = { token, path, saved: applyEnvironment(`${dir}/env`), settled: false };
  running = execution;
  process.exitCode = 0;
  Bun.main = process.argv[1] = path;
  try {
    writeFileSync(path, readFileSync(`${dir}/code`));
  } catch (error) {
    fail(error);
    return;
  }
  import(path).then(
    () => {
      execution.settled = true;
    },
    (error) => {
      if (running === execution) fail(error);
    },
  );
}

function finish(code) {
  const { token, path, saved } = running;
  running = null;
  removeQuietly(path);
  restoreEnvironment(saved);
  writeAll(CONTROL_FD, `done ${token} ${code & 255}\n`);
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

process.on("uncaughtException", (error) => uncaught("uncaughtException", error));
process.on("unhandledRejection", (error) => uncaught("unhandledRejection", error));
process.on("exit", () => {
  if (running !== null) removeQuietly(running.path);
});
process.on("beforeExit", () => {
  if (running === null) return;
  if (!running.settled) {
    writeAll(2, "Warning: a top-level await can never settle: nothing is left that could settle it\n");
    finish(UNSETTLED_EXIT_CODE);
    return;
  }
  finish(Number(process.exitCode));
});

replaceStream("stdout", 1);
replaceStream("stderr", 2);
for (const name of readdirSync(HOME)) {
  if (MODULE_NAME.test(name)) removeQuietly(`${HOME}/${name}`); // an interpreter that was killed left it
}
await import("data:text/javascript,export{}");
writeAll(CONTROL_FD, "ready\n");
next();
