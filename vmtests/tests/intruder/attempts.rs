//! The calls that are tried.

use std::path::Path;

use libc::{c_int, c_long};
use vmtests::puppet::{Argument, Call};

use crate::outside::{Outside, loopback};

/// What is tried, and what comes of it.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) what: &'static str,
    /// A call before it, whose answer it uses.
    pub(crate) first: Option<Call>,
    pub(crate) call: Call,
    pub(crate) verdict: Verdict,
}

/// What comes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It succeeds.
    Reached,
    /// It fails, and the process goes on.
    Refused,
    /// It ends the process.
    Ended,
}

use Argument::{Last, Number};
use Verdict::{Ended, Reached, Refused};

/// What code in QEMU's place tries.
pub(crate) fn of_qemu(outside: &Outside) -> Vec<Attempt> {
    let mut attempts = vec![
        attempt("read its own program", Reached, open("/proc/self/exe", libc::O_RDONLY)),
        attempt("write to nowhere", Reached, open("/dev/null", libc::O_WRONLY)),
        attempt("see that a file is there", Reached, path_call(libc::SYS_stat, outside.path("file"), [buffer()])),
        attempt("see that a process is there", Reached, of_process(libc::SYS_getsid, outside, [])),
        attempt("have memory of its own", Reached, call(libc::SYS_memfd_create, [text("x"), Number(0)])),
        attempt("have sockets of its own", Reached, socketpair()),
    ];
    attempts.extend([
        attempt("read a library", Refused, open("/usr/lib", libc::O_RDONLY)),
        attempt("use a device", Refused, open("/dev/urandom", libc::O_RDONLY)),
    ]);
    attempts.extend(files(outside, Refused));
    attempts.extend(marks(outside, Refused));
    attempts.extend(processes(outside, Refused));
    attempts.extend(kernel(Refused));
    attempts.extend(network(outside, Refused));
    attempts.extend([
        attempt("reach a socket by its path", Refused, connect(&outside.named("socket"))).after(socket(libc::AF_UNIX)),
        attempt("reach an abstract socket", Refused, connect(&outside.abstract_socket())).after(socket(libc::AF_UNIX)),
        attempt("name a socket", Refused, bind(&outside.named("made"))).after(socket(libc::AF_UNIX)),
        attempt("start a program", Refused, call(libc::SYS_execve, [text("/bin/true"), Number(0), Number(0)])),
        attempt("make a process", Refused, call(libc::SYS_clone, [Number(libc::SIGCHLD.into())])),
        // QEMU's own filter ends it, so nothing comes after this.
        attempt("become root", Ended, call(libc::SYS_setuid, [Number(0)])),
    ]);
    attempts
}

/// What code in a gateway's place tries. Most ends it, so all but one of those are left to the tests of its filter.
pub(crate) fn of_gateway(outside: &Outside) -> Vec<Attempt> {
    let mut attempts = network(outside, Reached);
    attempts.extend([
        attempt("see that a file is there", Reached, path_call(libc::SYS_stat, outside.path("file"), [buffer()])),
        attempt("see that a process is there", Reached, of_process(libc::SYS_getsid, outside, [])),
        attempt("serve a port", Refused, bind(&loopback(0))).after(socket(libc::AF_INET)),
        attempt("signal a thread", Refused, of_process(libc::SYS_tgkill, outside, [pid(outside), Number(0)])),
        attempt("limit a process", Refused, of_process(libc::SYS_prlimit64, outside, [Number(7), Number(0), buffer()])),
        attempt("lock memory", Refused, call(libc::SYS_mlockall, [Number(libc::MCL_CURRENT.into())])),
        attempt("read a file", Ended, open(outside.path("file"), libc::O_RDONLY)),
    ]);
    attempts
}

