//! One spawn: `clone` with shared memory, as vfork does, and a child that makes system calls on prepared data until it executes
//! the program.
//!
//! A fork copies the page tables of the whole process, which is slow in a big one and ten times slower in bursts. Here the
//! child borrows the parent's memory while the parent's thread stands still. Everything it needs is laid out before; what it
//! does with that is in `child`.
#![expect(unsafe_code, reason = "clone and the memory of its child have no safe interface")]

use std::{
    ffi::{CStr, CString, OsString, c_char, c_int, c_void},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
    ptr,
};

use rustix::{
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags},
    process::{DumpableBehavior, Pid, Resource, Rlimit},
};

use super::{
    calls::Filter,
    cgroup::VmCgroup,
    child::{End, PARKED_FROM, Plan, Step, child},
    jail::{Jail, Limits},
};

/// The child's stack until it executes: its frames are a few hundred bytes.
const STACK_BYTES: usize = 64 * 1024;
/// Below the stack, so that an overflow is a fault and not a corruption.
const GUARD_BYTES: usize = 4096;

/// A program to start. Its environment is empty.
#[derive(Debug)]
pub(crate) struct Command {
    program: PathBuf,
    /// The program's file, if it is executed as it was opened.
    opened: Option<OwnedFd>,
    /// What it is called in lists of processes, if not by its path.
    name: Option<OsString>,
    args: Vec<OsString>,
    descriptors: Vec<(OwnedFd, RawFd)>,
    jail: Jail,
    group: Option<Joined>,
    /// The way into another's control group.
    entrance: Option<OwnedFd>,
}

/// A control group and the way into it.
#[derive(Debug)]
struct Joined {
    group: VmCgroup,
    entrance: OwnedFd,
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

impl Command {
    /// A program by its path. It gets no descriptor but 0, 1 and 2, which are `/dev/null` unless something is passed as them.
    pub(crate) fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        let (descriptors, jail) = (Vec::new(), Jail::default());
        Self { program, opened: None, name: None, args, descriptors, jail, group: None, entrance: None }
    }

    /// Has the child execute `program` instead of what it finds by the path: it needs no right to go there. Not for scripts, whose
    /// interpreter would have to open it.
    pub(crate) fn execute(&mut self, program: OwnedFd) {
        self.opened = Some(program);
    }

    /// Calls the child `name` in lists of processes.
    pub(crate) fn name(&mut self, name: impl Into<OsString>) {
        self.name = Some(name.into());
    }

    /// Gives the child `descriptor` as number `target`.
    pub(crate) fn pass(&mut self, descriptor: OwnedFd, target: RawFd) {
        debug_assert!(target < PARKED_FROM, "targets lie below the parked descriptors");
        self.descriptors.push((descriptor, target));
    }

    /// Confines the child.
    pub(crate) fn jail(&mut self, jail: Jail) {
        self.jail = jail;
    }

    /// Puts the child into `group`, which then belongs to the process: it is removed once the process is dead.
    pub(crate) fn join(&mut self, group: VmCgroup) -> io::Result<()> {
        let entrance = group.entrance()?;
        self.group = Some(Joined { group, entrance });
        Ok(())
    }

    /// Puts the child into `group` too, which is another process's: it is told by that one that the child is dead.
    pub(crate) fn join_anothers(&mut self, group: &VmCgroup) -> io::Result<()> {
        self.entrance = Some(group.entrance()?);
        Ok(())
    }

    /// The program as the child finds it, and what has to be kept until then.
    fn executable(&self) -> io::Result<(CString, Option<OwnedFd>)> {
        let Some(opened) = &self.opened else { return Ok((c_string(self.program.clone().into_os_string())?, None)) };
        let parked = park(opened.as_fd())?;
        Ok((c_string(format!("/proc/self/fd/{}", parked.as_raw_fd()).into())?, Some(parked)))
    }

