//! One run of the test guest on KVM, under a deadline that holds whatever KVM does.
//!
//! A thread of its own does all that touches KVM. At the deadline it is kicked out of the guest by a signal, which is blocked in the
//! thread and let through only by KVM while the guest runs: so no handler is installed in the caller's process, no kick is lost between
//! two entries, and no other signal of the process ends up here. A thread that even then does not come back is left behind, which is
//! the one case where something remains, until the process ends.
#![expect(
    unsafe_code,
    reason = "memory and a signal mask are given to KVM by address, and threads are signalled through libc"
)]

use std::{
    io, mem,
    os::{fd::AsRawFd as _, unix::thread::JoinHandleExt as _},
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::time::{ClockId, clock_gettime};

use super::{
    guest,
    kvm::{KvmFault, Step},
};

/// How long the thread may take to come back after the kick. KVM answers a signal at once; closing a VM takes a few milliseconds.
const GRACE: Duration = Duration::from_millis(300);

/// Ends the guest's turn. Ignored by default, so that it harms nobody if it ever goes astray.
const KICK: libc::c_int = libc::SIGURG;

/// `KVM_SET_SIGNAL_MASK`: `_IOW(0xAE, 0x8b, struct kvm_signal_mask)`, whose fixed part has 4 bytes.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// More than the guest ever writes; what a broken KVM makes of it is not collected without end.
const MAX_OUTPUT_BYTES: usize = 64;

/// What the guest did.
#[derive(Debug)]
pub(super) struct Run {
    /// What it wrote to its output port.
    pub(super) output: Vec<u8>,
    pub(super) end: End,
    /// From the start of the thread until everything was closed.
    pub(super) wall: Duration,
    /// Processor time of the thread, the guest's included.
    pub(super) cpu: Duration,
}

/// How the guest's run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It wrote this exit code.
    Exited(u32),
    /// The deadline came first.
    Interrupted,
    /// KVM gave up, in these words.
    Failed(String),
}

/// What both threads know.
#[derive(Debug)]
struct Progress {
    step: Mutex<Step>,
    deadline_passed: AtomicBool,
}

/// A guest's memory in whole pages, aligned as KVM wants it.
#[repr(align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// The test guest, ready to run. Descriptors are closed before the memory is freed: fields are dropped in this order.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _kvm: Kvm,
    _memory: Vec<Page>,
}

/// Runs the test guest for at most `deadline`.
pub(super) fn run(deadline: Duration) -> Result<Run, KvmFault> {
    let progress = Arc::new(Progress { step: Mutex::new(Step::Thread), deadline_passed: AtomicBool::new(false) });
    let started = Instant::now();
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("kvm-probe".into())
        .spawn({
            let progress = Arc::clone(&progress);
            move || {
                let result = on_thread(&progress);
                let _ = sender.send(result);
            }
        })
        .map_err(|error| KvmFault::refused(Step::Thread, error))?;
    let result = receiver.recv_timeout(deadline).or_else(|_| {
        progress.deadline_passed.store(true, Ordering::SeqCst);
        kick(&thread);
        receiver.recv_timeout(GRACE)
    });
    let Ok(result) = result else { return Err(KvmFault::Stuck { step: progress.step() }) };
    // It has sent its last word, so it ends now.
    let _ = thread.join();
    let (output, end, cpu) = result?;
    Ok(Run { output, end, wall: started.elapsed(), cpu })
}

fn on_thread(progress: &Progress) -> Result<(Vec<u8>, End, Duration), KvmFault> {
    block_all_signals();
    let mut guest = Guest::create(progress)?;
    progress.enter(Step::Run);
    let mut output = Vec::new();
    let end = guest.run(progress, &mut output)?;
    drop(guest);
    let cpu = clock_gettime(ClockId::ThreadCPUTime);
    Ok((output, end, cpu.try_into().unwrap_or_default()))
}

impl Guest {
    fn create(progress: &Progress) -> Result<Self, KvmFault> {
        let at = |step: Step| {
            progress.enter(step);
            move |error: kvm_ioctls::Error| KvmFault::refused(step, io::Error::from_raw_os_error(error.errno()))
        };
        let kvm = Kvm::new().map_err(at(Step::Open))?;
        let vm = kvm.create_vm().map_err(at(Step::CreateVm))?;
        let failed = at(Step::Memory);
        // Intel processors without unrestricted mode want three pages that the guest does not use.
        vm.set_tss_address(0xfffb_d000).map_err(&failed)?;
        let mut memory = vec![Page([0; 4096]); guest::MEMORY_BYTES / 4096];
        load(&mut memory);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: guest::MEMORY_BYTES as u64,
            userspace_addr: memory.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the region is the whole of `memory`, which nothing here touches again and which is freed after every descriptor of
        // the VM has been closed.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed)?;
        let vcpu = vm.create_vcpu(0).map_err(at(Step::CreateVcpu))?;
        let failed = at(Step::Features);
        let features = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(&failed)?;
        vcpu.set_cpuid2(&features).map_err(failed)?;
        set_registers(&vcpu).map_err(at(Step::Registers))?;
        let_only_the_kick_through(&vcpu).map_err(|error| KvmFault::refused(Step::Registers, error))?;
        Ok(Self { vcpu, _vm: vm, _kvm: kvm, _memory: memory })
    }

