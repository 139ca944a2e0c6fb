//! Interpreters: one long-lived process for each language, and the private socket on which it takes executions.
//!
//! Completion never travels on the program's own output. The agent says `exec <token> <directory>`, the wrapper in the interpreter
//! answers `done <token> <code>`; the token is drawn anew for each execution, so nothing that an earlier program left behind can
//! answer for a later one. `last` and `rehearse` instead of `exec` are for a program that has the role; an interpreter that has answered
//! for a last one takes no other, and mostly ends with its machine. In a machine that is a copy of another it says `seed <token> <seed>`
//! before anything else, and hears `seeded <token>` before it says more. The process's death is the other end of an execution, and the only one that
//! needs no wrapper.

mod control;
mod recipe;

use std::{
    collections::VecDeque,
    io,
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use exec_sandbox_wire::{Language, limits};
use rustix::{
    process::{Pid, Signal},
    rand::GetRandomFlags,
};

pub(crate) use control::{Control, Report, Said, Token};
pub(crate) use recipe::install;

use crate::{
    cgroup::UserGroup,
    output::{Pipe, Streams},
    random::Seed,
    reaper::{Child, Exit, Reaper},
    spawn::{self, Launch, LaunchError},
};

/// Where a wrapper finds the control socket: out of the way of whatever a program opens. It marks it close-on-exec at once.
pub(crate) const CONTROL_FD: RawFd = 1000;

/// Of what a failed interpreter said, so much is reported.
const MAX_LAST_WORDS_BYTES: usize = 1024;

/// A running interpreter. Dropping it ends its process group.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) process: Process,
    pub(crate) control: Control,
    pub(crate) stdout: Pipe,
    pub(crate) stderr: Pipe,
    /// How many processes the kernel had killed for memory when it was started.
    pub(crate) oom_kills: u64,
    /// Of the seeds that it was given and has not answered for, the oldest first.
    unanswered: VecDeque<Token>,
}

/// The interpreter's process.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    ended: Option<Exit>,
}

/// Why there is no interpreter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The image has none for this language.
    #[error("the image has no {}", program.display())]
    Missing {
        /// Where it would be.
        program: PathBuf,
    },
    /// Its process did not start.
    #[error("cannot start the interpreter")]
    Launch { source: LaunchError },
    /// Its pipes cannot be watched.
    #[error("cannot watch the interpreter's pipes")]
    Watch { source: io::Error },
    /// It ended before it was ready.
    #[error("{} ended ({how:?}) before it was ready: {last_words}", program.display())]
    Ended {
        /// The interpreter.
        program: PathBuf,
        /// How.
        how: Exit,
        /// The end of what it wrote to standard error.
        last_words: String,
    },
    /// It said something else than that it is ready, or nothing for too long.
    #[error("{} did not become ready: {last_words}", program.display())]
    NotReady {
        /// The interpreter.
        program: PathBuf,
        /// The end of what it wrote to standard error.
        last_words: String,
    },
}

impl Interpreter {
    /// Starts one and waits until it has shown that it works.
    pub(crate) async fn start(language: Language, reaper: &Reaper, group: &UserGroup) -> Result<Self, StartError> {
        let recipe = recipe::of(language);
        let program = Path::new(recipe.program);
        if !program.exists() {
            return Err(StartError::Missing { program: program.to_path_buf() });
        }
        let (arguments, variables) = (recipe.arguments, recipe.variables);
        let oom_kills = group.oom_kills();
        let launch = Launch { program, arguments, variables, group: group.procs() };
        let (child, started) = reaper.spawn(&launch).map_err(|source| StartError::Launch { source })?;
        let process = Process { child, ended: None };
        let watch = |source| StartError::Watch { source };
        let mut interpreter = Self {
            process,
            control: Control::new(started.control).map_err(watch)?,
            stdout: Pipe::new(started.stdout).map_err(watch)?,
            stderr: Pipe::new(started.stderr).map_err(watch)?,
            oom_kills,
            unanswered: VecDeque::new(),
        };
        interpreter.become_ready(program).await?;
        Ok(interpreter)
    }

    /// Whether it can take an execution: alive, and silent since the last one.
    pub(crate) fn is_usable(&mut self) -> bool {
        self.process.has_ended().is_none() && self.control.is_silent()
    }

