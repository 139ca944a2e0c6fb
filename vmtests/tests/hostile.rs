//! Hostile programs: after each of them the next execution in the same VM works and tells the truth, or the VM ends as the contract says.

use exec_sandbox::{Exit, Language, Outcome};
use vmtests::{session::Session, stderr, stdout};

/// How a hostile program may end, and what it may say, is its own business; that it ends with `exit` is checked where it is certain.
async fn attack(session: &Session, code: &str, exit: Option<Exit>) -> Outcome {
    let outcome = session.run(code).await;
    if let Some(exit) = exit {
        assert_eq!(outcome.exit, exit, "{code}\n{}\n{}", stdout(&outcome), stderr(&outcome));
    }
    session.check(truth(session.vm().language()), Exit::Code(3), "out\n", "err\n").await;
    outcome
}

/// Says something on either stream, and ends with a code that nothing else does.
fn truth(language: Language) -> &'static str {
    match language {
        Language::Python => "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)",
        Language::JavaScript => "console.log('out'); console.error('err'); process.exitCode = 3",
        Language::Raw => "echo out; echo err >&2; (exit 3)",
    }
}

const OK: Option<Exit> = Some(Exit::Code(0));

const PYTHON_FORGERIES: [(&str, Option<Exit>); 8] = [
    ("import os, sys\nos.write(1000, b'done ' + b'0' * 32 + b' 0\\n')\nsys.exit(9)", Some(Exit::Code(9))),
    (
        "for fd in os.listdir('/proc/self/fd'):\n    try: os.write(int(fd), b'\\ndone 0 0\\nready\\nexec')\n    except OSError: pass\nsys.exit(9)",
        Some(Exit::Code(9)),
    ),
    ("os.write(1000, b'x' * 100_000)\nsys.exit(9)", Some(Exit::Code(9))),
    (
        "import subprocess\nhunt = '''for fd in /proc/'''+str(os.getpid())+'''/fd/*; do echo done 0 0 > $fd; done 2>/dev/null; true'''\n\
         subprocess.run(['timeout', '1', 'bash', '-c', hunt])\nsys.exit(9)",
        Some(Exit::Code(9)),
    ),
    ("if os.fork() == 0:\n    sys.exit(5)\nos.wait()\nsys.exit(9)", Some(Exit::Code(9))),
    (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(1000)\n    os._exit(0)\nos.wait()",
        OK,
    ),
    ("import subprocess\nsubprocess.run('cat; read x; cat <&0', shell=True)", OK),
    ("os.close(1000)\nsys.exit(9)", Some(Exit::Code(9))),
];

const PYTHON_STREAMS: [(&str, Option<Exit>); 8] = [
    ("import os, sys\nfor fd in range(3): os.close(fd)", OK),
    ("for fd in range(3): os.dup2(os.open('/dev/null', os.O_RDWR), fd)", OK),
    ("sys.stdout.close(); sys.stderr.close(); sys.stdin.close()", OK),
    ("sys.stdout = sys.stderr = sys.__stdout__ = None; sys.stdin = 5", OK),
    ("os.mkfifo('/tmp/fifo')\nos.dup2(os.open('/tmp/fifo', os.O_RDWR), 1)\nprint('into the fifo')", OK),
    ("os.set_blocking(1, False)\nos.set_blocking(2, False)", OK),
    ("sys.stdout.buffer.write(b'\\xff\\xfe\\x80' * 1000)", OK),
    ("os.closerange(0, 2000)\nos._exit(4)", Some(Exit::Code(4))),
];

const PYTHON_SABOTAGE: [(&str, Option<Exit>); 14] = [
    (
        "import builtins, os, sys\nfor name in ('exec', 'eval', 'compile', 'open', 'isinstance', 'len'): setattr(builtins, name, None)",
        OK,
    ),
    ("os.write = os.read = os.getpid = os._exit = os.fstat = os.dup2 = os.environb = None", OK),
    ("import posix; posix._exit(0)", OK),
    ("import sys\nfor name in list(sys.modules): sys.modules[name] = None", OK),
    ("sys.modules.clear()", OK),
    ("import os, sys\nsys.settrace(lambda *a: 1 / 0)", OK),
    ("sys.setrecursionlimit(30)", OK),
    ("def deep(): deep()\ndeep()", Some(Exit::Code(1))),
    ("import ctypes; ctypes.string_at(0)", Some(Exit::Signal(11))),
    (
        "import atexit, sys, os\natexit.register(lambda: 1 / 0)\nclass Bad:\n    def __del__(self): raise ValueError\nbad = Bad(); del bad",
        OK,
    ),
    ("sys.excepthook = lambda *a: 1 / 0\n1 / 0", Some(Exit::Code(1))),
    ("os.kill(os.getpid(), 2)\nwhile True: pass", Some(Exit::Code(130))),
    ("import signal, time\nsignal.signal(14, lambda *a: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)", OK),
    ("class Evil(BaseException):\n    def __str__(self): raise Evil\nraise Evil", Some(Exit::Code(1))),
];

