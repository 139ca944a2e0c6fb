//! The Python wrapper.

use std::os::unix::process::ExitStatusExt as _;

use crate::harness::{End, Wrapper};

fn python() -> Wrapper {
    Wrapper::start("python3", &[], "python.py")
}

#[test]
fn a_program_runs_in_a_main_of_its_own() {
    let outcome = python().run("import sys\nprint(__name__, sorted(k for k in globals() if k[0] != '_'), sys.argv)");
    outcome.is_clean(0, "__main__ ['sys'] ['main.py']\n");
}

#[test]
fn what_a_program_defines_is_there_for_the_next_one() {
    let mut python = python();
    python.run("def double(x): return 2 * x").is_clean(0, "");
    python.run("import __main__\nprint(__main__.double(21))").is_clean(0, "42\n");
}

#[test]
fn each_way_to_end_has_its_code_and_keeps_the_interpreter() {
    let mut python = python();
    for (program, code) in [
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit(-1)", 255),
        ("import sys; sys.exit(True)", 1),
        ("exit(3)", 3),
        ("raise SystemExit(256 + 4)", 4),
    ] {
        python.run(program).is_clean(code, "");
    }
    let outcome = python.run("import sys; sys.exit('bye')");
    assert_eq!((outcome.end, &outcome.stderr[..]), (End::Done(1), "bye\n"));
    assert_eq!(python.run("raise KeyboardInterrupt").end, End::Done(130));
    assert_eq!(python.run("1 / 0").end, End::Done(1));
    python.run("print('still here')").is_clean(0, "still here\n");
}

#[test]
fn a_program_that_ends_the_process_ends_it_with_its_code() {
    let End::Died(status) = python().run("import os; os._exit(3)").end else { panic!("it was reported") };
    assert_eq!(status.code(), Some(3));
    let End::Died(status) = python().run("import os; os.kill(os.getpid(), 15)").end else { panic!("it was reported") };
    assert_eq!(status.signal(), Some(15));
}

