//! The control bodies, as protobuf. Fields are added, never renumbered or reused: an agent in a snapshot may be older than its
//! host. Paths, code and variables are bytes, because Linux's are.

/// First frame of either side, on operation 0.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// [`GENERATION`](crate::GENERATION) of the sender.
    #[prost(uint32, tag = "1")]
    pub generation: u32,
    /// Guest: 16 random bytes drawn at boot; the same after a reconnect, another after a restart.
    #[prost(bytes = "vec", tag = "2")]
    pub boot_id: Vec<u8>,
    /// Guest: the agent's version, for people.
    #[prost(string, tag = "3")]
    pub agent_version: String,
    /// Host: the wall clock in nanoseconds since 1970, which the guest takes over; 0 says nothing.
    #[prost(uint64, tag = "4")]
    pub unix_time_ns: u64,
    /// Host: the operations it still waits for and how far each has come. Empty from a host that has just met this guest.
    #[prost(message, repeated, tag = "5")]
    pub resume: Vec<ResumePoint>,
}

/// How far a host has come with one operation when it returns. What was on its way when it left is lost, so both sides begin
/// anew from here: the guest sends each stream on from the byte that the host lacks, within a window as large as the credit.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ResumePoint {
    /// The operation.
    #[prost(uint32, tag = "1")]
    pub op: u32,
    /// Bytes of standard output that the host has.
    #[prost(uint64, tag = "2")]
    pub stdout_bytes: u64,
    /// Bytes of standard error that the host has.
    #[prost(uint64, tag = "3")]
    pub stderr_bytes: u64,
    /// Bytes of standard output that may be sent now, at most [`STREAM_WINDOW_BYTES`](crate::limits::STREAM_WINDOW_BYTES).
    #[prost(uint32, tag = "4")]
    pub stdout_credit: u32,
    /// Bytes of standard error that may be sent now, at most as many.
    #[prost(uint32, tag = "5")]
    pub stderr_credit: u32,
}

/// What an interpreter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Language {
    /// Never sent on purpose: what protobuf reads when the field is missing.
    Unspecified = 0,
    /// CPython.
    Python = 1,
    /// JavaScript and TypeScript, run by Bun.
    JavaScript = 2,
    /// bash.
    Raw = 3,
}

/// Begin an execution. The encoded [`Program`] follows in pieces.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecStart {
    /// Which interpreter runs it.
    #[prost(enumeration = "Language", tag = "1")]
    pub language: i32,
    /// After this many milliseconds of running the program is told to end.
    #[prost(uint32, tag = "2")]
    pub timeout_ms: u32,
    /// Bytes of the encoded program, at most [`MAX_PROGRAM_BYTES`](crate::limits::MAX_PROGRAM_BYTES).
    #[prost(uint32, tag = "3")]
    pub program_bytes: u32,
}

/// What is run. Sent in pieces because it may be larger than a frame.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Program {
    /// The source, in the language's own text.
    #[prost(bytes = "vec", tag = "1")]
    pub code: Vec<u8>,
    /// Variables of this execution alone.
    #[prost(message, repeated, tag = "2")]
    pub env: Vec<EnvVar>,
}

/// One environment variable.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EnvVar {
    /// The name.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// A signal for the processes of an execution.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Signal {
    /// Linux's number, 1 to 64.
    #[prost(uint32, tag = "1")]
    pub number: u32,
}

/// More of each stream may be sent. Granted as the host's caller takes what has come.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Credit {
    /// Bytes of standard output.
    #[prost(uint32, tag = "1")]
    pub stdout_bytes: u32,
    /// Bytes of standard error.
    #[prost(uint32, tag = "2")]
    pub stderr_bytes: u32,
}

/// How an execution came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum End {
    /// Never sent on purpose.
    Unspecified = 0,
    /// The program ended and gave a code.
    Exited = 1,
    /// A signal ended it that the agent did not send.
    Signalled = 2,
    /// Its time was up and it had to be ended.
    TimedOut = 3,
    /// It used up the memory it was given.
    OutOfMemory = 4,
    /// The host called it off.
    Cancelled = 5,
}

/// The execution is over: the last frame of its operation, after all of its output.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Done {
    /// How it ended.
    #[prost(enumeration = "End", tag = "1")]
    pub end: i32,
    /// The program's own code if it exited.
    #[prost(int32, tag = "2")]
    pub exit_code: i32,
    /// The signal's number if one ended it.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// Bytes that the program wrote to standard output, those over the cap included.
    #[prost(uint64, tag = "4")]
    pub stdout_bytes: u64,
    /// Bytes that the program wrote to standard error, those over the cap included.
    #[prost(uint64, tag = "5")]
    pub stderr_bytes: u64,
    /// What was measured of it.
    #[prost(message, optional, tag = "6")]
    pub usage: Option<Usage>,
}

/// What the guest measured of an execution. Believed for information only.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Usage {
    /// From the request to an interpreter that is ready, in microseconds; next to nothing if it was running.
    #[prost(uint64, tag = "1")]
    pub spawn_us: u64,
    /// From handing over the program to its end, in microseconds.
    #[prost(uint64, tag = "2")]
    pub run_us: u64,
    /// CPU time of the user's processes over the execution, in microseconds; absent if the kernel did not say.
    #[prost(uint64, optional, tag = "3")]
    pub cpu_us: Option<u64>,
    /// The most memory the user's processes held at once, in bytes; absent if the kernel did not say.
    #[prost(uint64, optional, tag = "4")]
    pub memory_peak_bytes: Option<u64>,
}

/// Why an operation did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Refusal {
    /// Never sent on purpose.
    Unspecified = 0,
    /// The agent does not know this kind of operation.
    UnknownOperation = 1,
    /// The request contradicts itself or a limit.
    BadRequest = 2,
    /// Another execution is under way.
    Busy = 3,
    /// The image has no such interpreter.
    NoInterpreter = 4,
    /// The interpreter did not come up.
    SpawnFailed = 5,
}

/// The operation did not begin: none of the caller's code has run.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Refused {
    /// The reason, for programs.
    #[prost(enumeration = "Refusal", tag = "1")]
    pub reason: i32,
    /// The reason, for people: at most [`MAX_DETAIL_BYTES`](crate::limits::MAX_DETAIL_BYTES).
    #[prost(string, tag = "2")]
    pub detail: String,
}
