//! The contract between host and guest: what may cross the virtio-serial port, and how large, and how late; and the few words that a
//! guest is told before there is one ([`boot`]).
//!
//! Both ends of the channel compile this crate, so a fact that both rely on stands here once. It owns the frame codec, the
//! messages, the flow-control windows and the limits; it does not own a socket, a clock or a process.
//!
//! A guest may be older than its host, because a snapshot keeps an agent in memory. So control messages are protobuf, whose
//! fields can be added, and a frame of an unknown [`Kind`] is carried, not refused. [`GENERATION`] changes only when that is not
//! enough, and the whole surface is compared with a checked-in copy by a test.

pub mod boot;
mod checksum;
mod flow;
mod frame;
mod kind;
pub mod limits;
mod message;
mod proto;

pub use checksum::Checksum;
pub use flow::{FlowError, Window};
pub use frame::{Frame, FrameDecoder, FrameError, HEADER_BYTES};
pub use kind::Kind;
pub use message::{GuestMessage, HostMessage, MessageError};
pub use proto::{
    Change, Credit, Done, End, EnvVar, ExecStart, FileChange, FileEntries, FileEntry, FileKind, FileList, FileRead,
    FileSum, FileWrite, Hello, Language, Move, Network, NetworkState, Program, Refusal, Refused, Remove, ResumePoint,
    Signal, Usage,
};

/// The one version of this contract. Both ends name theirs in [`Hello`], and a host refuses a guest of another generation.
pub const GENERATION: u32 = 1;

/// The virtio-serial port's name, by which the guest finds it under `/sys/class/virtio-ports`.
pub const PORT_NAME: &str = "org.exec-sandbox.agent";

/// The operation number of frames that concern the connection itself.
pub const CONNECTION_OP: u32 = 0;
