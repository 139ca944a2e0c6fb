//! The commands of the shell itself, which begin with a colon.

use std::path::PathBuf;

use super::blocks;
use crate::{
    failure::Failure,
    files::{self, DownloadSpec, UploadSpec},
};

/// What `:help` says.
pub(super) const HELP: &str = "\
:upload LOCAL[:GUEST]    put a file or directory into the VM
:download GUEST[:LOCAL]  fetch a file or directory
:ls [PATH]               list files of the VM
:reset                   start again in a new VM
:help                    say this
:quit                    end (Ctrl-D)

GUEST and PATH are relative to /home/user. Ctrl-C interrupts a program, and once more ends it.
";

/// A command that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Upload(UploadSpec),
    Download(DownloadSpec),
    /// The directory, relative to the home directory.
    List(String),
    Reset,
    Quit,
}

/// The command in `block`, if it is one.
pub(super) fn parse(block: &str) -> Option<Result<Command, Failure>> {
    if !blocks::is_command(block) {
        return None;
    }
    let block = block.trim();
    let (name, argument) = block.split_once(char::is_whitespace).unwrap_or((block, ""));
    let argument = argument.trim();
    let understood = |parsed: Result<Command, String>| {
        parsed.map_err(|why| Failure::usage(format!("{name} {argument}: {why}"), ":help tells what there is"))
    };
    Some(match name {
        ":upload" => understood(UploadSpec::parse(&in_home(argument)).map(Command::Upload)),
        ":download" => understood(DownloadSpec::parse(argument).map(Command::Download)),
        ":ls" => understood(files::guest_path(argument).map(Command::List)),
        ":help" | ":h" if argument.is_empty() => Ok(Command::Help),
        ":reset" if argument.is_empty() => Ok(Command::Reset),
        ":quit" | ":q" | ":exit" if argument.is_empty() => Ok(Command::Quit),
        _ => Err(Failure::usage(format!("{block} is no command"), ":help tells what there is")),
    })
}

/// `~/` of this host, which no shell has replaced here.
fn in_home(argument: &str) -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match (argument.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest).display().to_string(),
        _ => argument.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(block: &str) -> Command {
        parse(block).expect("it is a command").expect("it is understood")
    }

    #[test]
    fn a_command_has_its_argument_with_all_its_blanks() {
        let spec = UploadSpec { local: "a b.txt".into(), guest: "c".into() };
        assert_eq!(understood(":upload  a b.txt:c "), Command::Upload(spec));
        assert_eq!(
            understood(":download a:b"),
            Command::Download(DownloadSpec { guest: "a".into(), local: "b".into() })
        );
        assert_eq!(
            (understood(":ls"), understood(":ls a/./b")),
            (Command::List(String::new()), Command::List("a/b".into()))
        );
        assert_eq!((understood(":q"), understood(":help")), (Command::Quit, Command::Help));
    }

    #[test]
    fn what_is_no_command_is_code_or_is_refused_with_the_remedy() {
        assert!(parse("print(1)").is_none());
        assert!(parse(": ${x:=1}").is_none());
        for wrong in [":wat", ":upload", ":download /etc/passwd", ":ls ../..", ":reset now"] {
            let failure = parse(wrong).expect("it looks like one").expect_err("it is wrong");
            assert!(failure.explain().remedy.is_some_and(|remedy| remedy.contains(":help")), "{wrong}");
        }
    }
}