fn files(outside: &Outside, verdict: Verdict) -> Vec<Attempt> {
    let (file, made) = (&outside.path("file"), &outside.path("made"));
    let mode = Number(0o777);
    vec![
        attempt("read a file that all may read", verdict, open(file, libc::O_RDONLY)),
        attempt("write to one that all may write to", verdict, open(file, libc::O_WRONLY)),
        attempt("read accounts", verdict, open("/etc/passwd", libc::O_RDONLY)),
        attempt("list the root directory", verdict, open("/", libc::O_RDONLY)),
        attempt("list processes", verdict, open("/proc", libc::O_RDONLY)),
        attempt("read its own memory map", verdict, open("/proc/self/maps", libc::O_RDONLY)),
        attempt("read a process's memory", verdict, open(format!("/proc/{}/mem", outside.process()), libc::O_RDONLY)),
        attempt("read what the kernel says of devices", verdict, open("/sys", libc::O_RDONLY)),
        attempt("make a file", verdict, open(made, libc::O_CREAT | libc::O_WRONLY)),
        attempt("make a file without a name", verdict, open(outside.path(""), libc::O_TMPFILE | libc::O_RDWR)),
        attempt("make a directory", verdict, path_call(libc::SYS_mkdir, made, [mode.clone()])),
        attempt("make a pipe", verdict, path_call(libc::SYS_mknod, made, [Number((libc::S_IFIFO | 0o666).into())])),
        attempt("make a link", verdict, call(libc::SYS_link, [path(file), path(made)])),
        attempt("make a symbolic link", verdict, call(libc::SYS_symlink, [path(file), path(made)])),
        attempt("rename a file", verdict, call(libc::SYS_rename, [path(file), path(outside.path("renamed"))])),
        attempt("remove a file", verdict, path_call(libc::SYS_unlink, file, [])),
        attempt("cut a file", verdict, path_call(libc::SYS_truncate, file, [Number(0)])),
        attempt("go to a directory", verdict, path_call(libc::SYS_chdir, "/", [])),
    ]
}

/// Changes of what a file's content is not, which Landlock does not know.
fn marks(outside: &Outside, verdict: Verdict) -> Vec<Attempt> {
    let file = &outside.path("file");
    let here = Number(libc::AT_FDCWD.into());
    let attribute = [text("user.x"), Argument::Bytes(vec![1]), Number(1), Number(0)];
    vec![
        attempt("change a file's times", verdict, call(libc::SYS_utimensat, [here, path(file), Number(0), Number(0)])),
        attempt("mark a file", verdict, path_call(libc::SYS_setxattr, file, attribute)),
        attempt("change who may use a file", verdict, path_call(libc::SYS_chmod, file, [Number(0o666)])),
        attempt("give a file away", verdict, path_call(libc::SYS_chown, file, [Number(0), Number(0)])),
        attempt("watch files", verdict, call(libc::SYS_inotify_init1, [Number(0)])),
    ]
}

fn processes(outside: &Outside, verdict: Verdict) -> Vec<Attempt> {
    let seize = [Number(libc::PTRACE_SEIZE.into())].into_iter().chain([pid(outside), Number(0), Number(0)]);
    vec![
        attempt("signal a process", verdict, of_process(libc::SYS_kill, outside, [Number(0)])),
        attempt("signal a thread", verdict, of_process(libc::SYS_tgkill, outside, [pid(outside), Number(0)])),
        attempt("hold a process", verdict, of_process(libc::SYS_pidfd_open, outside, [Number(0)])),
        attempt("debug a process", verdict, call(libc::SYS_ptrace, seize)),
        attempt("copy a process's memory", verdict, of_process(libc::SYS_process_vm_readv, outside, [])),
        attempt("limit a process", verdict, of_process(libc::SYS_prlimit64, outside, [Number(7), Number(0), buffer()])),
        attempt("compare processes", verdict, of_process(libc::SYS_kcmp, outside, [pid(outside)])),
        attempt("share memory by a key", verdict, call(libc::SYS_shmget, [Number(0), Number(4096), Number(0o1600)])),
        attempt("have a queue of messages", verdict, call(libc::SYS_msgget, [Number(0), Number(0o1600)])),
        attempt("keep a key", verdict, call(libc::SYS_add_key, key())),
    ]
}

