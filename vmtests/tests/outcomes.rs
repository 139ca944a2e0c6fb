//! Outcomes: what each way to end comes to, in each language, in a session and where a run differs. One VM serves many checks.

use exec_sandbox::{ErrorKind, Exit, Language};
use vmtests::{World, run, session::Session, stderr, stdout};

const OK: Exit = Exit::Code(0);

#[tokio::test]
async fn python_in_a_session() {
    let session = Session::start(Language::Python).await;
    python_ends(&session).await;
    python_is_python(&session).await;
    python_shares_its_definitions_with_workers(&session).await;
    python_runs_out_of_time(&session).await;
    session.check("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Exit::Signal(9), "", "").await;
    session.end().await;
}

async fn python_ends(session: &Session) {
    session.says("state = 1", "").await;
    // These keep the interpreter.
    session.check("1 / 0", Exit::Code(1), "", "ZeroDivisionError").await;
    session.check("x = = 1", Exit::Code(1), "", "SyntaxError").await;
    session.check("import sys; sys.exit(7)", Exit::Code(7), "", "").await;
    session.check("sys.exit('bye')", Exit::Code(1), "", "bye\n").await;
    session.says("print(state)", "1\n").await;
    let too_much = session.try_run("for _ in range(1100): print('x' * 999)", None).await.expect_err("it is too much");
    assert_eq!(too_much.kind(), ErrorKind::OutputLimit);
    let too_much = session.try_run("for _ in range(110): print('x' * 999, file=sys.stderr)", None).await;
    assert_eq!(too_much.expect_err("it is too much").kind(), ErrorKind::OutputLimit);
    session.says("print(state)", "1\n").await;
    // These do not.
    session.check("import os; os._exit(3)", Exit::Code(3), "", "").await;
    session.says("print('state' in globals()); state = 2", "False\n").await;
    session.check("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", Exit::Signal(10), "", "").await;
    session.says("print('state' in globals())", "False\n").await;
    session.check("import os; os.abort()", Exit::Signal(6), "", "").await;
}

async fn python_is_python(session: &Session) {
    let who = "import os, sys, getpass; print(os.getcwd(), os.environ['HOME'], os.getuid(), os.getgid(), getpass.getuser(), \
               repr(sys.stdin.read()))";
    session.says(who, "/home/user /home/user 1000 1000 user ''\n").await;
    session.says("import asyncio\nprint(await asyncio.sleep(0, 'awaited'))", "awaited\n").await;
    session.says("def inner():\n    raise ValueError('why')  # the line", "").await;
    let outcome = session.run("\ninner()").await;
    let said = stderr(&outcome);
    assert!(
        said.contains("line 2, in inner") && said.contains("# the line") && said.contains("line 2, in <module>"),
        "{said}"
    );
    assert!(!said.contains("/run/") && !said.contains("python.py"), "{said}");
    session.says("print('x = 5', file=open('mine.py', 'w'))", "").await;
    session.says("import mine; print(mine.x)", "5\n").await;
    let request = exec_sandbox::ExecRequest {
        env: vec![("GREETING".into(), "hi".into())],
        ..exec_sandbox::ExecRequest::new("from __future__ import annotations\nprint(os.environ['GREETING'])")
    };
    assert_eq!(stdout(&session.vm().execute(request).await.expect("it runs")), "hi\n");
    session.says("print('GREETING' in os.environ)", "False\n").await;
    session.says("import subprocess; child = subprocess.Popen(['sleep', '1000'])", "").await;
    session.says("print(child.poll()); child.kill(); print(child.wait())", "None\n-9\n").await;
    session.says("import atexit; atexit.register(print, 'not yet')", "").await;
}

async fn python_shares_its_definitions_with_workers(session: &Session) {
    let define = "import multiprocessing\nclass Point:\n    def __init__(self, x): self.x = x\n\
                  def double(point): return Point(2 * point.x)\nprint('cloudpickle' in sys.modules)";
    session.says(define, "False\n").await;
    for method in ["fork", "spawn", "forkserver"] {
        let program = format!(
            "with multiprocessing.get_context('{method}').Pool(1) as pool:\n    \
             points = pool.map(double, [Point(1), Point(2)])\n    \
             print([point.x for point in points], all(type(point) is Point for point in points))"
        );
        session.says(&program, "[2, 4] True\n").await;
    }
}

async fn python_runs_out_of_time(session: &Session) {
    session.says("state = 3", "").await;
    // What is printed by then has left, although nobody flushed it.
    let outcome = session.run_briefly("print('one')\nwhile True: pass").await;
    assert_eq!((outcome.exit, outcome.exit.code(), stdout(&outcome).as_str()), (Exit::TimedOut, -1, "one\n"));
    assert!(stderr(&outcome).contains("timeout"), "{}", stderr(&outcome));
    session.says("print('state' in globals())", "False\n").await;
    let outcome = session
        .run_briefly("import signal, sys, time\nsignal.signal(15, lambda *a: sys.exit(42))\ntime.sleep(99)")
        .await;
    assert_eq!(outcome.exit, Exit::Code(42), "{}", stderr(&outcome));
    let outcome =
        session.run_briefly("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(9)").await;
    assert_eq!(outcome.exit, Exit::TimedOut);
    session.says("print('fresh')", "fresh\n").await;
}

#[tokio::test]
async fn javascript_in_a_session() {
    let session = Session::start(Language::JavaScript).await;
    session
        .says("const one: number = 1; let count = 0; function bump() { return ++count } globalThis.state = 2", "")
        .await;
    session.says("class Point { x = 3 }\nimport { basename } from 'node:path'", "").await;
    session.check("throw new Error('why') // the line", Exit::Code(1), "", "// the line").await;
    session.check("const x = = 1", Exit::Code(1), "", "const x = = 1").await;
    session.check("process.exitCode = 6; console.log('end')", Exit::Code(6), "end\n", "").await;
    session.check("Promise.reject(new Error('lost'))", Exit::Code(1), "", "lost").await;
    session.check("setTimeout(() => { throw new Error('late') }, 1)", Exit::Code(1), "", "late").await;
    session
        .says("count = 4; console.log(one, bump(), count, state, new Point().x, basename('/a/b'))", "1 5 5 2 3 b\n")
        .await;
    let flood = "for (let i = 0; i < 1100; i++) console.log('x'.repeat(999))";
    assert_eq!(session.try_run(flood, None).await.expect_err("it is too much").kind(), ErrorKind::OutputLimit);
    session
        .says(
            "setTimeout(() => console.log('later', one), 5); console.log(await Promise.resolve('now'))",
            "now\nlater 1\n",
        )
        .await;
    session.says("require('fs').writeFileSync('./mine.ts', 'export const mine: number = 7')", "").await;
    session.says("import { mine } from './mine'; console.log(mine, require('./mine').mine)", "7 7\n").await;
    let who = "console.log(process.cwd(), process.env.HOME, process.getuid(), process.getgid(), require('os').userInfo().username, \
               require('fs').readFileSync(0).length)";
    session.says(who, "/home/user /home/user 1000 1000 user 0\n").await;
    let background = "const child = require('child_process').spawn('sleep', ['1000'], { stdio: 'ignore', detached: true }); child.unref()";
    session.says(background, "").await;
    session.says("console.log(process.kill(child.pid, 0))", "true\n").await;
    session.check("console.log('out'); process.exit(5)", Exit::Code(5), "out\n", "").await;
    session.says("console.log(typeof one, typeof state)", "undefined undefined\n").await;
    session.check("process.kill(process.pid, 'SIGUSR2'); while (true) {}", Exit::Signal(12), "", "").await;
    let outcome = session.run_briefly("console.log('begun'); setInterval(() => {}, 1000)").await;
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (Exit::TimedOut, "begun\n"));
    session.says("console.log('fresh')", "fresh\n").await;
    session.check("process.kill(process.pid, 'SIGKILL'); while (true) {}", Exit::Signal(9), "", "").await;
    session.end().await;
}