    /// Lets the guest run until it exits, fails or is kicked.
    fn run(&mut self, progress: &Progress, output: &mut Vec<u8>) -> Result<End, KvmFault> {
        // A kick before the signals were blocked was ignored, so its reason is looked for here; a later one waits for the guest.
        while !progress.deadline_passed.load(Ordering::SeqCst) {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::OUTPUT_PORT, bytes)) if output.len() < MAX_OUTPUT_BYTES => {
                    output.extend_from_slice(bytes)
                }
                Ok(VcpuExit::IoOut(guest::EXIT_PORT, &[a, b, c, d])) => {
                    return Ok(End::Exited(u32::from_le_bytes([a, b, c, d])));
                }
                Ok(VcpuExit::InternalError) => return Ok(End::Failed(self.internal_error())),
                Ok(VcpuExit::Shutdown) => return Ok(End::Failed("it shut down after a triple fault".into())),
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    return Ok(End::Failed(format!("entry failed, hardware reason {reason:#x}")));
                }
                Ok(other) => return Ok(End::Failed(format!("unexpected exit {other:?}"))),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(KvmFault::refused(Step::Run, io::Error::from_raw_os_error(error.errno()))),
            }
        }
        Ok(End::Interrupted)
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: the last exit was an internal error, for which KVM fills in this member of the union; all its members are plain
        // numbers in any case.
        let internal = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal };
        match internal.suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
                "it could not emulate an instruction (internal error 1)".into()
            }
            suberror => format!("internal error {suberror}"),
        }
    }
}

impl Progress {
    fn enter(&self, step: Step) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    fn step(&self) -> Step {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the program to its place.
fn load(memory: &mut [Page]) {
    let pages = memory.iter_mut().skip(guest::BASE as usize / 4096);
    for (page, bytes) in pages.zip(guest::program().chunks(4096)) {
        for (to, from) in page.0.iter_mut().zip(bytes) {
            *to = *from;
        }
    }
}

/// 32-bit protected mode without paging, flat segments, at the program's start: as a PVH loader leaves it.
fn set_registers(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let segment = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let (code, data) = (segment(8, 11), segment(16, 3));
    let mut special = vcpu.get_sregs()?;
    special.cs = code;
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    // Protected mode, extension type.
    special.cr0 = 0x11;
    vcpu.set_sregs(&special)?;
    // Bit 1 of the flags is always set.
    vcpu.set_regs(&kvm_regs { rip: guest::BASE.into(), rflags: 2, ..kvm_regs::default() })
}

/// Blocks every signal in this thread, so that the process's other threads handle theirs.
fn block_all_signals() {
    let mut all = mem::MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that may be written.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `sigfillset` has initialised it; with a valid pointer it cannot fail.
    let all = unsafe { all.assume_init() };
    // SAFETY: the set is initialised, and no old one is asked for. Only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut()) };
}

/// Tells KVM to unblock the kick, and nothing else, while the guest runs.
fn let_only_the_kick_through(vcpu: &VcpuFd) -> io::Result<()> {
    /// `struct kvm_signal_mask` with the kernel's signal set of 64 bits.
    #[repr(C, packed)]
    struct SignalMask {
        length: u32,
        blocked: u64,
    }
    let mask = SignalMask { length: 8, blocked: !(1 << (KICK - 1)) };
    // SAFETY: the descriptor is a vCPU's, and the argument is the structure that this request reads: a length and as many bytes.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn kick(thread: &thread::JoinHandle<()>) {
    // SAFETY: the thread has not been joined, so its identifier is still its own.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), KICK) };
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Threads of the probe and descriptors of KVM that this process has.
    fn remains() -> (usize, usize) {
        let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted").flatten();
        let threads = tasks
            .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "kvm-probe"));
        let descriptors = fs::read_dir("/proc/self/fd").expect("/proc is mounted").flatten();
        let kvms =
            descriptors.filter(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.to_string_lossy().contains("kvm")));
        (threads.count(), kvms.count())
    }

    /// Whatever this machine's KVM does: the run ends, and nothing of it is left.
    #[test]
    fn a_run_ends_and_leaves_no_thread_and_no_descriptor() {
        for deadline_ms in [200, 20, 0] {
            match run(Duration::from_millis(deadline_ms)) {
                Ok(run) => assert!(run.output.len() <= MAX_OUTPUT_BYTES),
                Err(fault) => assert!(!matches!(fault, KvmFault::Stuck { .. }), "{fault}"),
            }
            assert_eq!(remains(), (0, 0));
        }
    }

    /// Given time, even a KVM that interprets its guests gets there: so the registers and the exits are shown right.
    #[test]
    #[ignore = "needs /dev/kvm, and 11 s where KVM interprets guests"]
    fn a_run_without_haste_gives_the_expected_answer() {
        let run = run(Duration::from_secs(60)).expect("KVM takes the guest");
        assert_eq!(run.end, End::Exited(0));
        assert_eq!(run.output, guest::EXPECTED);
    }
}
