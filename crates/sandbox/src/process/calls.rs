//! The filter of system calls: what a QEMU whose descriptors were handed to it has no use for.
//!
//! Landlock knows files by their content and not by their marks, and no Landlock yet knows sockets that have a name in a directory,
//! such as a message bus's or a container engine's. A filter knows calls and not files, so it closes just that: sockets, which
//! QEMU is given, and changes of files by name, of which it makes none; and what in a kernel is attacked first. Starting
//! programs and changing users, which the child itself does before QEMU runs, QEMU's own filter refuses.
//!
//! The filter names what is refused, not what is allowed, and refuses without killing: another version of QEMU or of a C library
//! that tries a new call goes on without it.

use std::sync::Arc;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Calls that are refused.
const REFUSED: &[i64] = &[
    // Sockets of its own.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    // Files, by their names.
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_inotify_init1,
    libc::SYS_fanotify_init,
    libc::SYS_memfd_secret,
    libc::SYS_chdir,
    // Other processes. It signals its own threads by another call.
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    // What others on the machine share.
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Another view of the machine.
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // What in a kernel is attacked first.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_personality,
    libc::SYS_vmsplice,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
];

/// Older forms of the same, which newer machines never had.
#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[i64] = &[
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_symlink,
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
const REFUSED_OLD: &[i64] = &[];

/// The bit of a call's number that asks for the same call with short pointers. A filter sees both as the same machine's.
#[cfg(target_arch = "x86_64")]
const SHORT_POINTERS: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const SHORT_POINTERS: Option<i64> = None;

/// A filter, as the kernel reads it. Every child has the same.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    program: Arc<BpfProgram>,
}

/// Why there is no filter: nothing is known of this machine's calls.
#[derive(Debug, thiserror::Error)]
#[error("making a filter of system calls for {}", std::env::consts::ARCH)]
pub(crate) struct NoFilter {
    #[from]
    source: seccompiler::BackendError,
}

impl Filter {
    /// What a QEMU may not do.
    pub(crate) fn of_qemu() -> Result<Self, NoFilter> {
        let named = || REFUSED.iter().chain(REFUSED_OLD).copied();
        let short = SHORT_POINTERS.into_iter().flat_map(|bit| named().map(move |call| call | bit));
        let rules = named().chain(short).map(|call| (call, Vec::new())).collect();
        let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?;
        Ok(Self { program: Arc::new(filter.try_into()?) })
    }

    /// Where it is and how long it is, for the kernel.
    pub(super) fn to_kernel(&self) -> libc::sock_fprog {
        let length =
            u16::try_from(self.program.len()).expect("the kernel takes no program of more than 4096 instructions");
        libc::sock_fprog { len: length, filter: self.program.as_ptr().cast_mut().cast() }
    }
}