#[test]
fn a_traceback_shows_the_programs_lines_and_no_frame_of_the_wrapper() {
    let mut python = python();
    python.run("def inner():\n    raise ValueError('why')  # here").is_clean(0, "");
    let outcome = python.run("\n\ninner()");
    assert_eq!(outcome.end, End::Done(1));
    for line in
        ["File \"main-2.py\", line 3, in <module>", "File \"main.py\", line 2, in inner", "# here", "ValueError: why"]
    {
        assert!(outcome.stderr.contains(line), "{line} is not in\n{}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("wrappers"), "{}", outcome.stderr);
}

#[test]
fn a_syntax_error_is_shown_as_python_shows_it() {
    let outcome = python().run("x = 1\nx = = 2");
    assert_eq!(outcome.end, End::Done(1));
    assert!(outcome.stderr.starts_with("  File \"main.py\", line 2\n"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("SyntaxError"), "{}", outcome.stderr);
}

#[test]
fn await_works_at_the_top_and_its_loop_is_kept() {
    let mut python = python();
    let first = "import asyncio\nlock = asyncio.Event()\ntask = asyncio.ensure_future(lock.wait())\nawait asyncio.sleep(0)\nprint(1)";
    python.run(first).is_clean(0, "1\n");
    python.run("lock.set()\nprint(await task)").is_clean(0, "True\n");
    let outcome = python.run("async def f():\n    raise KeyError('k')\nawait f()");
    assert_eq!(outcome.end, End::Done(1));
    assert!(!outcome.stderr.contains("asyncio"), "the loop's frames are not the program's:\n{}", outcome.stderr);
}

#[test]
fn variables_are_there_for_their_execution_and_future_imports_still_come_first() {
    let mut python = python();
    let program = "from __future__ import annotations\nimport os\nprint(os.environ['A'], os.environ.get('HOME'))";
    python.run_with(program, "A=b=c\0HOME=/nowhere\0").is_clean(0, "b=c /nowhere\n");
    python.run("print(os.environ.get('A'), os.environ['HOME'] == '/nowhere')").is_clean(0, "None False\n");
}

#[test]
fn a_printed_line_leaves_at_once() {
    python().run("import os\nprint('abc')\nassert os.fstat(1).st_size == 4").is_clean(0, "abc\n");
}

#[test]
fn a_forked_copy_never_answers_for_the_program() {
    let mut python = python();
    let program = "import os, time\nif os.fork() == 0:\n    print('child')\nelse:\n    os.wait()\n    print('parent')";
    python.run(program).is_clean(0, "child\nparent\n");
    let child_fails = "if os.fork() == 0:\n    raise SystemExit(9)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))";
    python.run(child_fails).is_clean(0, "9\n");
}

#[test]
fn a_program_is_not_over_before_its_threads_are() {
    let mut python = python();
    let thread = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()";
    python.run(thread).is_clean(0, "thread\n");
    let pool = "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\n\
                for i in range(4):\n    pool.submit(lambda: (time.sleep(0.05), print('work\\n', end='')))";
    python.run(pool).is_clean(0, "work\nwork\nwork\nwork\n");
    python.run("print(pool.submit(lambda: 'kept').result())").is_clean(0, "kept\n");
    python.run("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()").is_clean(0, "");
}

#[test]
fn a_program_that_closes_every_descriptor_still_ends_with_its_code() {
    let End::Died(status) = python().run("import os, sys\nos.closerange(3, 2000)\nsys.exit(6)").end else {
        panic!("it was reported through a closed socket")
    };
    assert_eq!(status.code(), Some(6));
}

#[test]
fn a_program_cannot_hide_its_end_behind_its_streams() {
    let mut python = python();
    for program in [
        "import sys; sys.stdout.close()",
        "sys.stderr = None",
        "sys.stdout = 5",
        "sys.stdout.detach()",
        "import os; os.close(1)",
        "os.closerange(0, 3)",
        "for fd in range(3): os.dup2(os.open('/dev/null', os.O_RDWR), fd)",
    ] {
        assert_eq!(python.run(program).end, End::Done(0), "{program}");
        let outcome = python.run("print('out'); print('err', file=sys.stderr); print(len(sys.stdin.read()))");
        assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), ("out\n0\n", "err\n"), "{program}");
    }
}

#[test]
fn a_program_that_replaces_what_it_can_reach_changes_its_own_world_only() {
    let mut python = python();
    for program in [
        "import builtins\nfor name in ('exec', 'eval', 'compile', 'open', 'isinstance', 'len', 'str', 'type', 'BaseException'):\n    \
         setattr(builtins, name, None)",
        "import os\nos.write = os.read = os.getpid = os._exit = os.fstat = os.dup2 = None",
        "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
        "sys.modules.clear()",
        "sys.settrace(lambda *a: 1 / 0)",
        "sys.setrecursionlimit(30)",
        "sys.excepthook = sys.__excepthook__ = None",
    ] {
        assert_eq!(python.run(program).end, End::Done(0), "{program}");
        python.run("print('fine')").is_clean(0, "fine\n");
    }
    let outcome = python.run("1 / 0");
    assert_eq!(outcome.end, End::Done(1));
    assert!(outcome.stderr.contains("ZeroDivisionError"), "{}", outcome.stderr);
}

#[test]
fn junk_on_the_control_socket_means_nothing() {
    let mut python = python();
    let program = "import os, sys\nos.write(1000, b'done 0 0\\nready\\njunk')\nsys.exit(6)";
    python.run(program).is_clean(6, "");
    // A copy of the program cannot take the next execution for itself.
    let thief = "if os.fork() == 0:\n    import select\n    try: os.read(1000, 100)\n    except OSError: pass\n    os._exit(0)\nos.wait()";
    python.run(thief).is_clean(0, "");
}

#[test]
fn functions_registered_with_atexit_run_after_the_last_program_and_not_before() {
    let mut python = python();
    let program = "import atexit\natexit.register(print, 'bye')\nclass Noisy:\n    def __del__(self): print('deleted')\nnoisy = Noisy()";
    python.run(program).is_clean(0, "");
    let outcome = python.run_last("import sys\nprint('last')\nsys.exit(7)");
    // It is reported once all of that has run, and before the process is gone.
    assert_eq!((outcome.end, &outcome.stdout[..]), (End::Done(7), "last\nbye\ndeleted\n"), "{}", outcome.stderr);
}

#[test]
fn after_the_last_program_the_interpreter_ends_with_its_code_when_the_agent_is_gone() {
    let (outcome, code) = python().run_last_and_leave("import sys\nsys.exit(7)");
    outcome.is_clean(7, "");
    assert_eq!(code, Some(7));
}

#[test]
fn a_program_and_variables_of_any_length_are_read_whole() {
    let mut python = python();
    for length in [65_535, 65_536, 65_537, 131_072, 200_000] {
        let tail = "\nimport os\nprint(len(os.environ['LONG']))";
        let program = format!("#{}{tail}", "x".repeat(length - tail.len() - 1));
        let variables = format!("LONG={}\0", "y".repeat(length - 6));
        python.run_with(&program, &variables).is_clean(0, &format!("{}\n", length - 6));
    }
}

#[test]
fn what_the_last_program_leaves_ends_as_a_scripts_does() {
    // A buffer that is not flushed, what refers to itself, and a name that is marked as private, which goes first.
    let program = "class Noisy:\n    def __init__(self, name): self.name, self.me = name, self\n    def __del__(self): print(self.name)\n\
                   class Plain:\n    def __del__(self): print('plain')\n\
                   noisy, plain, _private = Noisy('cycle'), Plain(), Plain()\n_private.__class__ = type('Private', (), {'__del__': lambda self: print('private')})\n\
                   buffer = open(1, 'w', closefd=False)\nbuffer.write('buffered\\n')";
    let outcome = python().run_last(program);
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((outcome.end, lines.first()), (End::Done(0), Some(&"private")), "{}", outcome.stderr);
    lines.sort_unstable();
    assert_eq!(lines, ["buffered", "cycle", "plain", "private"], "{}", outcome.stderr);
}

#[test]
fn workers_of_every_kind_run_what_the_program_defined() {
    let mut python = python();
    let define = "import multiprocessing\nclass Point:\n    def __init__(self, x): self.x = x\ndef double(p): return Point(2 * p.x)";
    python.run(define).is_clean(0, "");
    assert_eq!(
        python.run("import sys; sys.exit('cloudpickle' in sys.modules)").end,
        End::Done(0),
        "it is imported lazily"
    );
    for method in ["fork", "spawn", "forkserver"] {
        let program = format!(
            "with multiprocessing.get_context('{method}').Pool(2) as pool:\n    \
             later = lambda p: double(p)\n    \
             points = pool.map(double, [Point(1), Point(2)]) + pool.map(later, [Point(3)])\n    \
             print([p.x for p in points], all(type(p) is Point for p in points))"
        );
        python.run(&program).is_clean(0, "[2, 4, 6] True\n");
    }
}

#[test]
fn a_module_that_was_written_a_moment_ago_can_be_imported() {
    let mut python = python();
    python.run("try: import mine\nexcept ImportError: print('none')").is_clean(0, "none\n");
    python.run("with open('mine.py', 'w') as f: print('x = 5', file=f)").is_clean(0, "");
    python.run("import mine; print(mine.x)").is_clean(0, "5\n");
}

#[test]
fn the_control_socket_is_not_inherited() {
    let program = "import subprocess\nprint(subprocess.run(['ls', '/proc/self/fd'], capture_output=True, close_fds=False).stdout)";
    let outcome = python().run(program);
    assert!(!outcome.stdout.contains("1000"), "{}", outcome.stdout);
}

#[test]
fn a_rehearsal_runs_as_a_program_does_and_leaves_no_trace() {
    let mut python = python();
    let first = "import os, sys, threading\nprint(sorted(k for k in globals() if k[0] != '_'), sys.argv, sys.modules['__main__'].__dict__ is globals())\n\
                 print(os.environ.get('A'), os.environ.get('B'), os.getcwd() == os.environ['HOME'], len(os.listdir('/proc/self/fd')), threading.active_count())";
    let fds = Wrapper::start("python3", &[], "python.py").run(first).stdout;
    let rehearsal = "import __main__, asyncio, json, os, sys\nfrom os import environ as e\nclass Loop:\n    def __del__(self): print('gone')\n\
                     loop = Loop(); loop.me = loop\nasync def f(): return 5\n__main__.left = await f()\n\
                     print(left, e['A'], __name__, len(sys.argv))\nprint('err', file=sys.stderr)\n\
                     e['B'] = 'left'; os.chdir('/'); raise ValueError('why')  # here";
    for _ in 0..2 {
        let outcome = python.rehearse_with(rehearsal, "A=b\0");
        assert_eq!(
            (&outcome.end, &outcome.stdout[..]),
            (&End::Done(1), "5 b __main__ 1\ngone\n"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.starts_with("err\nTraceback"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("line 10, in <module>\n    e['B']"), "{}", outcome.stderr);
    }
    python.run(first).is_clean(0, &fds);
    let outcome = python.run(
        "import asyncio, sys\nassert 'json' in sys.modules\nasyncio.get_event_loop_policy().get_event_loop()\n1 / 0",
    );
    assert!(
        outcome.stderr.contains("File \"main-2.py\", line 4") && !outcome.stderr.contains("RuntimeError"),
        "{}",
        outcome.stderr
    );
    assert_eq!(python.home(), [""; 0]);
}

#[test]
fn a_rehearsal_between_programs_takes_nothing_from_them() {
    let mut python = python();
    python
        .run("import asyncio\nkept = asyncio.Event()\nawait asyncio.sleep(0)\nloop = asyncio.get_running_loop()")
        .is_clean(0, "");
    python.rehearse("kept = 0\nimport asyncio\nawait asyncio.sleep(0)").is_clean(0, "");
    python
        .run("assert asyncio.get_running_loop() is loop\nkept.set()\nprint(await kept.wait(), __name__)")
        .is_clean(0, "True __main__\n");
}

#[test]
fn after_the_same_rehearsal_interpreters_draw_alike_only_with_the_same_seed() {
    let draw = |seed| {
        let mut python = python();
        python.rehearse("import random\nrandom.seed(1)").is_clean(0, "");
        python.reseed(seed);
        python.run("import random; print(random.random(), random.getrandbits(64))").stdout
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_seed_imports_nothing_and_reaches_every_generator_that_is_there() {
    let mut python = python();
    let modules = "import sys\nprint(sorted(sys.modules))";
    let before = python.run(modules).stdout;
    python.reseed(3);
    python.run(modules).is_clean(0, &before);
    // What numpy would be told.
    let stand_in = "import sys, types, _ssl\nnumpy = types.ModuleType('numpy.random')\nnumpy.seed = lambda words: print(words)\n\
                    sys.modules['numpy.random'] = numpy";
    python.run(stand_in).is_clean(0, "");
    python.reseed(4);
    python.run("print('next')").is_clean(0, "next\n");
}
