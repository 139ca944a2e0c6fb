//! The child's life between `clone` and the program: system calls on a prepared plan, and nothing else.
//!
//! It shares its parent's memory while the parent's thread stands still, so it must not allocate, lock, unwind, or return. Calls
//! that glibc would carry to every thread of the process, as it does when the user changes, go to the kernel directly.
//!
//! ```text
//! session ─▶ control group ─▶ namespaces ─▶ descriptors ─▶ limits ─▶ user ─▶ capabilities ─▶ death signal ─▶ Landlock ─▶ filter ─▶ program
//! ```
//! What needs privileges comes before they are given up. The death signal comes after the user has changed, which clears it, and
//! Landlock and the filter last, because they would refuse what the steps before them do.
#![expect(unsafe_code, reason = "what the child does before it executes has no safe interface")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    io,
    os::fd::{BorrowedFd, RawFd},
    ptr,
};

use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets, Gid, LinkNameSpaceType, Uid, UnshareFlags},
};

use super::jail::OwnUser;

/// What a child's host is called in a UTS namespace of its own, so that it does not learn the machine's name.
const HOST_NAME: &[u8] = b"sandbox";

/// Descriptors to pass are first moved here, above every target, so that no move overwrites another's source; and below any
/// limit of open files that a VM could live with.
pub(super) const PARKED_FROM: RawFd = 32;

/// Capabilities that a kernel can have: their sets have 64 bits.
const CAPABILITIES: u32 = 64;

/// What the child does, in order. The one that failed is in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    NewSession,
    ControlGroup,
    Namespaces,
    Descriptors,
    Limits,
    OwnUser,
    Privileges,
    DeathSignal,
    Landlock,
    Filter,
    Reach,
    Execute,
}

/// What the child reads, and the one thing that it writes. Lives on the parent's stack while the parent stands still.
pub(super) struct Plan<'a> {
    pub(super) parent: Pid,
    /// The file `cgroup.procs` of the group to join.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// The network namespace to enter; with it come IPC and UTS namespaces of the child's own.
    pub(super) network: Option<BorrowedFd<'a>>,
    /// Where each descriptor lies and where it is to be. The first lie above every second.
    pub(super) moves: &'a [(RawFd, RawFd)],
    pub(super) limits: &'a [(Resource, Rlimit)],
    pub(super) own_user: Option<&'a OwnUser>,
    /// Lies above every target of a move.
    pub(super) landlock: Option<RawFd>,
    pub(super) filter: Option<&'a libc::sock_fprog>,
    pub(super) end: End<'a>,
    pub(super) failed: Option<(Step, Errno)>,
}

/// What the child's preparations are for.
pub(super) enum End<'a> {
    /// A program: its path, its arguments and its environment, the lists with a null at their ends.
    Program { path: *const c_char, argv: *const *const c_char, envp: *const *const c_char },
    /// A rehearsal, which ends once the program proves to be executable and these files to open.
    Rehearsal { program: &'a CStr, files: &'a [(&'a CStr, c_int)] },
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NewSession => "making a session",
            Self::ControlGroup => "joining its control group",
            Self::Namespaces => "entering namespaces",
            Self::Descriptors => "passing descriptors",
            Self::Limits => "setting limits",
            Self::OwnUser => "becoming a user of its own",
            Self::Privileges => "giving up privileges",
            Self::DeathSignal => "binding its life to ours",
            Self::Landlock => "confining it by Landlock",
            Self::Filter => "filtering its system calls",
            Self::Reach => "opening what the program needs",
            Self::Execute => "executing the program",
        })
    }
}

/// What `clone` runs in the child.
pub(super) extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: the parent passes its plan, which nobody else touches until this process has executed or exited.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let ended = prepare(plan).and_then(|()| finish(&plan.end));
    plan.failed = ended.err();
    // SAFETY: it ends this process at once and runs nothing of the parent's.
    unsafe { libc::_exit(127) }
}

