//! Messages: what a frame says, as a closed type for each direction.
//!
//! Parsing and emitting are inverse. A known kind whose body cannot be read is an error; an unknown kind is `Unknown` and left
//! to the receiver to skip.

use bytes::Bytes;

use crate::{
    Frame, Kind,
    proto::{
        Credit, Done, ExecStart, FileChange, FileEntries, FileList, FileRead, FileSum, FileWrite, Hello, NetworkState,
        Refused, Signal,
    },
};

/// A known kind whose body is not what the kind promises.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the body of a {kind:?} frame")]
pub struct MessageError {
    /// The frame's kind.
    pub kind: Kind,
    source: prost::DecodeError,
}

/// What a host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// [`Kind::HELLO`].
    Hello(Hello),
    /// [`Kind::PING`].
    Ping(Bytes),
    /// [`Kind::EXEC_START`].
    ExecStart(ExecStart),
    /// [`Kind::EXEC_PROGRAM`].
    ExecProgram(Bytes),
    /// [`Kind::EXEC_SIGNAL`].
    ExecSignal(Signal),
    /// [`Kind::CANCEL`].
    Cancel,
    /// [`Kind::CREDIT`].
    Credit(Credit),
    /// [`Kind::ACK`].
    Ack,
    /// [`Kind::FILE_WRITE`].
    FileWrite(FileWrite),
    /// [`Kind::FILE_READ`].
    FileRead(FileRead),
    /// [`Kind::FILE_DATA`].
    FileData(Bytes),
    /// [`Kind::FILE_END`].
    FileEnd(FileSum),
    /// [`Kind::FILE_LIST`].
    FileList(FileList),
    /// [`Kind::FILE_CHANGE`].
    FileChange(FileChange),
    /// A kind that this build does not know, or that a host does not send.
    Unknown(Kind),
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// [`Kind::HELLO`].
    Hello(Hello),
    /// [`Kind::PONG`].
    Pong(Bytes),
    /// [`Kind::NETWORK`].
    Network(NetworkState),
    /// [`Kind::STDOUT`].
    Stdout(Bytes),
    /// [`Kind::STDERR`].
    Stderr(Bytes),
    /// [`Kind::DONE`].
    Done(Done),
    /// [`Kind::REFUSED`].
    Refused(Refused),
    /// [`Kind::CREDIT`].
    Credit(Credit),
    /// [`Kind::FILE_DATA`].
    FileData(Bytes),
    /// [`Kind::FILE_ENTRIES`].
    FileEntries(FileEntries),
    /// [`Kind::FILE_DONE`].
    FileDone(FileSum),
    /// A kind that this build does not know, or that a guest does not send.
    Unknown(Kind),
}

impl HostMessage {
    /// Reads a frame that came from the host.
    ///
    /// # Errors
    /// [`MessageError`] if the body of a known kind cannot be read.
    pub fn parse(frame: Frame) -> Result<Self, MessageError> {
        let Frame { kind, body, .. } = frame;
        Ok(match kind {
            Kind::HELLO => Self::Hello(decode(kind, body)?),
            Kind::PING => Self::Ping(body),
            Kind::EXEC_START => Self::ExecStart(decode(kind, body)?),
            Kind::EXEC_PROGRAM => Self::ExecProgram(body),
            Kind::EXEC_SIGNAL => Self::ExecSignal(decode(kind, body)?),
            Kind::CANCEL => Self::Cancel,
            Kind::CREDIT => Self::Credit(decode(kind, body)?),
            Kind::ACK => Self::Ack,
            Kind::FILE_WRITE => Self::FileWrite(decode(kind, body)?),
            Kind::FILE_READ => Self::FileRead(decode(kind, body)?),
            Kind::FILE_DATA => Self::FileData(body),
            Kind::FILE_END => Self::FileEnd(decode(kind, body)?),
            Kind::FILE_LIST => Self::FileList(decode(kind, body)?),
            Kind::FILE_CHANGE => Self::FileChange(decode(kind, body)?),
            unknown => Self::Unknown(unknown),
        })
    }

