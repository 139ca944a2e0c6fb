//! The JavaScript wrapper.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{End, Wrapper};

/// The image's Bun, as it was fetched, unpacked once; else the machine's.
fn bun() -> Option<PathBuf> {
    let cache = env::var_os("EXEC_SANDBOX_CACHE_DIR").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache/exec-sandbox")))?;
    let fetched = fs::read_dir(cache.join("assets/downloads")).ok().into_iter().flatten().flatten();
    let archive = fetched.map(|entry| entry.path()).find(|path| is_bun(path));
    if let Some(archive) = archive {
        return Some(unpack(&archive));
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join("bun")).find(|program| program.exists())
}

fn is_bun(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("bun-") && name.ends_with(".tgz")
}

fn unpack(archive: &Path) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(archive.file_stem().expect("it has a name"));
    let program = place.join("package/bin/bun");
    if !program.exists() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(archive).arg("-C").arg(fresh.path()).arg("package/bin/bun");
        assert!(tar.status().expect("tar is installed").success(), "{} can be unpacked", archive.display());
        // Another test may have been faster.
        let _ = fs::rename(fresh.keep(), &place);
    }
    program
}

/// Runs `test` with an interpreter, or says that there is none.
fn with_javascript(test: impl FnOnce(Wrapper)) {
    match bun() {
        Some(bun) => {
            test(Wrapper::start(&bun.to_string_lossy(), &["--no-install"], "javascript.js"));
        }
        #[expect(clippy::print_stderr, reason = "a test that is left out is visible")]
        None => eprintln!("left out: there is no bun"),
    }
}

#[test]
fn what_a_program_declares_is_there_for_the_next_one() {
    with_javascript(|mut js| {
        let program = "import { basename as base } from 'node:path'; import * as os from 'node:os'; import fs from 'node:fs';\n\
                       const one: number = 1; let count = 0; var { a, b: [c] } = { a: 2, b: [3] };\n\
                       function bump() { return ++count } class Point { x = 4 } enum Colour { Red = 5 }\nbump();";
        js.run(program).is_clean(0, "");
        let next = "console.log(one, count, a, c, new Point().x, Colour.Red, base('/x/y'), typeof os.cpus, typeof fs.openSync)";
        js.run(next).is_clean(0, "1 1 2 3 4 5 y function function\n");
        js.run("count = 41; console.log(bump(), count)").is_clean(0, "42 42\n");
        let outcome = js.run("one = 2");
        assert_eq!(outcome.end, End::Done(1), "a constant stays one");
        js.run("const one = 'again'; console.log(one)").is_clean(0, "again\n");
        js.run("console.log(one, await Promise.resolve(count))").is_clean(0, "again 42\n");
    });
}

