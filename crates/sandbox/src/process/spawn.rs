//! One spawn: `clone` with shared memory, as vfork does, and a child that makes system calls on prepared data until it executes
//! the program.
//!
//! A fork copies the page tables of the whole process, which is slow in a big one and ten times slower in bursts. Here the
//! child borrows the parent's memory while the parent's thread stands still, so between `clone` and `execve` it must not
//! allocate, lock, unwind, or return. Everything it needs is laid out before.
#![expect(unsafe_code, reason = "clone, and what the child does between it and execve, have no safe interface")]

use std::{
    ffi::{CString, OsString, c_char, c_int, c_void},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
    ptr,
};

use rustix::{
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags},
    process::Pid,
};

/// The child's stack until it executes: its frames are a few hundred bytes.
const STACK_BYTES: usize = 64 * 1024;
/// Below the stack, so that an overflow is a fault and not a corruption.
const GUARD_BYTES: usize = 4096;
/// Descriptors to pass are first moved here, above every target, so that no move overwrites another's source; and below any
/// limit of open files that a VM could live with.
const PARKED_FROM: RawFd = 32;

/// A program to start. Its environment is empty.
#[derive(Debug)]
pub(crate) struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    descriptors: Vec<(OwnedFd, RawFd)>,
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// A step failed in the child.
    #[error("{step} for {}", program.display())]
    Child {
        step: Step,
        program: PathBuf,
        #[source]
        errno: Errno,
    },
    /// The child could not be made, or not be watched.
    #[error("making a process")]
    Parent(#[from] io::Error),
}

/// What the child does, in order. The one that failed is in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    NewSession,
    DeathSignal,
    Descriptors,
    Limits,
    Privileges,
    Execute,
}

/// A process just started. Dropped, it is killed and reaped.
#[derive(Debug)]
pub(super) struct Spawned {
    pid: Pid,
    fd: Option<OwnedFd>,
}

/// Where children are made: a stack that is used again for each.
#[derive(Debug)]
pub(super) struct Nursery {
    base: *mut c_void,
}

/// What the child reads, and the one thing that it writes. Lives on the parent's stack while the parent stands still.
struct Plan<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    moves: &'a [(RawFd, RawFd)],
    parent: libc::pid_t,
    failed: Option<(Step, c_int)>,
}

impl Command {
    /// A program by its path. It gets no descriptor but 0, 1 and 2, which are `/dev/null` unless something is passed as them.
    pub(crate) fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self { program, args, descriptors: Vec::new() }
    }

    /// Gives the child `descriptor` as number `target`.
    pub(crate) fn pass(&mut self, descriptor: OwnedFd, target: RawFd) {
        debug_assert!(target < PARKED_FROM, "targets lie below the parked descriptors");
        self.descriptors.push((descriptor, target));
    }
}

impl SpawnError {
    /// What the kernel said, if a step in the child failed.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Child { errno, .. } => Some(*errno),
            Self::Parent(error) => Errno::from_io_error(error),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NewSession => "making a session",
            Self::DeathSignal => "binding its life to ours",
            Self::Descriptors => "passing descriptors",
            Self::Limits => "setting limits",
            Self::Privileges => "giving up privileges",
            Self::Execute => "executing the program",
        })
    }
}

impl Spawned {
    pub(super) fn from_parts(pid: Pid, fd: OwnedFd) -> Self {
        Self { pid, fd: Some(fd) }
    }

    pub(super) fn into_parts(mut self) -> (Pid, OwnedFd) {
        let fd = self.fd.take().expect("it is taken only here, where `self` ends");
        (self.pid, fd)
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let Some(fd) = &self.fd else { return };
        super::pidfd::kill_and_reap(self.pid, fd.as_fd());
    }
}

// SAFETY: the mapping is owned by this value alone, and is used only through `&mut self`.
unsafe impl Send for Nursery {}