    fn entrance(&self) -> Option<BorrowedFd<'_>> {
        self.group.as_ref().map(|joined| &joined.entrance).or(self.entrance.as_ref()).map(AsFd::as_fd)
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
        let _ = super::pidfd::kill_and_reap(self.pid, fd.as_fd());
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

    /// Starts `command`; returns when the program runs or a step has failed. With the process comes the group that it is in.
    pub(super) fn spawn(&mut self, command: Command) -> Result<(Spawned, Option<VmCgroup>), SpawnError> {
        let (program, _parked) = command.executable()?;
        let name = command.name.clone().unwrap_or_else(|| command.program.clone().into_os_string());
        let name = c_string(name)?;
        let args = command.args.iter().cloned().map(c_string).collect::<io::Result<Vec<_>>>()?;
        let argv: Vec<*const c_char> =
            [&name].into_iter().chain(&args).map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
        let envp = [ptr::null()];
        let end = End::Program { path: program.as_ptr(), argv: argv.as_ptr(), envp: envp.as_ptr() };
        match self.run(&command, end)? {
            (spawned, None) => Ok((spawned, command.group.map(|joined| joined.group))),
            // The child has left by `_exit`: dropping `spawned` reaps it.
            (_spawned, Some((step, errno))) => Err(SpawnError::Child { step, program: command.program, errno }),
        }
    }

    /// Has a child do all that `command` asks for but execute: it looks whether the program may be executed and whether `files`
    /// can be opened with their flags.
    pub(super) fn rehearse(&mut self, command: Command, files: &[(CString, c_int)]) -> Result<(), SpawnError> {
        let (program, _parked) = command.executable()?;
        let files: Vec<(&CStr, c_int)> = files.iter().map(|(path, flags)| (path.as_c_str(), *flags)).collect();
        let end = End::Rehearsal { program: &program, files: &files };
        match self.run(&command, end)? {
            (_spawned, None) => Ok(()),
            (_spawned, Some((step, errno))) => Err(SpawnError::Child { step, program: command.program, errno }),
        }
    }

    /// Lays out the plan of a child and makes it. A step that failed comes with the process, which is about to be reaped.
    fn run(&mut self, command: &Command, end: End<'_>) -> io::Result<(Spawned, Option<(Step, Errno)>)> {
        let jail = &command.jail;
        let parked = command.descriptors.iter().map(|(fd, target)| Ok((park(fd.as_fd())?, *target)));
        let parked = parked.collect::<io::Result<Vec<_>>>()?;
        let moves: Vec<(RawFd, RawFd)> = parked.iter().map(|(fd, target)| (fd.as_raw_fd(), *target)).collect();
        let landlock = jail.landlock.as_ref().map(|ruleset| park(ruleset.fd.as_fd())).transpose()?;
        let no_core_dump = (Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        let limits: Vec<_> = jail.limits.into_iter().flat_map(Limits::to_kernel).chain([no_core_dump]).collect();
        let filter = jail.calls.as_ref().map(Filter::to_kernel);
        let mut plan = Plan {
            parent: rustix::process::getpid(),
            cgroup: command.entrance(),
            network: jail.namespaces.as_ref().map(|namespaces| namespaces.network.as_fd()),
            moves: &moves,
            limits: &limits,
            own_user: jail.own_user.as_ref(),
            landlock: landlock.as_ref().map(AsRawFd::as_raw_fd),
            filter: filter.as_ref(),
            end,
            failed: None,
        };
        // A child that becomes another user makes its memory one that cannot be dumped, and that is this process's too.
        let dumpable = rustix::process::dumpable_behavior();
        let spawned = self.clone_with(&mut plan);
        if plan.own_user.is_some() && dumpable == Ok(DumpableBehavior::Dumpable) {
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        }
        Ok((spawned?, plan.failed))
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

fn park(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, PARKED_FROM)?)
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec())
        .map_err(|_nul| io::Error::new(io::ErrorKind::InvalidInput, "an argument contains a null byte"))
}
