//! `sbx shell` fed by a pipe: what blocks share, and how it ends.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use vmtests::World;

fn shell(world: &World, args: &[&str], script: &str) -> Output {
    let mut child = world
        .sbx()
        .arg("shell")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sbx starts");
    child.stdin.take().expect("it is piped").write_all(script.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn blocks_share_what_the_interpreter_holds_in_each_language() {
    let world = World::new();
    let scripts = [
        ("python", "x = 20\ndef f(y):\n    z = y + 1\n\n    return x + z\nprint(f(21))\n"),
        ("javascript", "let x = 20\nfunction f(y) {\n  return x + y + 1\n}\nconsole.log(f(21))\n"),
        ("raw", "x=20\nf() {\n  echo $((x + $1 + 1))\n}\nf 21\n"),
    ];
    for (language, script) in scripts {
        let output = shell(&world, &["-l", language], script);
        let shown = (output.status.code(), text(&output.stdout));
        assert_eq!(shown, (Some(0), "42\n".into()), "{language}: {}", text(&output.stderr));
    }
    world.assert_empty(world.vms());
}

#[test]
fn the_last_failure_is_the_exit_code_and_what_follows_it_is_executed() {
    let world = World::new();
    let output = shell(&world, &["-l", "raw"], "(exit 3)\n(exit 4)\necho after\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(4), "after\n"), "{}", text(&output.stderr));
    let output = shell(&world, &[], ":wat\nprint('after')\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), "after\n"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(":help"), "{}", text(&output.stderr));
}

#[test]
fn a_reset_forgets_and_quitting_executes_nothing_more() {
    let world = World::new();
    let output = shell(&world, &[], "x = 1\n:reset\nprint('x' in globals())\n:quit\nprint('never')\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "False\n"), "{}", text(&output.stderr));
    world.assert_empty(world.vms());
}

#[test]
fn an_execution_that_ends_with_137_ends_the_vm_and_the_next_has_a_new_one() {
    let world = World::new();
    let output = shell(&world, &["-l", "raw"], "x=kept\nexit 137\necho \"<$x>\"\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(137), "<>\n"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the VM is gone"), "{}", text(&output.stderr));
    world.assert_empty(world.vms());
}

#[test]
fn files_go_in_are_listed_and_come_out() {
    let (world, files) = (World::new(), tempfile::tempdir().expect("a temporary directory"));
    let path = |name: &str| files.path().join(name).display().to_string();
    std::fs::write(path("in"), "content").expect("it can be written");
    let script = format!(
        ":upload {}:second\nimport shutil\nshutil.copy('second', 'third')\n:ls\n:download third:{}\n",
        path("in"),
        path("out")
    );
    let output = shell(&world, &["--upload", &path("in")], &script);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let listed = text(&output.stdout);
    assert!(["in", "second", "third"].iter().all(|name| listed.contains(&format!("  {name}\n"))), "{listed}");
    assert_eq!(std::fs::read_to_string(path("out")).expect("it came out"), "content");
}