    /// Gives it a seed of its own. It can take no execution before it has answered.
    pub(crate) async fn reseed(&mut self) -> io::Result<()> {
        let (token, seed) = (draw_token()?, Seed::draw()?);
        self.control.reseed(token, &seed).await?;
        self.unanswered.push_back(token);
        Ok(())
    }

    /// Whether it answers that it has taken each seed that it was given, and nothing else. Cancelling it loses nothing.
    pub(crate) async fn has_taken_its_seeds(&mut self) -> bool {
        while let Some(token) = self.unanswered.front() {
            let seeded = tokio::select! {
                biased;
                said = self.control.hear() => said == Said::Report(Report::Seeded { token: token.to_string() }),
                _ = self.process.end() => false,
            };
            if !seeded {
                return false;
            }
            self.unanswered.pop_front();
        }
        true
    }

    /// Throws away what background processes wrote since the last execution: it belongs to none.
    pub(crate) fn forget_output(&mut self) {
        self.stdout.forget();
        self.stderr.forget();
    }

    /// Takes over what the program that ran had written by now.
    pub(crate) fn take_output(&mut self, streams: &Streams) {
        self.stdout.drain(&streams.stdout);
        self.stderr.drain(&streams.stderr);
    }

    /// One whose wrapper is a test's, in the process group of a process that does nothing.
    #[cfg(test)]
    pub(crate) fn pretend(child: Child, control: std::os::fd::OwnedFd) -> io::Result<Self> {
        let process = Process { child, ended: None };
        let pipe = || -> io::Result<Pipe> {
            let (reader, _) = rustix::pipe::pipe()?;
            rustix::io::ioctl_fionbio(&reader, true)?;
            Pipe::new(reader)
        };
        let (control, unanswered) = (Control::new(control)?, VecDeque::new());
        Ok(Self { process, control, stdout: pipe()?, stderr: pipe()?, oom_kills: 0, unanswered })
    }

    async fn become_ready(&mut self, program: &Path) -> Result<(), StartError> {
        let said = tokio::select! {
            biased;
            said = self.control.hear() => Some(said),
            how = self.process.end() => {
                let last_words = self.last_words();
                return Err(StartError::Ended { program: program.to_path_buf(), how, last_words });
            }
            () = tokio::time::sleep(limits::INTERPRETER_START) => None,
        };
        match said {
            Some(Said::Report(Report::Ready)) => Ok(()),
            _ => Err(StartError::NotReady { program: program.to_path_buf(), last_words: self.last_words() }),
        }
    }

    fn last_words(&mut self) -> String {
        String::from_utf8_lossy(&self.stderr.last_waiting(MAX_LAST_WORDS_BYTES)).into_owned()
    }
}

impl Process {
    /// Its number, and its process group's.
    pub(crate) fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Waits for its end. May be asked again.
    pub(crate) async fn end(&mut self) -> Exit {
        if let Some(exit) = self.ended {
            return exit;
        }
        // The reaper lives as long as the agent, so the promise is kept.
        let exit = (&mut self.child.exit).await.unwrap_or(Exit::Signal(0));
        self.ended = Some(exit);
        exit
    }

    /// How it ended, if it has.
    fn has_ended(&mut self) -> Option<Exit> {
        if self.ended.is_none() {
            self.ended = self.child.exit.try_recv().ok();
        }
        self.ended
    }

    /// Sends its process group the signal with this number.
    pub(crate) fn signal(&mut self, number: i32) {
        if self.has_ended().is_none() {
            spawn::signal_group(self.child.pid, number);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL.as_raw());
    }
}

/// Draws a token.
pub(crate) fn draw_token() -> Result<Token, rustix::io::Errno> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    Ok(Token::new(bytes))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::{CommandExt as _, ExitStatusExt as _},
        process::Command,
    };

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn every_signal_is_sent_whether_or_not_it_has_a_name() {
        for number in [2, 31, 34, 64] {
            let mut sleep = Command::new("sleep").arg("10").process_group(0).spawn().expect("a process");
            let (tell, exit) = oneshot::channel();
            let mut process = Process { child: Child { pid: Pid::from_child(&sleep), exit }, ended: None };
            process.signal(number);
            let status = sleep.wait().expect("a child");
            // Its number may be another's from here on.
            tell.send(Exit::Signal(0)).expect("it is waited for");
            assert_eq!(status.signal(), Some(number));
        }
    }
}