#[test]
fn a_program_that_fails_leaves_what_it_had_declared() {
    with_javascript(|mut js| {
        js.run("let before = 'old', after = 'kept'").is_clean(0, "");
        let outcome = js.run("let before = 'new';\n\n  throw new Error('why'); // here\nlet after = 'never'");
        assert_eq!(outcome.end, End::Done(1));
        assert!(outcome.stderr.contains("why") && outcome.stderr.contains(".main-2.ts:3:"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("exec_sandbox"), "{}", outcome.stderr);
        js.run("console.log(before, after)").is_clean(0, "new kept\n");
    });
}

#[test]
fn what_a_program_that_failed_had_left_to_do_is_done_in_the_next_one() {
    with_javascript(|mut js| {
        let program = "let ticks = 0; const timer = setInterval(() => { console.log('tick'); if (++ticks === 2) clearInterval(timer) }, 1);\n\
                       throw new Error('why')";
        let outcome = js.run(program);
        assert_eq!((outcome.end, &outcome.stdout[..]), (End::Done(1), ""), "{}", outcome.stderr);
        js.run("").is_clean(0, "tick\ntick\n");
    });
}

#[test]
fn modules_of_either_kind_and_syntax_errors_are_what_they_are_in_a_file() {
    with_javascript(|mut js| {
        js.run("module.exports = { a: 1 }; console.log(require.main === module, typeof __dirname)")
            .is_clean(0, "true string\n");
        js.run("require('fs').writeFileSync('./mine.ts', 'export const mine: number = 6')").is_clean(0, "");
        js.run("import { mine } from './mine'; console.log(mine, require('./mine').mine)").is_clean(0, "6 6\n");
        js.run("console.log(mine)").is_clean(0, "6\n");
        js.run("import type { Foo } from './types'; export const exported = 7").is_clean(0, "");
        js.run("console.log(exported)").is_clean(0, "7\n");
        let outcome = js.run("const x = = 1");
        assert_eq!(outcome.end, End::Done(1));
        assert!(outcome.stderr.contains("const x = = 1"), "{}", outcome.stderr);
        for import in ["import mine2 from './mine2'", "import { two } from './mine2'", "import * as all from './mine2'"]
        {
            js.run("require('fs').writeFileSync('./mine2.ts', 'export default 1; export const two = 2')")
                .is_clean(0, "");
            js.run(import).is_clean(0, "");
        }
        js.run("console.log(mine2, two, all.two)").is_clean(0, "1 2 2\n");
        js.run("// a comment without an end of line").is_clean(0, "");
    });
}

#[test]
fn a_home_that_takes_no_file_keeps_no_program_from_running() {
    with_javascript(|mut js| {
        // In the place of each program's file: what a full disk does too, and any user can bring about.
        let fill = "const fs = require('fs'); fs.writeFileSync('mine.ts', 'export const mine: number = 6'); let count = 1;\n\
                    for (let i = 2; i < 9; i++) fs.mkdirSync(`.main-${i}.ts`)";
        js.run(fill).is_clean(0, "");
        let program = "import { mine } from './mine'; const sum: number = mine + count;\n\
                       console.log(sum, require('./mine').mine, __dirname === process.env.HOME); setTimeout(() => console.log('later'), 5)";
        js.run(program).is_clean(0, "7 6 true\nlater\n");
        js.run("count = sum; console.log(count, mine) // here").is_clean(0, "7 6\n");
        let outcome = js.run("interface Unused { x: 1 }\n\n  throw new Error('why');");
        assert_eq!(outcome.end, End::Done(1));
        assert!(outcome.stderr.contains("why") && outcome.stderr.contains(".main-4.ts:3:"), "{}", outcome.stderr);
        let outcome = js.run("const x = = 1");
        assert_eq!(outcome.end, End::Done(1));
        assert!(outcome.stderr.contains("const x = = 1"), "{}", outcome.stderr);
        assert_eq!(js.run("await new Promise(() => {})").end, End::Done(13));
        js.run("for (let i = 2; i < 8; i++) fs.rmdirSync(`.main-${i}.ts`)").is_clean(0, "");
        js.run_last("console.log(count, typeof module); process.exitCode = 3").is_clean(3, "7 undefined\n");
    });
}

#[test]
fn an_execution_is_over_when_nothing_is_left_to_do() {
    with_javascript(|mut js| {
        js.run("setTimeout(() => console.log('later'), 20); console.log('now')").is_clean(0, "now\nlater\n");
        js.run("process.exitCode = 3").is_clean(3, "");
        js.run("").is_clean(0, "");
        let outcome = js.run("Promise.reject(new Error('lost'))");
        assert_eq!(outcome.end, End::Done(1));
        assert_eq!(js.run("await new Promise(() => {})").end, End::Done(13));
        js.run("process.on('exit', (code) => console.log('exit', code))").is_clean(0, "");
        let outcome = js.run_last("console.log('last'); process.exitCode = 4");
        // It is reported once the listeners have run, and before the process is gone.
        assert_eq!((outcome.end, &outcome.stdout[..]), (End::Done(4), "last\nexit 4\n"));
    });
}

#[test]
fn the_last_program_is_a_script_of_either_kind_and_its_interpreter_ends_when_the_agent_is_gone() {
    with_javascript(|js| {
        let program = "const one: number = 1; const path = require('node:path'); exports.x = one;\n\
                       console.log(module.exports.x, path.basename(__filename).endsWith('.ts')); process.exitCode = 3";
        let (outcome, code) = js.run_last_and_leave(program);
        outcome.is_clean(3, "1 true\n");
        assert_eq!(code, Some(3));
    });
    with_javascript(|js| {
        let program = "import { basename } from 'node:path'; const two = await Promise.resolve(2); console.log(basename('/a/b'), two)";
        js.run_last(program).is_clean(0, "b 2\n");
    });
}

#[test]
fn streams_that_a_program_closed_are_whole_for_the_next_one() {
    with_javascript(|mut js| {
        for program in [
            "process.stdout.end(); process.stderr.destroy()",
            "const f = require('fs'); f.closeSync(1); f.closeSync(2)",
            "const f = require('fs'); f.closeSync(0); f.closeSync(1); f.openSync('/dev/null', 'w'); f.openSync('/dev/null', 'w')",
        ] {
            assert_eq!(js.run(program).end, End::Done(0), "{program}");
            js.run("console.log('out'); process.stdout.write('more\\n')").is_clean(0, "out\nmore\n");
            assert_eq!(js.run("console.error('err')").stderr, "err\n", "{program}");
        }
    });
}

#[test]
fn a_program_that_replaces_what_it_can_reach_changes_its_own_world_only() {
    for program in [
        "globalThis.Promise = globalThis.Buffer = globalThis.Symbol = globalThis.Object = null",
        "process.removeAllListeners(); for (const k of Object.keys(Bun)) { try { delete Bun[k] } catch {} }",
        "process.exit = process.reallyExit = process.on = () => {}",
        "for (const k of Object.keys(require('fs'))) require('fs')[k] = () => { throw new Error('no') }",
    ] {
        with_javascript(|mut js| {
            let outcome = js.run(program);
            if let End::Died(status) = outcome.end {
                assert_eq!(status.code(), Some(0), "{program}: {}", outcome.stderr);
                return;
            }
            assert_eq!(outcome.end, End::Done(0), "{program}: {}", outcome.stderr);
            js.run("console.log(1)").is_clean(0, "1\n");
        });
    }
}

#[test]
fn the_control_socket_is_not_inherited_and_junk_on_it_means_nothing() {
    with_javascript(|mut js| {
        let list = "console.log(require('child_process').execSync('ls /proc/self/fd').toString().includes('1000'))";
        js.run(list).is_clean(0, "false\n");
        js.run("require('fs').writeSync(1000, 'done 0 0\\nready\\njunk'); process.exitCode = 5").is_clean(5, "");
    });
}

#[test]
fn a_rehearsal_runs_as_a_program_does_and_leaves_no_trace() {
    with_javascript(|mut js| {
        let rehearsal = "const one: number = 1; globalThis.two = one + 1; let three = await Promise.resolve(3);\n\
                         process.env.B = 'left'; process.chdir('/'); setTimeout(() => console.log(one, two, three, process.env.A), 5);\n\
                         console.error('err'); process.exitCode = 6;";
        for _ in 0..2 {
            let outcome = js.rehearse_with(rehearsal, "A=b\0");
            assert_eq!((&outcome.end, &outcome.stdout[..], &outcome.stderr[..]), (&End::Done(6), "1 2 3 b\n", "err\n"));
        }
        let outcome = js.rehearse("\nthrow new Error('why'); // here");
        assert_eq!(outcome.end, End::Done(1));
        assert!(outcome.stderr.contains("why"), "{}", outcome.stderr);
        let first = "import { basename } from 'node:path'; console.log(typeof one, typeof two, typeof three, process.env.A, process.env.B,\n\
                     process.cwd() === process.env.HOME, basename(process.argv[1]), basename(Bun.main), Object.keys(require.cache).map((p) => basename(p)),\n\
                     Object.getOwnPropertyNames(globalThis).length)";
        with_javascript(|mut unrehearsed| {
            let outcome = unrehearsed.run(first);
            assert_eq!(outcome.end, End::Done(0), "{}", outcome.stderr);
            js.run(first).is_clean(0, &outcome.stdout);
        });
        assert_eq!(js.home(), [""; 0]);
        js.run("let one = 'mine'").is_clean(0, "");
        js.rehearse("console.log(one); const two = 2").is_clean(0, "mine\n");
        js.run("console.log(one, typeof two)").is_clean(0, "mine undefined\n");
    });
}

#[test]
fn after_the_same_rehearsal_interpreters_draw_alike_only_with_the_same_seed() {
    let draw = |seed| {
        let mut drawn = String::new();
        with_javascript(|mut js| {
            js.rehearse("Math.random()").is_clean(0, "");
            js.reseed(seed);
            drawn = js.run("console.log(Math.random(), Math.random())").stdout;
        });
        drawn
    };
    let first = draw(1);
    assert_eq!(first, draw(1));
    assert!(first.is_empty() || first != draw(2), "{first}");
}

#[test]
fn a_seed_is_taken_whether_or_not_the_rehearsal_has_used_a_generator() {
    with_javascript(|mut js| {
        for (rehearsal, markers) in [("", 0), ("crypto.randomUUID()", 1)] {
            js.rehearse(rehearsal).is_clean(0, "");
            js.reseed(7);
            let count = "console.log(require('fs').readFileSync('/proc/self/smaps', 'latin1').split('\\n').filter((l) => /^VmFlags.* wf/.test(l)).length)";
            js.rehearse(count).is_clean(0, &format!("{markers}\n"));
        }
        let uuid = js.run("console.log(crypto.randomUUID())").stdout;
        js.reseed(7);
        assert_ne!(
            js.run("console.log(crypto.randomUUID())").stdout,
            uuid,
            "programs have run, and it is taken all the same"
        );
    });
}
