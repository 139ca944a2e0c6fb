//! What no program of the user's may ask of the kernel, as the filter of system calls that it is started with. Pure.
//!
//! The list names what is denied. What is left is what ordinary programs do, so that an interpreter or a library which makes a new
//! harmless call keeps working. A denied call fails with the error that programs know how to go on from, and nobody is killed. It is a
//! second wall: most of this needs rights that the user has not, or is not in the kernel at all.
//!
//! The kernel asks the filter once for each call that there is when it is installed, and remembers those that are always allowed; hence
//! the search by halves, which makes that ten steps a call.

use libc::{EAFNOSUPPORT, ENOSYS, EPERM, c_int, c_long, sock_filter};

/// Calls that fail with EPERM whatever their arguments.
const FORBIDDEN: &[c_long] = &[
    // Another view of the file tree.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_umount2,
    // Other namespaces.
    libc::SYS_setns,
    libc::SYS_unshare,
    // Other processes. Debuggers are the price.
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_ptrace,
    // The machine as a whole.
    libc::SYS_acct,
    libc::SYS_clock_settime,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // What in a kernel is attacked first, and what nobody here needs.
    libc::SYS_perf_event_open,
    libc::SYS_vmsplice,
];

/// Calls that our kernel does not have, and shall not have with another configuration either.
const ABSENT: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_memfd_secret,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

/// Older forms of the same, which newer machines never had.
#[cfg(target_arch = "x86_64")]
const ABSENT_OLD: &[c_long] =
    &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt, libc::SYS_sysfs, libc::SYS_uselib, libc::SYS_ustat];
#[cfg(not(target_arch = "x86_64"))]
const ABSENT_OLD: &[c_long] = &[];

/// Kinds of sockets that programs need. Of netlink, only the list of interfaces and addresses.
const FAMILIES: [c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// A personality of 0 is the ordinary one; this asks which it is.
const ASK_PERSONALITY: u32 = u32::MAX;

/// What a machine's own calls are marked with; others are of a processor mode that this kernel does not have.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Numbers from here on are x32's.
const X32: u32 = 0x4000_0000;

/// Where `seccomp_data` has the number, the architecture, and the lower half of the first and the third argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST: u32 = 16;
const THIRD: u32 = 32;

/// At most so many numbers are compared one after the other.
const LEAF: usize = 4;

/// A call, and the instructions that decide about it; the last of them returns.
struct Rule {
    number: u32,
    body: Vec<sock_filter>,
}

/// The filter.
pub(super) fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE), equal(ARCH, 1, 0), ret(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)];
    program.extend([at_least(X32, 0, 1), fail(ENOSYS)]);
    program.extend(search(&rules()));
    program
}

fn rules() -> Vec<Rule> {
    let fixed = |numbers: &[c_long], errno| -> Vec<Rule> {
        numbers.iter().map(|&number| Rule { number: call(number), body: vec![fail(errno)] }).collect()
    };
    let mut rules = fixed(FORBIDDEN, EPERM);
    rules.extend(fixed(ABSENT, ENOSYS));
    rules.extend(fixed(ABSENT_OLD, ENOSYS));
    rules.push(Rule { number: call(libc::SYS_socket), body: socket() });
    rules.push(Rule {
        number: call(libc::SYS_personality),
        body: vec![load(FIRST), equal(0, 2, 0), equal(ASK_PERSONALITY, 1, 0), fail(EPERM), allow()],
    });
    rules.sort_by_key(|rule| rule.number);
    rules
}

fn socket() -> Vec<sock_filter> {
    let [first, second, third] = FAMILIES.map(family);
    vec![
        load(FIRST),
        equal(first, 6, 0),
        equal(second, 5, 0),
        equal(third, 4, 0),
        equal(family(libc::AF_NETLINK), 0, 2),
        load(THIRD),
        equal(family(libc::NETLINK_ROUTE), 1, 0),
        fail(EAFNOSUPPORT),
        allow(),
    ]
}