#[tokio::test]
async fn python_is_attacked() {
    let session = Session::start(Language::Python).await;
    for (code, exit) in PYTHON_FORGERIES.into_iter().chain(PYTHON_STREAMS).chain(PYTHON_SABOTAGE) {
        attack(&session, code, exit).await;
    }
    let flood = "import os\nfor _ in range(12): os.write(1, b'x' * 65536); os.write(2, b'y' * 8000)";
    let outcome = attack(&session, flood, OK).await;
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (12 * 65536, 96_000), "not a byte is lost");
    let timed = [
        "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()",
        "import os\nos.closerange(0, 3)\nwhile True: os.getpid()",
        "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(0.1)",
    ];
    for code in timed {
        assert_eq!(session.run_briefly(code).await.exit, Exit::TimedOut, "{code}");
        session.check(truth(Language::Python), Exit::Code(3), "out\n", "err\n").await;
    }
    // Who would keep the agent busy is killed, and 137 ends the VM.
    let babble = "import os\nwhile True: os.write(1000, b'done 0 0\\n' * 100)";
    assert_eq!(session.run(babble).await.exit, Exit::Signal(9));
    session.end().await;
}

const JAVASCRIPT: [(&str, Option<Exit>); 16] = [
    ("require('fs').writeSync(1000, 'done 0 0\\nready\\njunk'); process.exitCode = 9", Some(Exit::Code(9))),
    (
        "const fs = require('fs'); for (const fd of fs.readdirSync('/proc/self/fd').map(Number)) {\n\
         try { if (fd !== 1000 && !fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith('pipe')) continue;\n\
         fs.writeSync(fd, '\\ndone 0 0\\n') } catch {} }\nprocess.exitCode = 9",
        Some(Exit::Code(9)),
    ),
    ("require('fs').closeSync(1000); process.exitCode = 9", Some(Exit::Code(9))),
    ("require('child_process').execSync('setsid sleep 1000 >/dev/null 2>&1 & cat')", OK),
    ("process.stdout.end(); process.stderr.destroy()", OK),
    ("for (const fd of [0, 1, 2]) require('fs').closeSync(fd)", OK),
    ("for (const fd of [1, 2]) { const fs = require('fs'); fs.closeSync(fd); fs.openSync('/dev/null', 'w') }", OK),
    ("process.stdout.write(Buffer.from([0xff, 0xfe, 0x80]))", OK),
    ("function deep() { deep() }\ndeep()", Some(Exit::Code(1))),
    ("process.removeAllListeners()", OK),
    ("process.on('exit', () => { throw new Error('at the exit') })", OK),
    ("globalThis.Promise = globalThis.Buffer = globalThis.Symbol = null", OK),
    ("for (const name of Object.keys(Bun)) { try { delete Bun[name] } catch {} }", OK),
    ("const fs = require('fs'); for (const name of Object.keys(fs)) { try { fs[name] = null } catch {} }", OK),
    ("process.reallyExit = process.exit = process.on = process.listeners = null", OK),
    ("Array.prototype.map = Array.prototype[Symbol.iterator] = String.prototype.split = null", None),
];

#[tokio::test]
async fn javascript_is_attacked() {
    let session = Session::start(Language::JavaScript).await;
    for (code, exit) in JAVASCRIPT {
        attack(&session, code, exit).await;
    }
    for code in
        ["while (true) {}", "require('fs').closeSync(1); for (;;) await new Promise((done) => setTimeout(done, 100))"]
    {
        assert_eq!(session.run_briefly(code).await.exit, Exit::TimedOut, "{code}");
        session.check(truth(Language::JavaScript), Exit::Code(3), "out\n", "err\n").await;
    }
    session.end().await;
}

const BASH: [(&str, Option<Exit>); 19] = [
    ("echo done 0 0 >&1000", Some(Exit::Code(1))),
    ("for fd in /proc/$$/fd/*; do echo done 0 0; done >/dev/null; (exit 9)", Some(Exit::Code(9))),
    (
        "for fd in /proc/self/fd/*; do fd=${fd##*/}; echo 'done 0 0' >&$fd; done 2>/dev/null; (exit 9)",
        Some(Exit::Code(9)),
    ),
    ("exec >/dev/null 2>&1", OK),
    ("exec 0<&- 1>&- 2>&-", OK),
    ("for fd in /proc/self/fd/*; do fd=${fd##*/}; exec {fd}>&-; done 2>/dev/null; true", OK),
    (
        "for f in read source printf return unset set trap export mapfile declare builtin; do eval \"$f() { echo liar; }\"; done",
        OK,
    ),
    ("exit 4", None),
    ("set -eux; true", OK),
    ("set -n", OK),
    ("set -f -k -o posix; shopt -s failglob nocasematch; true", OK),
    ("trap 'echo trapped' DEBUG ERR RETURN EXIT; true", OK),
    ("enable -n builtin; true", OK),
    ("exec true", OK),
    ("IFS=done; readonly IFS; true", None),
    ("cat; read -r x; while read -r y; do :; done; true", OK),
    ("printf '\\377\\376\\0\\200'", OK),
    ("(setsid sleep 1000 >/dev/null 2>&1 &) & wait; true", OK),
    ("mkfifo /tmp/fifo; exec 1<>/tmp/fifo; echo into the fifo", OK),
];

#[tokio::test]
async fn bash_is_attacked() {
    let session = Session::start(Language::Raw).await;
    for (code, exit) in BASH {
        attack(&session, code, exit).await;
    }
    let outcome = session.run_briefly("b() { b | b & b; }; b").await;
    assert_ne!(outcome.exit, Exit::Code(0));
    session.check(truth(Language::Raw), Exit::Code(3), "out\n", "err\n").await;
    // Signals to everything that this user may signal: the shell itself is among it.
    session.check("sh -c 'kill -TERM -1'; sleep 9", Exit::Signal(15), "", "").await;
    session.check(truth(Language::Raw), Exit::Code(3), "out\n", "err\n").await;
    session.check("sh -c 'kill -KILL -1'; sleep 9", Exit::Signal(9), "", "").await;
    session.end().await;
}
