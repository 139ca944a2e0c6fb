//! The layers that only Linux has: Landlock without a rule, and a filter of system calls.
//!
//! The filter names what is denied, not what is allowed: a C library that makes a new harmless call must not kill the network of a VM.
//! What is denied ends the process, because nothing honest in it does it.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, RestrictionStatus, Ruleset, RulesetAttr, RulesetStatus, Scope};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::Result;

/// The newest Landlock whose refusals are known here. An older kernel refuses what it can.
const KNOWN: ABI = ABI::V6;

/// No file is opened, executed, made or removed; no TCP port is bound; no abstract socket is reached and nobody outside signalled.
/// Connecting is what a gateway is for, and stays.
pub(super) fn no_files() -> Result<()> {
    let status: RestrictionStatus = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .restrict_self()?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock, or has it turned off".into()),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}

/// Applies [`filter`].
pub(super) fn no_other_calls() -> Result<()> {
    Ok(seccompiler::apply_filter(&filter()?)?)
}

/// Calls that are denied whatever their arguments.
const DENIED: &[i64] = &[
    // Becoming another program, or two.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_clone,
    libc::SYS_clone3,
    // Files, by their names.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_truncate,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_inotify_init1,
    libc::SYS_chdir,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    // Other processes, and what others on the machine share.
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    // Another view of the machine.
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Other rights.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // What in a kernel is attacked first.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_fanotify_init,
    // A server's part, which the parent has done.
    libc::SYS_listen,
    libc::SYS_socketpair,
];

/// Older forms of the same, which newer machines never had.
#[cfg(target_arch = "x86_64")]
const DENIED_OLD: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_iopl,
    libc::SYS_ioperm,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_OLD: &[i64] = &[];

/// The bit of a call's number that asks for the same call with short pointers, and the calls that exist in that form alone. A filter
/// sees them as the same machine's, so each has to be named.
#[cfg(target_arch = "x86_64")]
const SHORT_POINTERS: (i64, std::ops::Range<i64>) = (0x4000_0000, 512..548);

/// The filter: a program for the kernel.
pub(super) fn filter() -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(DENIED_OLD).map(|call| (*call, Vec::new())).collect();
    // Sockets of the internet and no others.
    let foreign = [libc::AF_INET, libc::AF_INET6]
        .into_iter()
        .map(|family| condition(0, SeccompCmpOp::Ne, u64::try_from(family)?))
        .collect::<Result<Vec<_>>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(foreign)?]);
    // Memory is never code.
    let executable = u64::try_from(libc::PROT_EXEC)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        let maps_code = condition(2, SeccompCmpOp::MaskedEq(executable), executable)?;
        rules.insert(call, vec![SeccompRule::new(vec![maps_code])?]);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let (bit, only) = SHORT_POINTERS;
        let all: Vec<i64> = rules.keys().copied().chain(only).collect();
        rules.extend(all.into_iter().map(|call| (call | bit, Vec::new())));
    }
    let (otherwise, denied) = (SeccompAction::Allow, SeccompAction::KillProcess);
    Ok(SeccompFilter::new(rules, otherwise, denied, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

fn condition(argument: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompCondition> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)?)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::File,
        io::ErrorKind,
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::{net::UnixDatagram, process::ExitStatusExt as _},
        process::{Command, ExitStatus},
    };

    use landlock::{CompatLevel, Compatible as _};
    use rustix::mm::{MapFlags, ProtFlags};

    use super::*;

    /// Says which attempt a child of a test is to make.
    const ATTEMPT: &str = "GATEWAY_TEST_ATTEMPT";

    /// What the attempt ends with when it was stopped by nobody.
    const DONE: i32 = 42;

    /// A process of its own that makes the attempt and ends: the jail has no way out.
    fn attempt(name: &str) -> ExitStatus {
        Command::new(env::current_exe().expect("it runs"))
            .args(["--exact", "jail::linux::tests::a_child_makes_its_attempt", "--test-threads=1"])
            .env(ATTEMPT, name)
            .output()
            .expect("it starts")
            .status
    }

    #[test]
    #[expect(clippy::exit, reason = "a process that is in its jail cannot go on being a test")]
    fn a_child_makes_its_attempt() {
        let Ok(name) = env::var(ATTEMPT) else { return };
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let at = listener.local_addr().expect("it is bound");
        match name.as_str() {
            "files" => {
                assert!(File::open("/dev/null").is_ok(), "it can before");
                no_files().expect("there is Landlock");
                assert!(File::open("/dev/null").is_err_and(|error| error.kind() == ErrorKind::PermissionDenied));
                assert!(
                    TcpListener::bind("127.0.0.1:0").is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
                );
                assert!(TcpStream::connect(at).is_ok());
                std::process::exit(DONE);
            }
            name => {
                no_other_calls().expect("there is seccomp");
                match name {
                    "network" => {
                        TcpStream::connect(at).expect("it listens");
                        listener.accept().expect("somebody is there");
                        let socket = UdpSocket::bind("127.0.0.1:0").expect("there is a port");
                        socket.send_to(b"x", at).expect("it can send");
                        drop(vec![1_u8; 64 * 1024 * 1024]);
                    }
                    "open" => drop(File::open("/dev/null")),
                    "execute" => drop(Command::new("/bin/true").status()),
                    "thread" => drop(std::thread::Builder::new().spawn(|| ())),
                    "local socket" => drop(UnixDatagram::unbound()),
                    "listen" => drop(TcpListener::bind("127.0.0.1:0")),
                    "code" => map_code(),
                    _ => unreachable!("no test makes the attempt {name}"),
                }
                std::process::exit(DONE);
            }
        }
    }

    #[expect(unsafe_code, reason = "the attempt is to get memory that is code")]
    fn map_code() {
        // SAFETY: the kernel chooses the place, so nothing that is in use is replaced, and nothing is done with the memory.
        let _ = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE)
        };
    }

    #[test]
    fn what_a_gateway_does_is_not_stopped() {
        assert_eq!(attempt("network").code(), Some(DONE));
    }

    #[test]
    fn what_it_never_does_ends_the_process() {
        for name in ["open", "execute", "thread", "local socket", "listen", "code"] {
            assert_eq!(attempt(name).signal(), Some(libc::SIGSYS), "{name}");
        }
    }

    #[test]
    fn no_file_is_opened_and_no_port_is_bound_where_there_is_landlock() {
        let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let has_landlock = strict.handle_access(AccessNet::BindTcp).and_then(Ruleset::create).is_ok();
        if has_landlock {
            assert_eq!(attempt("files").code(), Some(DONE));
        }
    }
}
