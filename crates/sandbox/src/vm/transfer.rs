//! One file operation as the host sees it: a state machine over messages, without a socket or a clock.
//!
//! ```text
//! write: begin ─▶ data … (as granted) ─▶ end ─▶ Done        read, list: begin ─▶ data … (as granted) ─▶ Done
//! change: begin ─▶ Done                                      any of them: ─▶ Refused
//! ```
//! The guest is hostile. It may send what its window allows, as much as a file may have, and a sum that agrees with what it sent;
//! anything else is a [`Violation`]. What it refuses and why is information: the operation has failed either way.

use bytes::Bytes;
use exec_sandbox_wire::{
    Checksum, Credit, FileEntries, FileSum, Frame, GuestMessage, HostMessage, Refused, Window,
    limits::{MAX_FILE_BYTES, STREAM_WINDOW_BYTES},
};
use prost::Message as _;

use super::{
    execution::Violation,
    inbox::{Given, Piece, StreamName},
};

/// Granting in halves keeps the sender busy while a grant is on its way.
const GRANT_AT_BYTES: usize = STREAM_WINDOW_BYTES as usize / 2;

/// A file operation under way.
#[derive(Debug)]
pub(super) struct Transfer {
    op: u32,
    flow: Flow,
    finished: Option<Finished>,
}

/// How a file operation is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// It was done. Of a file, its size.
    Done(u64),
    /// It came to nothing.
    Refused(Refused),
    /// What arrived is not what was sent.
    Damaged,
}

/// Which way the data goes.
#[derive(Debug)]
enum Flow {
    /// To the guest: what may be sent, and what was sent once all of it was.
    Out { window: Window, sum: Option<FileSum> },
    /// From the guest.
    In(Box<Incoming>),
    /// There is none.
    Nowhere,
}

#[derive(Debug)]
struct Incoming {
    window: Window,
    /// Taken by the caller and not granted again yet.
    owed: usize,
    received: u64,
    checksum: Checksum,
    /// Whether it is a list, which has no sum.
    is_list: bool,
}

impl Transfer {
    /// Begins what `request` asks for, as operation `op`; the frame that says so.
    pub(super) fn start(op: u32, request: HostMessage) -> (Self, Frame) {
        let incoming = |is_list| {
            let (window, checksum) = (Window::default(), Checksum::default());
            Flow::In(Box::new(Incoming { window, owed: 0, received: 0, checksum, is_list }))
        };
        let flow = match &request {
            HostMessage::FileWrite(_) => Flow::Out { window: Window::default(), sum: None },
            HostMessage::FileRead(_) => incoming(false),
            HostMessage::FileList(_) => incoming(true),
            _ => Flow::Nowhere,
        };
        (Self { op, flow, finished: None }, request.into_frame(op))
    }

    /// What the caller gives becomes a frame.
    pub(super) fn on_given(&mut self, given: Given) -> Option<Frame> {
        let Flow::Out { window, sum } = &mut self.flow else { return None };
        let message = match given {
            Given::Data(bytes) => {
                window.take(bytes.len());
                HostMessage::FileData(bytes)
            }
            Given::End(whole) => {
                *sum = Some(whole);
                HostMessage::FileEnd(whole)
            }
        };
        Some(message.into_frame(self.op))
    }

    /// Takes in what the guest said about this operation; what of it is for the caller, and how many bytes more he may give.
    pub(super) fn on_message(&mut self, message: GuestMessage) -> Result<(Option<Piece>, usize), Violation> {
        match (message, &mut self.flow) {
            (GuestMessage::Refused(refused), _) => self.finished = Some(Finished::Refused(refused)),
            (GuestMessage::FileDone(sum), _) => self.finish(sum)?,
            (GuestMessage::Credit(credit), Flow::Out { window, .. }) => {
                window.grant(credit.data_bytes).map_err(|_| Violation::OverGrant)?;
                return Ok((None, credit.data_bytes as usize));
            }
            (GuestMessage::FileData(bytes), Flow::In(incoming)) if !incoming.is_list => {
                return Ok((incoming.accept(&bytes)?, 0));
            }
            (GuestMessage::FileEntries(entries), Flow::In(incoming)) if incoming.is_list => {
                return Ok((incoming.accept_entries(entries)?, 0));
            }
            // Kinds of a later generation.
            (GuestMessage::Unknown(_), _) => {}
            _ => return Err(Violation::OutOfPlace),
        }
        Ok((None, 0))
    }