/// Finds the number among `rules`, which are sorted; who is not among them may.
fn search(rules: &[Rule]) -> Vec<sock_filter> {
    if rules.len() <= LEAF {
        let mut leaf = Vec::new();
        for rule in rules {
            leaf.push(equal(rule.number, 0, jump(rule.body.len())));
            leaf.extend_from_slice(&rule.body);
        }
        leaf.push(allow());
        return leaf;
    }
    let (lower, upper) = rules.split_at(rules.len() / 2);
    let (mut low, high) = (search(lower), search(upper));
    let mut both = vec![at_least(upper.first().map_or(0, |rule| rule.number), jump(low.len()), 0)];
    both.append(&mut low);
    both.extend(high);
    both
}

/// No call's number is over 32 bits.
fn call(number: c_long) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn family(number: c_int) -> u32 {
    number.cast_unsigned()
}

/// The tests compare each call with the lists, so a jump that did not fit would be seen.
fn jump(instructions: usize) -> u8 {
    u8::try_from(instructions).unwrap_or(u8::MAX)
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn equal(value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no)
}

fn at_least(value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, value, yes, no)
}

fn allow() -> sock_filter {
    ret(libc::SECCOMP_RET_ALLOW)
}

fn fail(errno: c_int) -> sock_filter {
    ret(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

fn ret(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Every code has less than 8 bits.
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says to a call, and after how many steps.
    fn ask(arch: u32, number: u32, arguments: [u32; 3]) -> (u32, usize) {
        let [first, _, third] = arguments;
        let (program, mut at, mut value) = (program(), 0, 0);
        for step in 1..1000 {
            let sock_filter { code, jt, jf, k } = program[at];
            let code = u32::from(code);
            let choose = |yes| usize::from(if yes { jt } else { jf });
            at += 1;
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                value = match k {
                    NUMBER => number,
                    ARCHITECTURE => arch,
                    FIRST => first,
                    THIRD => third,
                    other => panic!("nothing is at {other}"),
                };
            } else if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K {
                at += choose(value == k);
            } else if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K {
                at += choose(value >= k);
            } else {
                assert_eq!(code, libc::BPF_RET | libc::BPF_K, "an instruction that is not used here");
                return (k, step);
            }
        }
        panic!("it does not end");
    }

    fn says(number: c_long, arguments: [u32; 3]) -> u32 {
        ask(ARCH, call(number), arguments).0
    }

    const fn errno(errno: c_int) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
    }

    #[test]
    fn every_call_is_answered_as_the_lists_have_it_and_soon() {
        for number in 0..600 {
            let (answer, steps) = ask(ARCH, call(number), [1, 0, 0]);
            let expected = if FORBIDDEN.contains(&number) || number == libc::SYS_personality {
                errno(EPERM)
            } else if ABSENT.contains(&number) || ABSENT_OLD.contains(&number) {
                errno(ENOSYS)
            } else {
                libc::SECCOMP_RET_ALLOW
            };
            assert_eq!(answer, expected, "call {number}");
            assert!(steps <= 20, "call {number} takes {steps} steps");
        }
    }

    #[test]
    fn sockets_are_of_the_families_that_programs_need() {
        let socket = |domain: c_int, protocol: c_int| says(libc::SYS_socket, [family(domain), 0, family(protocol)]);
        for domain in FAMILIES {
            assert_eq!(socket(domain, 6), libc::SECCOMP_RET_ALLOW, "{domain}");
        }
        assert_eq!(socket(libc::AF_NETLINK, libc::NETLINK_ROUTE), libc::SECCOMP_RET_ALLOW);
        for (domain, protocol) in
            [(libc::AF_NETLINK, libc::NETLINK_GENERIC), (libc::AF_PACKET, 0), (libc::AF_VSOCK, 0), (libc::AF_ALG, 0)]
        {
            assert_eq!(socket(domain, protocol), errno(EAFNOSUPPORT), "{domain} {protocol}");
        }
    }

    #[test]
    fn a_personality_may_be_asked_for_and_not_be_changed() {
        assert_eq!(says(libc::SYS_personality, [ASK_PERSONALITY, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(says(libc::SYS_personality, [0, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(says(libc::SYS_personality, [0x0004_0000, 0, 0]), errno(EPERM));
    }

    #[test]
    fn calls_of_another_mode_end_the_process_and_those_of_x32_are_not_there() {
        assert_eq!(ask(0x4000_0003, 20, [0; 3]).0, libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(ask(ARCH, X32 | 39, [0; 3]).0, errno(ENOSYS));
    }
}