impl Nursery {
    pub(super) fn new() -> io::Result<Self> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice changes no memory that exists.
        let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), STACK_BYTES + GUARD_BYTES, prot, flags)? };
        // SAFETY: the range is the lowest page of the mapping made above, which nobody uses yet.
        unsafe { rustix::mm::mprotect(base, GUARD_BYTES, MprotectFlags::empty())? };
        Ok(Self { base })
    }

    /// Starts `command`; returns when the program runs or a step has failed.
    pub(super) fn spawn(&mut self, command: Command) -> Result<Spawned, SpawnError> {
        let program = c_string(command.program.clone().into_os_string())?;
        let args = command.args.into_iter().map(c_string).collect::<io::Result<Vec<_>>>()?;
        let argv: Vec<*const c_char> =
            [&program].into_iter().chain(&args).map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
        let envp = [ptr::null()];
        let parked = park(command.descriptors)?;
        let moves: Vec<(RawFd, RawFd)> = parked.iter().map(|(fd, target)| (fd.as_raw_fd(), *target)).collect();
        let mut plan = Plan {
            program: program.as_ptr(),
            argv: argv.as_ptr(),
            envp: envp.as_ptr(),
            moves: &moves,
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            failed: None,
        };
        let spawned = self.clone_with(&mut plan)?;
        match plan.failed {
            None => Ok(spawned),
            // The child has left by `_exit`: dropping `spawned` reaps it.
            Some((step, errno)) => {
                Err(SpawnError::Child { step, program: command.program, errno: Errno::from_raw_os_error(errno) })
            }
        }
    }

    fn clone_with(&mut self, plan: &mut Plan<'_>) -> io::Result<Spawned> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut fd: c_int = -1;
        let signals = BlockedSignals::block()?;
        let plan: *mut Plan<'_> = plan;
        // SAFETY: base + STACK + GUARD is the end of the mapping, which is where a stack that grows down starts.
        let stack = unsafe { self.base.byte_add(STACK_BYTES + GUARD_BYTES) };
        // SAFETY: `child` never returns; the stack is ours alone; CLONE_VFORK keeps this frame, the plan and all that it points
        // to alive and unused until the child has executed or exited; with CLONE_PIDFD the next argument takes the descriptor.
        let pid = unsafe { libc::clone(child, stack, flags, plan.cast(), &raw mut fd) };
        let error = io::Error::last_os_error();
        drop(signals);
        let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else { return Err(error) };
        // SAFETY: `clone` succeeded, so `fd` is a new descriptor that nobody else owns.
        Ok(Spawned::from_parts(pid, unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length; no child uses it, because `spawn` waits for each.
        let _ = unsafe { rustix::mm::munmap(self.base, STACK_BYTES + GUARD_BYTES) };
    }
}

/// All signals blocked, so that no handler of the parent runs in a child that shares its memory.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn block() -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `sigset_t`.
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: it fills the live local that it is given.
        unsafe { libc::sigfillset(&raw mut all) };
        // SAFETY: both pointers are to live locals of the type.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) } {
            0 => Ok(Self(before)),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the pointer is to the mask that `block` filled; the old one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// The child's whole life before the program. Shares the parent's memory: system calls on the plan's data and nothing else.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `clone_with` passes its plan, which nobody else touches until this process has executed or exited.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let failed = become_program(plan);
    plan.failed = Some((failed, io::Error::last_os_error().raw_os_error().unwrap_or(0)));
    // SAFETY: it ends this process at once and runs nothing of the parent's.
    unsafe { libc::_exit(127) }
}

/// Returns only if a step fails, with that step.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "each block is one step of plain system calls with one argument"
)]
fn become_program(plan: &Plan<'_>) -> Step {
    // SAFETY: plain system calls without pointers.
    if unsafe { libc::setsid() } < 0 {
        return Step::NewSession;
    }
    // SAFETY: as above. A parent that died before the prctl is seen by the id that took its place.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 || libc::getppid() != plan.parent } {
        return Step::DeathSignal;
    }
    if !pass_descriptors(plan) {
        return Step::Descriptors;
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live local of the type.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) } < 0 {
        return Step::Limits;
    }
    // SAFETY: plain system calls; the unused arguments of this prctl must be zero.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Step::Privileges;
    }
    reset_signals();
    // SAFETY: program, argv and envp are strings and null-terminated arrays that the parent holds.
    unsafe { libc::execve(plan.program, plan.argv, plan.envp) };
    Step::Execute
}

/// 0, 1 and 2 become `/dev/null`, the passed descriptors take their numbers, and every other one closes when the program starts.
fn pass_descriptors(plan: &Plan<'_>) -> bool {
    // Not close-on-exec: a parent that lacks one of 0, 1 and 2 gets it here, where it is to stay. Above them it is closed below.
    // SAFETY: the path is a literal with its terminator.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    // SAFETY: plain system calls on numbers.
    if null < 0 || (0..=2).any(|target| unsafe { libc::dup2(null, target) } < 0) {
        return false;
    }
    // SAFETY: a plain system call on numbers.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } < 0 {
        return false;
    }
    for &(from, target) in plan.moves {
        // SAFETY: a plain system call on numbers; `from` lies above every target.
        if unsafe { libc::dup2(from, target) } < 0 {
            return false;
        }
    }
    true
}

/// Ignored signals stay ignored in a program, and Rust ignores SIGPIPE: every signal gets its default back.
fn reset_signals() {
    // The kernel's own `sigaction` and mask, all zeroes: the default action, no flags, no blocked signal. glibc's call would leave
    // out the two numbers that it keeps for itself, which a parent may have ignored.
    let (default, empty, mask_bytes) = ([0_u64; 4], 0_u64, size_of::<u64>());
    for number in 1..=64 {
        // SAFETY: the kernel reads one `sigaction` of 32 bytes; SIGKILL and SIGSTOP fail, which is right.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), ptr::null::<u64>(), mask_bytes) };
    }
    // SAFETY: the kernel reads a mask of the size that it is told.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, ptr::null::<u64>(), mask_bytes)
    };
}

fn park(descriptors: Vec<(OwnedFd, RawFd)>) -> io::Result<Vec<(OwnedFd, RawFd)>> {
    let park = |(fd, target)| Ok((rustix::io::fcntl_dupfd_cloexec(&fd, PARKED_FROM)?, target));
    descriptors.into_iter().map(park).collect()
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec())
        .map_err(|_nul| io::Error::new(io::ErrorKind::InvalidInput, "an argument contains a null byte"))
}