    /// The caller has taken data; the grant that this is worth, if any.
    pub(super) fn on_taken(&mut self, bytes: usize) -> Option<Frame> {
        let Flow::In(incoming) = &mut self.flow else { return None };
        let data_bytes = incoming.taken(bytes)?;
        Some(HostMessage::Credit(Credit { data_bytes, ..Credit::default() }).into_frame(self.op))
    }

    /// Whether the guest owes the next word: data, a grant, or the end.
    pub(super) fn waits_for_guest(&self) -> bool {
        match &self.flow {
            Flow::Out { window, sum } => sum.is_some() || window.available() == 0,
            Flow::In(_) | Flow::Nowhere => true,
        }
    }

    /// How it ended, once it has.
    pub(super) fn finished(&mut self) -> Option<Finished> {
        self.finished.take()
    }

    fn finish(&mut self, sum: FileSum) -> Result<(), Violation> {
        let agrees = match &self.flow {
            Flow::Out { sum: sent, .. } => *sent.as_ref().ok_or(Violation::OutOfPlace)? == sum,
            Flow::In(incoming) if !incoming.is_list => {
                sum == FileSum { size: incoming.received, checksum: incoming.checksum.value() }
            }
            Flow::In(_) | Flow::Nowhere => true,
        };
        self.finished = Some(if agrees { Finished::Done(sum.size) } else { Finished::Damaged });
        Ok(())
    }
}

impl Incoming {
    fn accept(&mut self, bytes: &Bytes) -> Result<Option<Piece>, Violation> {
        self.charge(bytes.len())?;
        self.received += bytes.len() as u64;
        if self.received > MAX_FILE_BYTES {
            return Err(Violation::OverCap);
        }
        self.checksum.add(bytes);
        Ok((!bytes.is_empty()).then(|| Piece::Bytes(StreamName::Data, bytes[..].into())))
    }

    fn accept_entries(&mut self, entries: FileEntries) -> Result<Option<Piece>, Violation> {
        let bytes = entries.encoded_len();
        self.charge(bytes)?;
        Ok((!entries.entries.is_empty()).then_some(Piece::Entries(entries.entries, bytes)))
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Violation> {
        if self.window.available() < bytes {
            return Err(Violation::OverWindow);
        }
        self.window.take(bytes);
        Ok(())
    }

    fn taken(&mut self, bytes: usize) -> Option<u32> {
        self.owed += bytes;
        if self.owed < GRANT_AT_BYTES {
            return None;
        }
        let granted = u32::try_from(self.owed).ok()?;
        self.window.grant(granted).ok()?;
        self.owed = 0;
        Some(granted)
    }
}

#[cfg(test)]
mod tests {
    use exec_sandbox_wire::{FileEntry, FileList, FileRead, FileWrite, limits::CHUNK_BYTES};

    use super::*;

    fn read() -> Transfer {
        Transfer::start(7, HostMessage::FileRead(FileRead { path: b"a".to_vec() })).0
    }

    fn data(bytes: usize) -> GuestMessage {
        GuestMessage::FileData(vec![b'x'; bytes].into())
    }

    fn granted(data_bytes: u32) -> GuestMessage {
        GuestMessage::Credit(Credit { data_bytes, ..Credit::default() })
    }

    fn sum_of(bytes: usize) -> FileSum {
        let mut checksum = Checksum::default();
        checksum.add(&vec![b'x'; bytes]);
        FileSum { size: bytes as u64, checksum: checksum.value() }
    }

