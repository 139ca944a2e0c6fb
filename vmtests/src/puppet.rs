//! A process of which one thread makes the system calls that a test chooses: what code in the process's place could do.
//!
//! The test attaches as a debugger does, puts numbers into the thread's registers and lets it execute one `syscall` instruction. The
//! kernel sees a call of that process, so every layer around it has its say: its user, its namespaces, Landlock, its filters.
#![expect(unsafe_code, reason = "ptrace has no safe interface")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    mem::MaybeUninit,
    os::unix::fs::FileExt as _,
    ptr, thread,
    time::Duration,
};

use libc::{c_int, c_long, pid_t, user_regs_struct};
use rustix::io::Errno;

/// The instruction, and how many bytes it has.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Below the stack that the thread uses, past what the ABI lets it use below its stack pointer.
const SCRATCH_BELOW: u64 = 16 * 1024;

/// How often it is looked whether a thread stands still.
const LOOK: Duration = Duration::from_micros(100);

/// Calls that the kernel would have the thread make again are told by these answers, which no program sees.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

/// A call, by its number, and its arguments.
#[derive(Clone, Debug)]
pub struct Call {
    /// As `<asm/unistd.h>` has it.
    pub number: c_long,
    /// At most six. What is missing is zero.
    pub arguments: Vec<Argument>,
}

/// An argument of a call.
#[derive(Clone, Debug)]
pub enum Argument {
    /// A number.
    Number(i64),
    /// The address of these bytes, which are put into the process's memory.
    Bytes(Vec<u8>),
    /// The descriptor that the call before answered.
    Last,
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done, and answered this.
    Done(i64),
    /// It was refused.
    Refused(Errno),
    /// It ended the process, or the thread that made it.
    Killed,
}

/// See the head of this file. The process goes on as it was when this is dropped.
#[derive(Debug)]
pub struct Puppet {
    pid: pid_t,
    memory: File,
    /// Where a `syscall` instruction is.
    instruction: u64,
    before: user_regs_struct,
    last: i64,
    is_dead: bool,
}

impl Puppet {
    /// Takes over the first thread of a process, which waits in a system call.
    ///
    /// # Errors
    /// The kernel does not let this process debug that one, or its thread is not in a call.
    pub fn take(pid: u32) -> io::Result<Self> {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let pid = pid_t::try_from(pid).map_err(io::Error::other)?;
        request(libc::PTRACE_SEIZE, pid, 0, 0)?;
        request(libc::PTRACE_INTERRUPT, pid, 0, 0)?;
        wait(pid)?;
        let before = registers(pid)?;
        let instruction = before.rip - SYSCALL.len() as u64;
        let puppet = Self { pid, memory, instruction, before, last: -1, is_dead: false };
        let mut found = [0; SYSCALL.len()];
        puppet.memory.read_exact_at(&mut found, instruction)?;
        if found != SYSCALL {
            return Err(io::Error::other("the thread is not in a system call"));
        }
        Ok(puppet)
    }

    /// Has the process make a call. It must not be one that waits.
    ///
    /// # Errors
    /// The kernel refuses something to the debugger; what it refuses to the process is in the answer.
    pub fn call(&mut self, Call { number, arguments }: &Call) -> io::Result<Answer> {
        let mut scratch = (self.before.rsp - SCRATCH_BELOW) & !0xff;
        let mut values = [0_u64; 6];
        for (value, argument) in values.iter_mut().zip(arguments) {
            *value = match argument {
                Argument::Number(number) => number.cast_unsigned(),
                Argument::Last => self.last.cast_unsigned(),
                Argument::Bytes(bytes) => {
                    scratch -= (bytes.len() as u64 + 0x10) & !0xf;
                    self.memory.write_all_at(bytes, scratch)?;
                    scratch
                }
            };
        }
        let [rdi, rsi, rdx, r10, r8, r9] = values;
        let asked = user_regs_struct {
            rip: self.instruction,
            rax: number.cast_unsigned(),
            // Not in a call that could be made again.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.before
        };
        set_registers(self.pid, &asked)?;
        request(libc::PTRACE_SINGLESTEP, self.pid, 0, 0)?;
        match wait(self.pid)? {
            Stop::Dead => {
                self.is_dead = true;
                return Ok(Answer::Killed);
            }
            // A filter that does not kill at once sends this signal, whose default does.
            Stop::Signal(libc::SIGSYS) => return Ok(Answer::Killed),
            Stop::Signal(_) => {}
        }
        let answer = registers(self.pid)?.rax.cast_signed();
        self.last = answer;
        Ok(match i32::try_from(-answer) {
            Ok(errno @ 1..=4095) if !RESTARTS.contains(&answer) => Answer::Refused(Errno::from_raw_os_error(errno)),
            _ => Answer::Done(answer),
        })
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if !self.is_dead {
            // It may have been killed meanwhile, and then there is nothing to give back.
            let _ = set_registers(self.pid, &self.before);
            let _ = request(libc::PTRACE_DETACH, self.pid, 0, 0);
        }
    }
}

/// What a thread has come to.
enum Stop {
    Signal(c_int),
    Dead,
}

/// Waits until the thread stands still. A first thread that has died alone is not told of: others may live on.
fn wait(pid: pid_t) -> io::Result<Stop> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one number.
        let answer = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match answer {
            0 if is_zombie(pid)? => return Ok(Stop::Dead),
            0 => thread::sleep(LOOK),
            -1 => return Err(io::Error::last_os_error()),
            _ if libc::WIFSTOPPED(status) => return Ok(Stop::Signal(libc::WSTOPSIG(status))),
            _ => return Ok(Stop::Dead),
        }
    }
}

fn is_zombie(pid: pid_t) -> io::Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

fn registers(pid: pid_t) -> io::Result<user_regs_struct> {
    let mut registers = MaybeUninit::uninit();
    request(libc::PTRACE_GETREGS, pid, 0, registers.as_mut_ptr() as usize)?;
    // SAFETY: the kernel has written all of it.
    Ok(unsafe { registers.assume_init() })
}

fn set_registers(pid: pid_t, registers: &user_regs_struct) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, pid, 0, ptr::from_ref(registers) as usize)
}

fn request(request: libc::c_uint, pid: pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: of the requests above, one reads and one writes at `data`, where there are all registers; the others use no memory.
    let answer = unsafe { libc::ptrace(request, pid, address, data) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
