//! What a program must not find in a guest is tried in every language, in one that was booted and in a copy of it; and what ordinary
//! programs do goes on working there.

use exec_sandbox::{Language, RunRequest, posture};
use vmtests::{World, stderr, stdout};

/// Every check holds, in the guest that is booted and saved as in its copy.
async fn holds(language: Language) {
    let world = World::without_snapshots();
    let scheduler = world.scheduler().await;
    for origins in [&["cold"][..], &["snapshot", "blank"]] {
        let posture = posture::examine(&scheduler, language).await.expect("it runs");
        assert!(origins.contains(&posture.origin), "{}", posture.origin);
        assert!(posture.holds(), "{posture:#?}");
        assert!(posture.passed() >= 150, "{} checks were made", posture.passed());
    }
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn python_finds_nothing_to_attack() {
    holds(Language::Python).await;
}

#[tokio::test]
async fn javascript_finds_nothing_to_attack() {
    holds(Language::JavaScript).await;
}

#[tokio::test]
async fn bash_finds_nothing_to_attack() {
    holds(Language::Raw).await;
}

const PYTHON: &str = "
import asyncio, concurrent.futures, mmap, multiprocessing, os, shutil, signal, socket, sqlite3, subprocess, tempfile, threading

from multiprocessing import shared_memory

def square(x):
    return x * x

with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(square, range(8))) == 140
with multiprocessing.Pool(2) as pool:
    assert pool.map(square, range(4)) == [0, 1, 4, 9]
shared = shared_memory.SharedMemory(create=True, size=4096)
shared.close()
shared.unlink()
lock = multiprocessing.Lock()
with lock:
    pass
left, right = socket.socketpair()
left.send(b'x')
assert right.recv(1) == b'x'
os.close(os.memfd_create('x'))
os.pidfd_open(os.getpid())
assert os.get_terminal_size is not None and os.openpty()
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.setpriority(os.PRIO_PROCESS, 0, 1)
signal.pthread_kill(threading.get_ident(), 0)
async def main():
    process = await asyncio.create_subprocess_exec('true')
    return await process.wait()
assert asyncio.run(main()) == 0
with tempfile.TemporaryDirectory() as directory:
    sqlite3.connect(os.path.join(directory, 'd')).execute('create table t (x)')
    subprocess.run(['git', 'init', '-q', directory], check=True)
    with open(os.path.join(directory, 'f'), 'w+b') as file:
        file.truncate(4096)
        mmap.mmap(file.fileno(), 4096)[0] = 1
    shutil.copyfile(os.path.join(directory, 'f'), '/home/user/f')
for command in ('curl --version', 'uv --version', 'ps', 'df', 'nproc', 'bun -e 1', 'jq -n 1'):
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
print('done')
";

const JAVASCRIPT: &str = "
const { Worker } = require('worker_threads');
const { spawnSync } = require('child_process');
const os = require('os');
const answer = await new Promise((resolve, reject) => {
  const worker = new Worker(`require('worker_threads').parentPort.postMessage(6 * 7)`, { eval: true });
  worker.on('message', resolve);
  worker.on('error', reject);
});
if (answer !== 42 || os.cpus().length < 1 || os.totalmem() < 1e8) throw new Error('no worker');
const server = Bun.serve({ port: 0, fetch: () => new Response('served') });
if ((await (await fetch(server.url)).text()) !== 'served') throw new Error('no server');
server.stop(true);
if (spawnSync('true').status !== 0 || (await Bun.$`echo shell`.text()) !== 'shell\\n') throw new Error('no children');
await Bun.write('/tmp/f', 'x'.repeat(1e6));
if (os.networkInterfaces().lo === undefined) throw new Error('no interfaces');
console.log('done');
";

#[tokio::test]
async fn ordinary_programs_miss_nothing() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    for (language, code) in [(Language::Python, PYTHON), (Language::JavaScript, JAVASCRIPT)] {
        let outcome = scheduler.run(RunRequest::new(language, code)).await.expect("it runs");
        assert_eq!((stdout(&outcome).as_str(), stderr(&outcome).as_str()), ("done\n", ""), "{language}");
    }
    scheduler.close().await.expect("nothing is left");
}
