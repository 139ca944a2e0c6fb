//! The shell's wrapper.

use crate::harness::{End, Wrapper};

fn shell() -> Wrapper {
    Wrapper::start("bash", &["--norc", "--noprofile"], "raw.sh")
}

fn died_with(end: &End) -> Option<i32> {
    match end {
        End::Died(status) => status.code(),
        End::Done(code) => panic!("{code} was reported"),
    }
}

#[test]
fn the_last_commands_code_is_the_programs() {
    let mut shell = shell();
    shell.run("echo $((40 + 2)) $0 $#").is_clean(0, "42 bash 0\n");
    shell.run("true; (exit 9)").is_clean(9, "");
    shell.run("echo hi; false").is_clean(1, "hi\n");
}

#[test]
fn variables_functions_and_directory_are_there_for_the_next_program() {
    let mut shell = shell();
    shell.run("x=5; f() { echo \"f $1\"; }; cd /").is_clean(0, "");
    shell.run("f $x; pwd").is_clean(0, "f 5\n/\n");
}

#[test]
fn a_program_that_exits_ends_the_shell_with_its_code() {
    assert_eq!(died_with(&shell().run("echo hi; exit 5").end), Some(5));
    assert_eq!(died_with(&shell().run("set -e\nfalse\necho never").end), Some(1));
    let outcome = shell().run("trap 'echo bye' EXIT; exit 8");
    assert_eq!((died_with(&outcome.end), &outcome.stdout[..]), (Some(8), "bye\n"));
}

#[test]
fn a_missing_command_is_named_with_its_line() {
    let outcome = shell().run("echo one\nno-such-command\n");
    assert_eq!(outcome.end, End::Done(127));
    assert!(outcome.stderr.contains("code: line 2: no-such-command: command not found"), "{}", outcome.stderr);
}

#[test]
fn a_syntax_error_is_code_2_and_bashs_own_words() {
    let mut shell = shell();
    let outcome = shell.run("if true; then\necho a\nfi fi\n");
    assert_eq!(outcome.end, End::Done(2));
    assert!(outcome.stderr.contains("line 3: syntax error near unexpected token `fi'"), "{}", outcome.stderr);
    shell.run("echo still here").is_clean(0, "still here\n");
}

#[test]
fn stray_loop_words_do_not_reach_the_wrappers_loop() {
    let mut shell = shell();
    for program in ["break", "continue", "for i in 1 2; do continue 2; done"] {
        assert_eq!(shell.run(program).end, End::Done(0), "{program}");
    }
    shell.run("echo still here").is_clean(0, "still here\n");
}

#[test]
fn options_and_traps_that_would_show_the_wrapper_end_with_their_program() {
    let mut shell = shell();
    assert_eq!(shell.run("set -eux; trap 'echo debug' DEBUG; true").end, End::Done(0));
    shell.run("false; echo \"${undefined-none}\"").is_clean(0, "none\n");
}

#[test]
fn an_exit_trap_runs_at_the_end_of_its_program_and_only_there() {
    let mut shell = shell();
    shell.run("trap 'echo \"it'\\''s $?\"' EXIT; (exit 3)").is_clean(3, "it's 3\n");
    shell.run("echo next").is_clean(0, "next\n");
}

#[test]
fn the_last_programs_exit_trap_finds_its_options_and_the_shell_ends_when_the_agent_is_gone() {
    let program = "shopt -u expand_aliases sourcepath\ntrap 'shopt expand_aliases sourcepath' EXIT\nfalse";
    let (outcome, code) = shell().run_last_and_leave(program);
    outcome.is_clean(1, "expand_aliases \toff\nsourcepath     \toff\n");
    assert_eq!(code, Some(1));
    shell().run_last("echo last; (exit 4)").is_clean(4, "last\n");
    let mut rehearsed = shell();
    rehearsed.rehearse("true").is_clean(0, "");
    rehearsed.run("true").is_clean(0, "");
    rehearsed.run_last("trap 'echo one\necho two' EXIT").is_clean(0, "one\ntwo\n");
}

#[test]
fn no_child_inherits_the_control_socket() {
    let outcome = shell().run("for fd in /proc/self/fd/*; do readlink $fd; done; ls -l /proc/self/fd");
    assert!(!outcome.stdout.contains("socket"), "{}", outcome.stdout);
}

#[test]
fn a_program_for_another_interpreter_is_run_by_it() {
    let mut shell = shell();
    shell.run("#!/usr/bin/env python3\nimport sys\nprint(len(sys.argv))\nsys.exit(4)").is_clean(4, "1\n");
    shell.run("#!/bin/bash -e\nfalse\necho never").is_clean(1, "");
    shell.run("#!/usr/bin/env bash\nkept=yes").is_clean(0, "");
    shell.run("echo $kept").is_clean(0, "yes\n");
}

