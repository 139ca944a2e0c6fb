// The probes of `checks.txt` for JavaScript. The library puts the checks before this text, as CHECKS: pairs of an attempt and a control,
// each a list of words. A line of output is what came of one pair.
const fs = require("fs");
const os = require("os");
const path = require("path");
const { spawnSync } = require("child_process");
const { dlopen, read: memory } = require("bun:ffi");

const long = "i64";
const libc = dlopen("libc.so.6", {
  syscall: { args: [long, long, long, long, long, long, long], returns: long },
  __errno_location: { args: [], returns: "ptr" },
  strdup: { args: ["cstring"], returns: "ptr" },
}).symbols;
const names = Object.fromEntries(Object.entries(os.constants.errno).map(([name, number]) => [number, name]));

function argument(word) {
  if (!word.startsWith("@")) return BigInt(word.startsWith("-") ? Number(word) : word);
  return BigInt(libc.strdup(Buffer.from(word.slice(1) + "\0")));
}

const probes = {
  exists: (path) => void fs.lstatSync(path),
  read: (path) => {
    const file = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY);
    try {
      fs.readSync(file, Buffer.alloc(1));
    } finally {
      fs.closeSync(file);
    }
  },
  write: (path) => fs.closeSync(fs.openSync(path, fs.constants.O_WRONLY | fs.constants.O_NOCTTY)),
  create: (directory) => {
    const file = path.join(directory, ".posture");
    fs.closeSync(fs.openSync(file, "wx"));
    fs.unlinkSync(file);
  },
  list: (directory) => void fs.readdirSync(directory),
  run: (directory) => {
    const file = path.join(directory, ".posture-program");
    fs.writeFileSync(file, "#!/bin/true\n", { mode: 0o700 });
    try {
      const { error } = spawnSync(file);
      if (error) throw error;
    } finally {
      fs.unlinkSync(file);
    }
  },
  call: (...words) => {
    const given = words.map(argument);
    while (given.length < 7) given.push(0n);
    if (BigInt(libc.syscall(...given)) === -1n) return names[memory.i32(libc.__errno_location())] ?? "error";
  },
  kill: (pid, number) => void process.kill(pid === "self" ? process.pid : Number(pid), Number(number)),
  word: (path, wanted) => (fs.readFileSync(path, "utf8").split(/\s+/).includes(wanted) ? "ok" : "no"),
  mounted: (path, option) => {
    const mounts = fs.readFileSync("/proc/self/mountinfo", "utf8").trim().split("\n");
    const words = mounts.map((line) => line.split(" ")).filter((words) => words[4] === path).at(-1);
    return words && `${words[5]},${words.at(-1)}`.split(",").includes(option) ? "ok" : "no";
  },
  status: (key) => "=" + fs.readFileSync("/proc/self/status", "utf8").match(new RegExp(`^${key}:\\s*(\\S+)`, "m"))[1],
};

function answer([kind, ...words]) {
  try {
    return probes[kind](...words) ?? "ok";
  } catch (error) {
    return error.code ?? error.name;
  }
}

for (const [attempt, control] of JSON.parse(CHECKS)) console.log(answer(attempt), answer(control));