    #[test]
    fn a_file_that_is_read_is_whole_or_damaged() {
        for (said, finished) in [(sum_of(5), Finished::Done(5)), (sum_of(4), Finished::Damaged)] {
            let mut transfer = read();
            let (piece, _) = transfer.on_message(data(5)).expect("it is honest");
            assert_eq!(piece, Some(Piece::Bytes(StreamName::Data, b"xxxxx"[..].into())));
            assert_eq!(transfer.finished(), None);
            transfer.on_message(GuestMessage::FileDone(said)).expect("it may say so");
            assert_eq!(transfer.finished(), Some(finished));
        }
    }

    #[test]
    fn a_guest_sends_what_was_granted_and_is_granted_what_was_taken() {
        let (mut transfer, chunk) = (read(), CHUNK_BYTES as usize);
        for _ in 0..STREAM_WINDOW_BYTES / CHUNK_BYTES {
            transfer.on_message(data(chunk)).expect("the window allows it");
        }
        assert_eq!(transfer.on_message(data(1)), Err(Violation::OverWindow));
        assert_eq!(transfer.on_taken(chunk), None, "too little to be worth a frame");
        let frame = transfer.on_taken(chunk).expect("half a window");
        let Ok(HostMessage::Credit(credit)) = HostMessage::parse(frame) else { panic!("it is a grant") };
        assert_eq!(credit.data_bytes, 2 * CHUNK_BYTES);
        transfer.on_message(data(2 * chunk)).expect("it was granted");
    }

    #[test]
    fn a_file_that_is_written_is_done_when_the_guest_has_what_was_sent() {
        let (mut transfer, frame) = Transfer::start(3, HostMessage::FileWrite(FileWrite::default()));
        assert_eq!(frame.op, 3);
        assert!(!transfer.waits_for_guest(), "the caller has not given all yet");
        assert_eq!(transfer.on_message(GuestMessage::FileDone(sum_of(1))), Err(Violation::OutOfPlace));
        assert!(transfer.on_given(Given::Data("x".into())).is_some());
        assert_eq!(transfer.on_message(granted(1)), Ok((None, 1)));
        transfer.on_given(Given::End(sum_of(1))).expect("it is a frame");
        assert!(transfer.waits_for_guest());
        transfer.on_message(GuestMessage::FileDone(sum_of(1))).expect("it is honest");
        assert_eq!(transfer.finished(), Some(Finished::Done(1)));
    }

    #[test]
    fn a_guest_grants_what_it_was_sent_and_no_more() {
        let (mut transfer, _) = Transfer::start(3, HostMessage::FileWrite(FileWrite::default()));
        assert_eq!(transfer.on_message(granted(1)), Err(Violation::OverGrant), "the window is open already");
        transfer.on_given(Given::Data("abc".into())).expect("it is a frame");
        assert_eq!(transfer.on_message(granted(u32::MAX)), Err(Violation::OverGrant));
        assert_eq!(transfer.on_message(granted(3)), Ok((None, 3)));
    }

    #[test]
    fn what_belongs_to_another_operation_is_a_violation_and_a_refusal_is_none() {
        let entries = || GuestMessage::FileEntries(FileEntries { entries: vec![FileEntry::default()] });
        assert_eq!(read().on_message(entries()), Err(Violation::OutOfPlace));
        assert_eq!(read().on_message(GuestMessage::Stdout("x".into())), Err(Violation::OutOfPlace));
        let (mut list, _) = Transfer::start(1, HostMessage::FileList(FileList::default()));
        assert_eq!(list.on_message(data(1)), Err(Violation::OutOfPlace));
        assert!(matches!(list.on_message(entries()), Ok((Some(Piece::Entries(..)), 0))));
        let refused = Refused { reason: 6, detail: "no such file".into() };
        list.on_message(GuestMessage::Refused(refused.clone())).expect("it may refuse");
        assert_eq!(list.finished(), Some(Finished::Refused(refused)));
    }
}
