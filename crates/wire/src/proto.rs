//! The control bodies, as protobuf. Fields are added, never renumbered or reused: an agent in a snapshot may be older than its
//! host. Paths, code and variables are bytes, because Linux's are.

/// First frame of either side, on operation 0.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// [`GENERATION`](crate::GENERATION) of the sender.
    #[prost(uint32, tag = "1")]
    pub generation: u32,
    /// Guest: 16 random bytes drawn at boot, which programs find as a UUID in `/proc/sys/kernel/random/boot_id`; the same after a
    /// reconnect, others after a restart and after a `seed`.
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
    /// Host: the network of a guest that has a card, which is to be set up now. Answered with [`Kind::NETWORK`](crate::Kind::NETWORK).
    #[prost(message, optional, tag = "6")]
    pub network: Option<Network>,
    /// Host: [`SEED_BYTES`](crate::limits::SEED_BYTES) random bytes for a guest that is a copy of another, and becomes a machine of its
    /// own before it answers with its Hello; empty: it is none. Never the answer to a guest's Hello.
    #[prost(bytes = "vec", tag = "7")]
    pub seed: Vec<u8>,
}

/// A guest's place in its network. Addresses are of IPv4, as numbers of which the highest byte is the first.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Network {
    /// The guest's own address.
    #[prost(fixed32, tag = "1")]
    pub address: u32,
    /// Bits of the address that are the network's, 1 to 30.
    #[prost(uint32, tag = "2")]
    pub prefix_bits: u32,
    /// Where everything goes that is not in the network.
    #[prost(fixed32, tag = "3")]
    pub gateway: u32,
    /// Who knows names.
    #[prost(fixed32, tag = "4")]
    pub resolver: u32,
    /// Largest packet in bytes.
    #[prost(uint32, tag = "5")]
    pub mtu: u32,
    /// The card's Ethernet address, as a number of six bytes of which the highest is the first. 0 from an older host: the only card.
    #[prost(fixed64, tag = "6")]
    pub card: u64,
    /// The gateway's Ethernet address, in the same form. 0 from an older host: it is asked for on the link.
    #[prost(fixed64, tag = "7")]
    pub gateway_card: u64,
}

/// What has become of a network that a host named.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NetworkState {
    /// Why it is not up, for people; empty: it is.
    #[prost(string, tag = "1")]
    pub failure: String,
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
    /// Nothing is executed after it: an interpreter that ends with its last program, as a script does, runs what the program
    /// registered for its end.
    #[prost(bool, tag = "4")]
    pub is_last: bool,
    /// The program is nobody's: it is run so that everything is loaded and warm, and leaves no trace. Never the last one.
    #[prost(bool, tag = "5")]
    pub rehearsal: bool,
    /// The wall clock in nanoseconds since 1970, which the guest takes over before the program runs: a guest that has been kept for long
    /// has no other way to know. 0 says nothing.
    #[prost(uint64, tag = "6")]
    pub unix_time_ns: u64,
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

/// More of each stream may be sent. Granted as the receiver, or the host's caller, takes what has come.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Credit {
    /// Bytes of standard output.
    #[prost(uint32, tag = "1")]
    pub stdout_bytes: u32,
    /// Bytes of standard error.
    #[prost(uint32, tag = "2")]
    pub stderr_bytes: u32,
    /// Bytes of a file's data, or of the entries of a list. Its window is [`STREAM_WINDOW_BYTES`](crate::limits::STREAM_WINDOW_BYTES)
    /// too.
    #[prost(uint32, tag = "3")]
    pub data_bytes: u32,
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

/// Why an operation did not begin, or a file operation came to nothing.
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
    /// There is nothing of that name.
    NotFound = 6,
    /// The path leads out of the home directory, or the user may not do that.
    NotAllowed = 7,
    /// It is not of the kind that the operation is for: a directory where a file is meant, a FIFO, a device.
    WrongKind = 8,
    /// It is larger than [`MAX_FILE_BYTES`](crate::limits::MAX_FILE_BYTES).
    TooLarge = 9,
    /// The memory file system is full.
    NoSpace = 10,
    /// Something of that name is there already.
    Exists = 11,
    /// The directory is not empty.
    NotEmpty = 12,
    /// The bytes that arrived are not those that were sent.
    Damaged = 13,
    /// The host called it off.
    Cancelled = 14,
    /// The kernel refused it for another reason, which the detail names.
    Failed = 15,
}

/// The operation did not begin: none of the caller's code has run. Or a file operation came to nothing: no file has changed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Refused {
    /// The reason, for programs.
    #[prost(enumeration = "Refusal", tag = "1")]
    pub reason: i32,
    /// The reason, for people: at most [`MAX_DETAIL_BYTES`](crate::limits::MAX_DETAIL_BYTES).
    #[prost(string, tag = "2")]
    pub detail: String,
}

/// Write a file below the home directory, as the user. It replaces what has the name once all of it has arrived; directories on the way
/// to it are made.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileWrite {
    /// Relative to the home directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Permission bits; 0 means 0644.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// How many bytes will come, if that is known; what cannot fit is then refused at once.
    #[prost(uint64, optional, tag = "3")]
    pub size: Option<u64>,
}

/// Read a file below the home directory, as the user.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileRead {
    /// Relative to the home directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// What proves that all bytes of a file have arrived. For operations without data both are zero.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FileSum {
    /// How many bytes there were.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Their [`Checksum`](crate::Checksum).
    #[prost(fixed64, tag = "2")]
    pub checksum: u64,
}

/// Describe what is at a path below the home directory, or below it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileList {
    /// Relative to the home directory; empty for itself.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// 0: the path itself, its name empty; 1: what is in the directory; more: what is below it, so many levels deep.
    #[prost(uint32, tag = "2")]
    pub depth: u32,
}

/// Some of what was listed, in no order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileEntries {
    /// At least one.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<FileEntry>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FileKind {
    /// Never sent on purpose.
    Unspecified = 0,
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link, which is not followed.
    Link = 3,
    /// A FIFO, a socket or a device.
    Other = 4,
}

/// One file, directory or other thing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileEntry {
    /// Relative to the path that was listed.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// What it is.
    #[prost(enumeration = "FileKind", tag = "2")]
    pub kind: i32,
    /// Bytes of a regular file that take room: of one with holes those that are no hole. 0 for everything else.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Permission bits.
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    /// When it was last changed, in nanoseconds since 1970.
    #[prost(int64, tag = "5")]
    pub modified_unix_ns: i64,
}

/// Change what is below the home directory, as the user.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileChange {
    /// What; missing only if a newer host asks for something that this generation's agent does not know.
    #[prost(oneof = "Change", tags = "1, 2, 3")]
    pub change: Option<Change>,
}

/// The changes there are.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Change {
    /// Make this directory and those on the way to it; one that is there is no error.
    #[prost(bytes, tag = "1")]
    MakeDirectory(Vec<u8>),
    /// Remove something.
    #[prost(message, tag = "2")]
    Remove(Remove),
    /// Give something another name; it replaces a file that has it.
    #[prost(message, tag = "3")]
    Move(Move),
}

/// Remove something.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Remove {
    /// Relative to the home directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Of a directory also all that is in it.
    #[prost(bool, tag = "2")]
    pub recursive: bool,
}

/// Give something another name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Move {
    /// Relative to the home directory.
    #[prost(bytes = "vec", tag = "1")]
    pub from: Vec<u8>,
    /// Relative to the home directory.
    #[prost(bytes = "vec", tag = "2")]
    pub to: Vec<u8>,
}