#[tokio::test]
async fn bash_in_a_session() {
    let session = Session::start(Language::Raw).await;
    session.says("x=5; f() { echo \"f $1\"; }; cd /tmp", "").await;
    session.check("no-such-command", Exit::Code(127), "", "line 1: no-such-command").await;
    session.check("if true; fi", Exit::Code(2), "", "syntax error").await;
    session.check("(exit 9)", Exit::Code(9), "", "").await;
    session.says("f $x; pwd", "f 5\n/tmp\n").await;
    let flood = session.try_run("head -c 1000001 /dev/zero", None).await.expect_err("it is too much");
    assert_eq!(flood.kind(), ErrorKind::OutputLimit);
    session.says("sleep 1000 & f again", "f again\n").await;
    session.says("kill -0 $! && echo alive; kill $!; wait $! 2>/dev/null; echo $?", "alive\n143\n").await;
    session.says("cat; cat <(echo substituted)", "substituted\n").await;
    session.check("#!/usr/bin/python3\nimport sys; print(sys.argv[1:]); sys.exit(4)", Exit::Code(4), "[]\n", "").await;
    session.check("trap 'echo bye' EXIT; (exit 2)", Exit::Code(2), "bye\n", "").await;
    session.says("echo $x", "5\n").await;
    session.check("echo out; exit 3", Exit::Code(3), "out\n", "").await;
    session
        .says(
            "echo ${x-none}; pwd; echo $HOME; id -un; id -u; id -g",
            "none\n/home/user\n/home/user\nuser\n1000\n1000\n",
        )
        .await;
    session.check("kill -USR1 $$; sleep 9", Exit::Signal(10), "", "").await;
    session.check("x=1; set -e; false; echo never", Exit::Code(1), "", "").await;
    session.says("echo ${x-none}", "none\n").await;
    let outcome = session.run_briefly("x=1; echo begun; sleep 99").await;
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (Exit::TimedOut, "begun\n"));
    let outcome = session.run_briefly("trap 'exit 41' TERM; sleep 99").await;
    assert_eq!(outcome.exit, Exit::Code(41));
    session.says("echo ${x-none}", "none\n").await;
    session.check("kill -KILL $$; sleep 9", Exit::Signal(9), "", "").await;
    session.end().await;
}

#[tokio::test]
async fn the_end_of_a_run_is_the_end_of_a_script() {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let programs = [
        (
            Language::Python,
            "import atexit, sys\natexit.register(print, 'bye')\nprint('hi')\nsys.exit(7)",
            Exit::Code(7),
            "hi\nbye\n",
        ),
        (
            Language::Python,
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('t'))).start()",
            OK,
            "t\n",
        ),
        (
            Language::JavaScript,
            "process.on('exit', (code) => console.log('bye', code)); setTimeout(() => console.log('hi'), 5); process.exitCode = 7",
            Exit::Code(7),
            "hi\nbye 7\n",
        ),
        (Language::Raw, "trap 'echo bye $?' EXIT; echo hi; (exit 7)", Exit::Code(7), "hi\nbye 7\n"),
    ];
    for (language, code, exit, out) in programs {
        let outcome = run(&world, &scheduler, language, code).await;
        assert_eq!((outcome.exit, stdout(&outcome).as_str()), (exit, out), "{code}\n{}", stderr(&outcome));
    }
    scheduler.close().await.expect("nothing is left");
}
