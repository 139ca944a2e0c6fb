//! Child processes: started from one long-lived thread, watched and ended through their pidfd.
//!
//! The child is the program itself, never a wrapper: signals, accounting and death concern it and nothing in between. What is
//! owned here is one process; which process, and what its death means, is the supervisor's.

mod calls;
mod cgroup;
mod child;
mod confinement;
mod handle;
mod jail;
mod landlock;
mod nameless;
mod namespaces;
mod pidfd;
mod spawn;
mod spawner;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::process::Signal;
use tokio::sync::watch;

pub(crate) use cgroup::VmCgroup;
pub(crate) use confinement::{Confinement, Layer, Missing, Subject};
pub use handle::{Process, ProcessUsage};
pub(crate) use jail::Jail;
pub(crate) use nameless::nameless_file;
pub(crate) use pidfd::{ChildUsage, Ended};
pub(crate) use spawn::{Command, SpawnError};

use pidfd::PidFd;

/// A process of ours, and the control group that was made for it. Dropped alive, it is killed and reaped.
#[derive(Debug)]
pub(crate) struct Child {
    pidfd: PidFd,
    /// How it ended, once it has been reaped, for its observers too.
    ended: watch::Sender<Option<Ended>>,
    /// Dropped after the process has been reaped.
    group: Option<VmCgroup>,
}

impl Child {
    /// Starts `command`.
    pub(crate) async fn spawn(command: Command) -> Result<Self, SpawnError> {
        let (spawned, group) = spawner::spawn(command).await?;
        let pidfd = PidFd::register(spawned)?;
        Ok(Self { pidfd, ended: watch::Sender::new(None), group })
    }

    /// The process id, which stays this process's until it has been reaped.
    pub(crate) fn pid(&self) -> u32 {
        self.pidfd.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// What observers are given.
    pub(crate) fn handle(&self) -> io::Result<Process> {
        let pidfd: OwnedFd = self.pidfd.as_fd().try_clone_to_owned()?;
        Ok(Process::new(self.pid(), pidfd, self.ended.subscribe()))
    }

    /// Waits for the process's end and reaps it. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> io::Result<Ended> {
        if let Some(ended) = *self.ended.borrow() {
            return Ok(ended);
        }
        self.pidfd.readable().await?;
        let ended = self.pidfd.reap()?;
        self.ended.send_replace(Some(ended));
        Ok(ended)
    }

    /// Asks the process to end, with SIGTERM. A process that has ended already is no error.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGKILL, to all in its control group too. A process that has ended already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        if let Some(group) = &self.group {
            group.kill()?;
        }
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.ended.borrow().is_some() {
            return Ok(());
        }
        pidfd::send(self.pidfd.as_fd(), signal)
    }

    /// Kills the process and waits for its end, at most `patience`. `None`: it is not confirmed dead, or something else in its
    /// control group is not.
    pub(crate) async fn kill_and_reap(&mut self, patience: Duration) -> io::Result<Option<Ended>> {
        self.kill()?;
        match tokio::time::timeout(patience, self.gone()).await {
            Ok(ended) => ended.map(Some),
            Err(_elapsed) => Ok(None),
        }
    }

    /// Waits for the process's end and until its control group is empty, and removes that.
    async fn gone(&mut self) -> io::Result<Ended> {
        let ended = self.ended().await?;
        if let Some(group) = &mut self.group {
            group.remove().await?;
        }
        self.group = None;
        Ok(ended)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A panic of the owner, or the end of the runtime that it lived in, leads here. The wait is short, and a zombie is worse.
        if self.ended.borrow().is_none() {
            self.ended.send_replace(pidfd::kill_and_reap(self.pidfd.pid(), self.pidfd.as_fd()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::maker::tests::{fork, is_well};

    fn shell(script: &str) -> Command {
        Command::new("/bin/sh".into(), vec!["-c".into(), script.into()])
    }

    fn is_alive(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn an_exit_code_arrives_with_the_processs_usage() {
        let mut child = Child::spawn(shell("exit 7")).await.expect("sh starts");
        let ended = child.ended().await.expect("it can be waited for");
        assert_eq!(ended.status.and_then(|status| status.code()), Some(7));
        assert!(ended.usage.is_some_and(|usage| usage.max_resident_bytes > 0));
        assert!(!is_alive(child.pid()), "it has been reaped");
    }

    #[tokio::test]
    async fn a_killed_process_is_confirmed_dead_and_reaped() {
        let mut child = Child::spawn(shell("exec sleep 1000")).await.expect("sh starts");
        assert!(is_alive(child.pid()));
        let ended = child.kill_and_reap(Duration::from_secs(5)).await.expect("it can be killed");
        let status = ended.expect("SIGKILL works").status.expect("it was reaped here");
        assert_eq!(status.signal(), Some(9));
        assert!(!is_alive(child.pid()));
    }

    #[tokio::test]
    async fn a_dropped_child_leaves_no_process() {
        let child = Child::spawn(shell("exec sleep 1000")).await.expect("sh starts");
        let pid = child.pid();
        drop(child);
        assert!(!is_alive(pid));
    }

    #[tokio::test]
    async fn a_forked_process_that_drops_what_it_has_inherited_ends_nothing() {
        let mut child = Some(Child::spawn(shell("exec sleep 1000")).await.expect("sh starts"));
        let process = child.as_ref().and_then(|child| child.handle().ok()).expect("there are descriptors");
        assert!(is_well(fork(|| {
            drop(child.take());
            process.is_alive()
        })));
        assert!(process.is_alive());
        drop(child);
        assert!(!process.is_alive());
    }

    #[tokio::test]
    async fn a_process_that_somebody_else_has_reaped_is_dead_all_the_same() {
        let mut child = Child::spawn(shell("exit 7")).await.expect("sh starts");
        rustix::process::waitpid(Some(child.pidfd.pid()), rustix::process::WaitOptions::empty()).expect("it is ours");
        let ended = child.kill_and_reap(Duration::from_secs(5)).await.expect("it is gone");
        assert_eq!(ended, Some(Ended { status: None, usage: None }));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_by_the_step_that_failed() {
        let error = Child::spawn(Command::new("/no/such/program".into(), vec![])).await.expect_err("it is not there");
        assert!(error.to_string().contains("/no/such/program"), "{error}");
        assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT));
    }

    #[tokio::test]
    async fn a_child_has_the_descriptors_it_was_given_and_no_other() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let _not_inherited = std::fs::File::open("/dev/null").expect("it is there");
        let mut command = shell("ls /proc/self/fd | tr '\\n' ' ' >&7");
        command.pass(write.as_fd().try_clone_to_owned().expect("it can be cloned"), 7);
        drop(write);
        let mut child = Child::spawn(command).await.expect("sh starts");
        child.ended().await.expect("it ends");
        drop(child);
        let mut listed = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(read), &mut listed).expect("it is text");
        // ls itself holds 3 for the directory, and 1 is the pipe that it writes to.
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "7"]);
    }

    #[tokio::test]
    async fn a_child_leads_a_session_and_dies_with_the_spawners_process() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let mut command = shell(
            "cut -d' ' -f6 /proc/self/stat >&5; echo $$ >&5; grep -E 'NoNewPrivs|SigIgn|SigBlk' /proc/self/status >&5",
        );
        command.pass(write, 5);
        let mut child = Child::spawn(command).await.expect("sh starts");
        child.ended().await.expect("it ends");
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).expect("it is text");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], lines[1], "the session is the child's own");
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    }
}
