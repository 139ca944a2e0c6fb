//! Starting a program's process: what it may, what it sees, and what it inherits.
//!
//! Between fork and exec the child gives up everything that the agent has: it joins the programs' control group and a process group
//! of its own, drops user, groups and capabilities, is filtered in what it may ask of the kernel ([`filter`]), and keeps no descriptor
//! but standard input at its end, two pipes and one end of the control socket. It stays in PID 1's session, which has no terminal.
#![expect(unsafe_code, reason = "code between fork and exec, and five calls that rustix does not have")]

mod filter;

use std::{
    ffi::{CStr, c_int},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use exec_sandbox_wire::limits;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::PipeFlags,
    process::{Gid, Pid, Resource, Rlimit, Uid},
};

use crate::interpreter::CONTROL_FD;

/// The one user of a guest.
const USER: u32 = 1000;
const GROUP: u32 = 1000;

/// Where programs begin.
pub(crate) const HOME: &str = "/home/user";

/// All that a program sees of its environment before the caller's variables. Programs of packages go before the image's own, as in a virtual
/// environment; the agent starts interpreters by their whole paths. `/usr/bin` stands before `/bin`, because Python finds its library from
/// the first directory in which it finds itself.
const ENVIRONMENT: [(&str, &str); 9] = [
    ("PATH", "/home/user/.local/bin:/opt/packages/bin:/usr/local/bin:/usr/bin:/bin"),
    ("HOME", HOME),
    ("USER", "user"),
    ("LOGNAME", "user"),
    ("SHELL", "/bin/bash"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    ("TMPDIR", "/tmp"),
    ("PWD", HOME),
];

/// Room for what a program writes while the agent is busy: one window of its stream, so that a burst of
/// output does not cost a switch for every 64 KiB.
const PIPE_BYTES: usize = limits::STREAM_WINDOW_BYTES as usize;

/// Open files of one program: what `select` can hold, unless it asks for more.
const SOFT_FILES: u64 = 1024 + 256;
const HARD_FILES: u64 = 65_536;

/// Processes and threads of the user, as many as the control group has room for.
const PROCESSES: u64 = 1024;

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The program's file.
    pub(crate) program: &'a Path,
    /// Its arguments.
    pub(crate) arguments: &'a [&'a str],
    /// Variables beside [`ENVIRONMENT`].
    pub(crate) variables: &'a [(&'a str, &'a str)],
    /// The file by which it joins its control group.
    pub(crate) group: BorrowedFd<'a>,
}

/// The agent's ends of what connects it with a started process.
#[derive(Debug)]
pub(crate) struct Started {
    /// What it writes to standard output. Never blocks.
    pub(crate) stdout: OwnedFd,
    /// What it writes to standard error. Never blocks.
    pub(crate) stderr: OwnedFd,
    /// The control socket. Never blocks.
    pub(crate) control: OwnedFd,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A pipe or the control socket could not be made.
    #[error("cannot make the pipes of {}", program.display())]
    Pipes {
        /// The program's file.
        program: PathBuf,
        source: Errno,
    },
    /// fork, exec, or a step between them failed.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program's file.
        program: PathBuf,
        source: io::Error,
    },
}

/// Starts a process. Nobody waits for it here: that is the reaper's.
pub(crate) fn launch(launch: &Launch<'_>) -> Result<(Pid, Started), LaunchError> {
    let program = || launch.program.to_path_buf();
    let pipes = |source| LaunchError::Pipes { program: program(), source };
    let (stdout, child_stdout) = pipe().map_err(pipes)?;
    let (stderr, child_stderr) = pipe().map_err(pipes)?;
    let (control, child_control) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(pipes)?;
    rustix::io::ioctl_fionbio(&control, true).map_err(pipes)?;

    let mut command = Command::new(launch.program);
    command.args(launch.arguments).env_clear().envs(ENVIRONMENT).envs(launch.variables.iter().copied());
    command.current_dir(HOME).stdin(Stdio::null()).stdout(child_stdout).stderr(child_stderr);
    let (group, control_end) = (launch.group.as_raw_fd(), child_control.as_raw_fd());
    let filter = filter::program();
    // SAFETY: the closure runs in the child of a fork and makes only system calls: it neither allocates nor takes a lock, and both
    // descriptors are open in the parent, hence in the child, until `spawn` returns.
    unsafe { command.pre_exec(move || become_user(group, control_end).and_then(|()| install(&filter))) };
    let child = command.spawn().map_err(|source| LaunchError::Start { program: program(), source })?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| LaunchError::Start { program: program(), source: Errno::SRCH.into() })?;
    Ok((pid, Started { stdout, stderr, control }))
}

/// Sends a signal to the process group that a started process has for its own. Those from 32 on have no name, and are sent all the same.
pub(crate) fn signal_group(pid: Pid, number: c_int) {
    // SAFETY: the call takes two numbers, and the group is not this process's.
    let _ = unsafe { libc::killpg(pid.as_raw_pid(), number) };
}

/// A pipe whose reading end is the agent's. It belongs to the user, or `/dev/stdout` could not be opened.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fchown(&writer, Some(Uid::from_raw(USER)), Some(Gid::from_raw(GROUP)))?;
    // A smaller pipe serves as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader, writer))
}

/// In the child: turns root's process into the user's.
fn become_user(group: RawFd, control: RawFd) -> io::Result<()> {
    // SAFETY: `launch` keeps the descriptor open until the child has executed.
    let group = unsafe { BorrowedFd::borrow_raw(group) };
    rustix::io::write(group, b"0")?;
    rustix::process::setpgid(None, None)?;
    write_file(c"/proc/self/oom_score_adj", b"0")?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(SOFT_FILES), maximum: Some(HARD_FILES) })?;
    rustix::process::setrlimit(Resource::Nproc, Rlimit { current: Some(PROCESSES), maximum: Some(PROCESSES) })?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    drop_bounding_set()?;
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(GROUP));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    // Leaving uid 0 for good empties the permitted, effective and ambient sets; the inheritable one is empty in PID 1.
    rustix::thread::set_thread_res_uid(user, user, user)?;
    rustix::thread::set_no_new_privs(true)?;
    keep_only(control)
}

/// Marks every descriptor beyond standard error to be closed by exec, and puts the control socket at its agreed place.
fn keep_only(control: RawFd) -> io::Result<()> {
    const FIRST: c_int = 3;
    // SAFETY: the call takes three numbers and only marks descriptors, so none that is in use is closed before exec.
    check(unsafe { libc::syscall(libc::SYS_close_range, FIRST, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    // SAFETY: the call takes two numbers. Nothing else is open at CONTROL_FD: the agent never has so many descriptors.
    check(i64::from(unsafe { libc::dup2(control, CONTROL_FD) }))
}

/// Has the kernel ask `filter` from here on, for this process and all that it starts.
fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `length` instructions from where `filter` has them, and writes to none.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    check(i64::from(result))
}

fn drop_bounding_set() -> io::Result<()> {
    for number in 0..u32::from(u8::MAX) {
        // SAFETY: the call takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match check(i64::from(result)) {
            // Beyond the last capability that this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

fn write_file(path: &CStr, bytes: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes)?;
    Ok(())
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