fn prepare(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    rustix::process::setsid().map_err(at(Step::NewSession))?;
    if let Some(cgroup) = plan.cgroup {
        // The kernel reads 0 as "whoever writes this".
        rustix::io::write(cgroup, b"0").map_err(at(Step::ControlGroup))?;
    }
    if let Some(network) = plan.network {
        enter_namespaces(network).map_err(at(Step::Namespaces))?;
    }
    pass_descriptors(plan.moves).map_err(at(Step::Descriptors))?;
    for (resource, limit) in plan.limits {
        rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Limits))?;
    }
    drop_bounding_set();
    if let Some(own_user) = plan.own_user {
        become_own_user(own_user).map_err(at(Step::OwnUser))?;
    }
    give_up_privileges().map_err(at(Step::Privileges))?;
    bind_life_to(plan.parent).map_err(at(Step::DeathSignal))?;
    if let Some(ruleset) = plan.landlock {
        // SAFETY: a plain system call on numbers.
        checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) }).map_err(at(Step::Landlock))?;
    }
    reset_signals();
    if let Some(filter) = plan.filter {
        let filter: *const libc::sock_fprog = filter;
        // SAFETY: the kernel reads the program, which the parent holds.
        checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, filter) })
            .map_err(at(Step::Filter))?;
    }
    Ok(())
}

/// Returns only if that fails, or when a rehearsal is over.
fn finish(end: &End<'_>) -> Result<(), (Step, Errno)> {
    match *end {
        End::Program { path, argv, envp } => {
            // SAFETY: the path and both lists are strings and null-terminated arrays that the parent holds.
            let executed = unsafe { libc::execve(path, argv, envp) };
            checked(executed.into()).map_err(|errno| (Step::Execute, errno))
        }
        End::Rehearsal { program, files } => {
            // SAFETY: the path is a string that the parent holds.
            checked(unsafe { libc::access(program.as_ptr(), libc::X_OK) }.into())
                .map_err(|errno| (Step::Reach, errno))?;
            // What closes when a program starts closes here, so that the limit of open files is met by the files alone.
            // SAFETY: a plain system call on numbers.
            unsafe { libc::syscall(libc::SYS_close_range, PARKED_FROM, u32::MAX, 0) };
            for (path, flags) in files {
                // SAFETY: as above.
                checked(unsafe { libc::open(path.as_ptr(), *flags) }.into()).map_err(|errno| (Step::Reach, errno))?;
            }
            Ok(())
        }
    }
}

fn enter_namespaces(network: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
    // SAFETY: neither flag concerns the memory and descriptors that are shared with the parent.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS) }?;
    rustix::system::sethostname(HOST_NAME)
}

/// 0, 1 and 2 become `/dev/null`, the passed descriptors take their numbers, and every other one closes when the program starts.
fn pass_descriptors(moves: &[(RawFd, RawFd)]) -> Result<(), Errno> {
    // Not close-on-exec: a parent that lacks one of 0, 1 and 2 gets it here, where it is to stay. Above them it is closed below.
    // SAFETY: the path is a literal with its terminator.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    checked(null.into())?;
    for target in 0..=2 {
        // SAFETY: a plain system call on numbers.
        checked(unsafe { libc::dup2(null, target) }.into())?;
    }
    // SAFETY: a plain system call on numbers.
    checked(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    for &(from, target) in moves {
        // SAFETY: a plain system call on numbers; `from` lies above every target.
        checked(unsafe { libc::dup2(from, target) }.into())?;
    }
    Ok(())
}

/// Takes every capability out of the set that executing a program could give back. A process that may not do that has none of
/// its own either, and no_new_privs keeps it so.
fn drop_bounding_set() {
    for number in 0..CAPABILITIES {
        // A number that this kernel does not have is refused, and so are those after it.
        if rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)).is_err() {
            break;
        }
    }
}

fn become_own_user(own_user: &OwnUser) -> Result<(), Errno> {
    let number = own_user.number_for(rustix::process::getpid());
    let (uid, gid) = (Uid::from_raw(number), Gid::from_raw(number));
    rustix::thread::set_thread_groups(own_user.groups())?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    // From root to another user the kernel clears all capabilities, unless the process had asked it not to.
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn give_up_privileges() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::set_no_new_privs(true)
}

/// The child dies with `parent`, which may have died before this was asked for.
fn bind_life_to(parent: Pid) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
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

/// What a call of libc's has answered, its reason taken from the parent's own `errno`, which stands still too.
fn checked(answer: i64) -> Result<(), Errno> {
    if answer >= 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}