    /// The frame that says this about operation `op`. An `Unknown` keeps its kind and has no body.
    #[must_use]
    pub fn into_frame(self, op: u32) -> Frame {
        let (kind, body) = match self {
            Self::Hello(hello) => (Kind::HELLO, encode(&hello)),
            Self::Ping(body) => (Kind::PING, body),
            Self::ExecStart(start) => (Kind::EXEC_START, encode(&start)),
            Self::ExecProgram(piece) => (Kind::EXEC_PROGRAM, piece),
            Self::ExecSignal(signal) => (Kind::EXEC_SIGNAL, encode(&signal)),
            Self::Cancel => (Kind::CANCEL, Bytes::new()),
            Self::Credit(credit) => (Kind::CREDIT, encode(&credit)),
            Self::Ack => (Kind::ACK, Bytes::new()),
            Self::FileWrite(write) => (Kind::FILE_WRITE, encode(&write)),
            Self::FileRead(read) => (Kind::FILE_READ, encode(&read)),
            Self::FileData(bytes) => (Kind::FILE_DATA, bytes),
            Self::FileEnd(sum) => (Kind::FILE_END, encode(&sum)),
            Self::FileList(list) => (Kind::FILE_LIST, encode(&list)),
            Self::FileChange(change) => (Kind::FILE_CHANGE, encode(&change)),
            Self::Unknown(kind) => (kind, Bytes::new()),
        };
        Frame { op, kind, body }
    }
}

impl GuestMessage {
    /// Reads a frame that came from the guest.
    ///
    /// # Errors
    /// [`MessageError`] if the body of a known kind cannot be read.
    pub fn parse(frame: Frame) -> Result<Self, MessageError> {
        let Frame { kind, body, .. } = frame;
        Ok(match kind {
            Kind::HELLO => Self::Hello(decode(kind, body)?),
            Kind::PONG => Self::Pong(body),
            Kind::NETWORK => Self::Network(decode(kind, body)?),
            Kind::STDOUT => Self::Stdout(body),
            Kind::STDERR => Self::Stderr(body),
            Kind::DONE => Self::Done(decode(kind, body)?),
            Kind::REFUSED => Self::Refused(decode(kind, body)?),
            Kind::CREDIT => Self::Credit(decode(kind, body)?),
            Kind::FILE_DATA => Self::FileData(body),
            Kind::FILE_ENTRIES => Self::FileEntries(decode(kind, body)?),
            Kind::FILE_DONE => Self::FileDone(decode(kind, body)?),
            unknown => Self::Unknown(unknown),
        })
    }

    /// The frame that says this about operation `op`. An `Unknown` keeps its kind and has no body.
    #[must_use]
    pub fn into_frame(self, op: u32) -> Frame {
        let (kind, body) = match self {
            Self::Hello(hello) => (Kind::HELLO, encode(&hello)),
            Self::Pong(body) => (Kind::PONG, body),
            Self::Network(state) => (Kind::NETWORK, encode(&state)),
            Self::Stdout(bytes) => (Kind::STDOUT, bytes),
            Self::Stderr(bytes) => (Kind::STDERR, bytes),
            Self::Done(done) => (Kind::DONE, encode(&done)),
            Self::Refused(refused) => (Kind::REFUSED, encode(&refused)),
            Self::Credit(credit) => (Kind::CREDIT, encode(&credit)),
            Self::FileData(bytes) => (Kind::FILE_DATA, bytes),
            Self::FileEntries(entries) => (Kind::FILE_ENTRIES, encode(&entries)),
            Self::FileDone(sum) => (Kind::FILE_DONE, encode(&sum)),
            Self::Unknown(kind) => (kind, Bytes::new()),
        };
        Frame { op, kind, body }
    }
}

fn decode<M: prost::Message + Default>(kind: Kind, body: Bytes) -> Result<M, MessageError> {
    M::decode(body).map_err(|source| MessageError { kind, source })
}

fn encode(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_can_be_read_says_the_same_when_it_is_written_and_read_again(
            kind in any::<u8>(),
            body in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let frame = Frame { op: 3, kind: Kind(kind), body: body.into() };
            if let Ok(message) = HostMessage::parse(frame.clone()) {
                prop_assert_eq!(HostMessage::parse(message.clone().into_frame(3)).expect("it was written by us"), message);
            }
            if let Ok(message) = GuestMessage::parse(frame) {
                prop_assert_eq!(GuestMessage::parse(message.clone().into_frame(3)).expect("it was written by us"), message);
            }
        }
    }

    #[test]
    fn a_field_that_a_newer_peer_added_is_skipped() {
        let mut body = encode(&Hello { generation: 1, ..Hello::default() }).to_vec();
        body.extend_from_slice(&[0xfa, 0x07, 0x02, b'h', b'i']); // field 127, two bytes
        let frame = Frame { op: 0, kind: Kind::HELLO, body: body.into() };
        let GuestMessage::Hello(hello) = GuestMessage::parse(frame).expect("it is well formed") else {
            panic!("not a hello")
        };
        assert_eq!(hello.generation, 1);
    }

    #[test]
    fn a_direction_does_not_read_the_other_ones_kinds() {
        let frame = Frame { op: 1, kind: Kind::ACK, body: Bytes::new() };
        assert_eq!(GuestMessage::parse(frame).expect("unknown is carried"), GuestMessage::Unknown(Kind::ACK));
    }
}