#[test]
fn variables_are_there_for_their_execution() {
    let mut shell = shell();
    shell.run("hidden=before").is_clean(0, "");
    shell.run_with("printenv A hidden", "A=b=c  d\0hidden=now\0not-a-name=1\0").is_clean(0, "b=c  d\nnow\n");
    shell.run("echo ${A-none} $hidden").is_clean(0, "none before\n");
}

#[test]
fn a_variable_that_an_execution_hid_is_given_to_children_if_it_was_before() {
    let mut shell = shell();
    shell.run("plain=1; export given=2; readonly fixed=3; list=(4 5); declare -i number=6").is_clean(0, "");
    let variables = "plain=a\0given=b\0fixed=c\0list=d\0number=7\0";
    shell.run_with("printenv plain given number; echo $fixed ${list[*]}", variables).is_clean(0, "a\nb\n7\n3 d 5\n");
    let left = "-- plain=\"1\"\n-x given=\"2\"\n-r fixed=\"3\"\n-a list=([0]=\"4\" [1]=\"5\")\n-i number=\"6\"\n";
    shell.run("declare -p plain given fixed list number | sed 's/^declare //'").is_clean(0, left);
}

#[test]
fn a_program_that_becomes_another_is_over_when_that_is() {
    assert_eq!(died_with(&shell().run("exec sh -c 'exit 6'").end), Some(6));
}

#[test]
fn streams_that_a_program_closed_or_redirected_are_whole_for_the_next_one() {
    let mut shell = shell();
    for program in ["exec >/dev/null 2>&1", "exec 1>&- 2>&- 0<&-", "exec >/dev/null; trap 'echo hidden' EXIT"] {
        assert_eq!(shell.run(program).end, End::Done(0), "{program}");
        let outcome = shell.run("echo out; echo err >&2; wc -c");
        assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), ("out\n0\n", "err\n"), "{program}");
    }
}

#[test]
fn functions_in_the_names_of_what_the_wrapper_calls_do_not_reach_it() {
    let mut shell = shell();
    let liars = "for f in read source printf exit return unset set trap export mapfile declare test '[' builtin; do\n\
                 eval \"function $f { echo liar; }\"\ndone";
    shell.run(liars).is_clean(0, "");
    shell.run("read; builtin echo fine; exit 3").is_clean(0, "liar\nfine\nliar\n");
    shell.run("unset -f read exit trap; (exit 3)").is_clean(3, "");
    shell.run("trap 'echo child' CHLD; /bin/true").is_clean(0, "child\n");
    shell.run("command true").is_clean(0, "");
}

#[test]
fn whatever_breaks_the_shell_its_code_is_the_programs() {
    for program in
        ["set -n", "enable -n builtin; (exit 0)", "for f in /proc/self/fd/*; do f=${f##*/}; exec {f}>&-; done; true"]
    {
        assert_eq!(died_with(&shell().run(program).end), Some(0), "{program}");
    }
}

#[test]
fn options_that_do_not_show_the_wrapper_are_kept() {
    let mut shell = shell();
    let (options, first) =
        ("shopt -p; set -o", "shopt -u sourcepath; shopt -s expand_aliases shift_verbose; alias six='echo 6'");
    let before = shell.run(options).stdout;
    shell.run(options).is_clean(0, &before);
    shell.run(first).is_clean(0, "");
    shell.run("six; shopt -q shift_verbose; shopt -q sourcepath").is_clean(1, "6\n");
}

#[test]
fn a_rehearsal_runs_as_a_program_does_and_leaves_no_trace() {
    let mut shell = shell();
    let state = "{ declare -p | grep -v -e ' BASH' -e __exec_sandbox -e RANDOM -e SECONDS -e EPOCH -e ' _=' -e PIPESTATUS; declare -F; trap -p; hash; alias; shopt -p; pwd; set +o; jobs; } | sed \"s|$HOME|~|\"";
    let expected = self::shell().run(state).stdout;
    let rehearsal = "x=5; export A=c B=d; f() { :; }; trap 'echo bye' EXIT; set -e; shopt -s extglob; cd /; alias l=ls; echo $A$x; ls >/dev/null; exit 7";
    for _ in 0..2 {
        shell.rehearse_with(rehearsal, "A=b\0").is_clean(7, "c5\nbye\n");
    }
    shell.run(state).is_clean(0, &expected);
    let outcome = shell.rehearse("no-such-command");
    assert_eq!(outcome.end, End::Done(127));
    shell.rehearse("#!/usr/bin/env python3\nprint(6)").is_clean(0, "6\n");
    assert_eq!(shell.home(), [""; 0]);
}

#[test]
fn after_the_same_rehearsal_shells_draw_alike_only_with_the_same_seed() {
    let draw = |seed| {
        let mut shell = shell();
        shell.rehearse("echo $RANDOM >/dev/null").is_clean(0, "");
        shell.reseed(seed);
        shell.run("echo $RANDOM $RANDOM $RANDOM").stdout
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let mut shell = shell();
    shell.run("unset RANDOM").is_clean(0, "");
    shell.reseed(1);
    shell.run("echo ${RANDOM-none}").is_clean(0, "none\n");
}
