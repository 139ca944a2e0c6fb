//! Limits and time-outs that both ends rely on. Relations between them are asserted when this crate is compiled.

use std::time::Duration;

/// Largest body a peer may send. Chunks of output are [`CHUNK_BYTES`], so an honest peer never comes near it; it bounds what a
/// hostile one can make this side hold.
pub const MAX_BODY_BYTES: u32 = 1024 * 1024;

/// Largest piece in which streams and programs are sent: the size of a Linux pipe, so one read fills one frame.
pub const CHUNK_BYTES: u32 = 64 * 1024;

/// What a stream may have in flight before the receiver grants more. Four chunks keep the port busy across the round trip of a
/// grant; more would only let one stream crowd out the others.
pub const STREAM_WINDOW_BYTES: u32 = 4 * CHUNK_BYTES;

/// Largest encoded [`Program`](crate::Program): a program of 1,048,576 characters of four bytes and 100 variables of the longest
/// name and value still fit.
pub const MAX_PROGRAM_BYTES: u32 = 8 * 1024 * 1024;

/// Most bytes of standard output that are kept of one execution; the rest is counted and thrown away.
pub const MAX_STDOUT_BYTES: u64 = 1_000_000;

/// Most bytes of standard error that are kept of one execution.
pub const MAX_STDERR_BYTES: u64 = 100_000;

/// Bytes of a seed: as many as the kernel's generator has of state.
pub const SEED_BYTES: usize = 32;

/// Operations that may be under way on one channel.
pub const MAX_OPERATIONS: usize = 64;

/// Largest file that is written or read.
pub const MAX_FILE_BYTES: u64 = 500 * 1024 * 1024;

/// Longest path of a file, and longest name in it.
pub const MAX_PATH_BYTES: usize = 4096;
/// See [`MAX_PATH_BYTES`]: what Linux allows.
pub const MAX_NAME_BYTES: usize = 255;

/// Entries of a list are sent in frames of at most about so many bytes, so that a list of any length takes little memory.
pub const ENTRIES_BYTES: u32 = 32 * 1024;

/// Longest text an agent may put into a refusal.
pub const MAX_DETAIL_BYTES: usize = 4096;

/// What an interpreter may need to come up, before a program's time begins: seconds under emulation, more on a host that boots
/// many at once.
pub const INTERPRETER_START: Duration = Duration::from_secs(30);

/// How long a program may run.
pub const MAX_EXEC_TIMEOUT: Duration = Duration::from_secs(300);

/// Between the SIGTERM that tells a program its time is up and the SIGKILL that ends it.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long the agent may need, beyond timeout and grace, to kill, drain and report.
pub const AGENT_SLACK: Duration = Duration::from_secs(3);

/// What a host waits beyond an interpreter's start and a program's timeout before it stops believing in the agent.
pub const HOST_SLACK: Duration = Duration::from_secs(10);

const _: () = {
    assert!(CHUNK_BYTES <= MAX_BODY_BYTES);
    assert!(STREAM_WINDOW_BYTES >= 2 * CHUNK_BYTES, "a window below two chunks stalls on every grant");
    assert!(MAX_DETAIL_BYTES < MAX_BODY_BYTES as usize);
    assert!(ENTRIES_BYTES as usize > MAX_PATH_BYTES && 2 * ENTRIES_BYTES <= STREAM_WINDOW_BYTES);
    assert!(MAX_STDERR_BYTES <= MAX_STDOUT_BYTES);
    // The guest's soft limit lies inside the host's hard one, with room for the grace and the report.
    assert!(HOST_SLACK.as_millis() > KILL_GRACE.as_millis() + AGENT_SLACK.as_millis());
};