fn kernel(verdict: Verdict) -> Vec<Attempt> {
    // A map of one entry, and an event of software.
    let map = [&[2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0][..], &[0; 56]].concat();
    let event = [&[1, 0, 0, 0, 128, 0, 0, 0][..], &[0; 120]].concat();
    let (zero, none) = (Number(0), Number(-1));
    let map_bytes = i64::try_from(map.len()).expect("it is short");
    vec![
        attempt("have another root", verdict, path_call(libc::SYS_chroot, "/", [])),
        attempt("make a file system", verdict, call(libc::SYS_fsopen, [text("tmpfs"), zero.clone()])),
        attempt("load a program into the kernel", verdict, {
            call(libc::SYS_bpf, [zero.clone(), Argument::Bytes(map), Number(map_bytes)])
        }),
        attempt("count events", verdict, {
            call(libc::SYS_perf_event_open, [Argument::Bytes(event), zero.clone(), none.clone(), none, zero.clone()])
        }),
        attempt("handle page faults", verdict, call(libc::SYS_userfaultfd, [Number(1)])),
        attempt("queue calls", verdict, call(libc::SYS_io_uring_setup, [Number(1), Argument::Bytes(vec![0; 120])])),
        attempt("change segments", verdict, call(libc::SYS_modify_ldt, [zero, buffer(), Number(64)])),
    ]
}

/// The network of the host.
fn network(outside: &Outside, verdict: Verdict) -> Vec<Attempt> {
    let udp = Argument::Bytes(outside.udp());
    let datagram = [Last, buffer(), Number(1), Number(0), udp, Number(16)];
    vec![
        attempt("have a socket of the internet", verdict, socket(libc::AF_INET)),
        attempt("connect to a port", verdict, connect(&outside.tcp())).after(socket(libc::AF_INET)),
        attempt("send a datagram", verdict, call(libc::SYS_sendto, datagram)).after(socket_of(libc::SOCK_DGRAM)),
    ]
}

fn attempt(what: &'static str, verdict: Verdict, call: Call) -> Attempt {
    Attempt { what, first: None, call, verdict }
}

impl Attempt {
    fn after(self, first: Call) -> Self {
        Self { first: Some(first), ..self }
    }
}

fn call(number: c_long, arguments: impl IntoIterator<Item = Argument>) -> Call {
    Call { number, arguments: arguments.into_iter().collect() }
}

fn path_call(number: c_long, name: impl AsRef<Path>, more: impl IntoIterator<Item = Argument>) -> Call {
    call(number, [path(name)].into_iter().chain(more))
}

fn open(name: impl AsRef<Path>, flags: c_int) -> Call {
    call(libc::SYS_openat, [Number(libc::AT_FDCWD.into()), path(name), Number(flags.into()), Number(0o600)])
}

fn of_process(number: c_long, outside: &Outside, more: impl IntoIterator<Item = Argument>) -> Call {
    call(number, [pid(outside)].into_iter().chain(more))
}

fn socket(family: c_int) -> Call {
    call(libc::SYS_socket, [family, libc::SOCK_STREAM, 0].map(|number| Number(number.into())))
}

fn socket_of(kind: c_int) -> Call {
    call(libc::SYS_socket, [libc::AF_INET, kind, 0].map(|number| Number(number.into())))
}

fn socketpair() -> Call {
    call(libc::SYS_socketpair, [Number(libc::AF_UNIX.into()), Number(libc::SOCK_STREAM.into()), Number(0), buffer()])
}

fn connect(address: &[u8]) -> Call {
    to_address(libc::SYS_connect, address)
}

fn bind(address: &[u8]) -> Call {
    to_address(libc::SYS_bind, address)
}

fn to_address(number: c_long, address: &[u8]) -> Call {
    let length = i64::try_from(address.len()).expect("it is short");
    call(number, [Last, Argument::Bytes(address.to_vec()), Number(length)])
}

fn key() -> [Argument; 5] {
    // Of the process's own keyring.
    [text("user"), text("x"), Argument::Bytes(vec![1]), Number(1), Number(-2)]
}

fn pid(outside: &Outside) -> Argument {
    Number(outside.process().into())
}

fn text(text: &str) -> Argument {
    Argument::Bytes([text.as_bytes(), &[0]].concat())
}

fn path(path: impl AsRef<Path>) -> Argument {
    text(path.as_ref().to_str().expect("it is text"))
}

/// Where the kernel writes what nobody reads.
fn buffer() -> Argument {
    Argument::Bytes(vec![0; 256])
}
