//! What one operation and its caller hand to each other: pieces for the caller in their order and then the end, and on the other way
//! the bytes of a file that the caller gives.
//!
//! The supervisor never waits: it pushes what came and takes what lies here. The caller's own future does, at its own pace. What the
//! caller has taken is what may be granted to the guest again, and what the guest has granted is what the caller may give, so the
//! windows bound what lies here either way. Each side sees when the other one is gone: a caller by being told, the supervisor by
//! looking when its attention is called.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use exec_sandbox_wire::{
    FileEntry, FileSum,
    limits::{CHUNK_BYTES, STREAM_WINDOW_BYTES},
};
use tokio::{sync::Notify, time::Instant};

/// The streams that come from a guest: those of a program, and a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamName {
    Stdout,
    Stderr,
    Data,
}

/// What came for the caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes of a stream.
    Bytes(StreamName, BytesMut),
    /// Some of a list, and how many bytes it took on the wire.
    Entries(Vec<FileEntry>, usize),
}

/// What the caller gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// More of the file.
    Data(Bytes),
    /// It was all of it.
    End(FileSum),
}

/// What comes next for the caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<E> {
    /// Something that came.
    Piece(Piece),
    /// The end, after all pieces.
    End(E),
    /// The supervisor is gone and has said nothing.
    Gone,
}

/// How a caller left before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// He was dropped, wherever he was.
    Abandoned,
    /// He has no use for the rest, and said so.
    CalledOff,
}

/// Bytes that the caller has taken since they were last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) stdout: usize,
    pub(super) stderr: usize,
    pub(super) data: usize,
}

/// The supervisor's end. Dropped without [`end`](Self::end), the caller hears [`Next::Gone`].
#[derive(Debug)]
pub(super) struct Outlet<E> {
    shared: Arc<Shared<E>>,
}

/// The caller's end. Dropped before the end was heard, the operation is abandoned.
#[derive(Debug)]
pub(super) struct Inbox<E> {
    shared: Arc<Shared<E>>,
}

#[derive(Debug)]
struct Shared<E> {
    state: Mutex<State<E>>,
    arrived: Notify,
    /// Wakes the supervisor: something was taken, or the caller is gone.
    attention: Arc<Notify>,
}

#[derive(Debug)]
struct State<E> {
    pieces: VecDeque<Piece>,
    /// Since when there was always a piece here, if there is one.
    untaken_since: Option<Instant>,
    /// For how long there was one before that.
    untaken_for: Duration,
    taken: Taken,
    given: VecDeque<Given>,
    /// Bytes that the caller may give.
    credit: usize,
    end: Option<E>,
    closed: bool,
    left: Option<Left>,
}

/// Both ends for one operation; `attention` is the supervisor's.
pub(super) fn pair<E>(attention: Arc<Notify>) -> (Outlet<E>, Inbox<E>) {
    let state = State {
        pieces: VecDeque::new(),
        untaken_since: None,
        untaken_for: Duration::ZERO,
        taken: Taken::default(),
        given: VecDeque::new(),
        credit: STREAM_WINDOW_BYTES as usize,
        end: None,
        closed: false,
        left: None,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Notify::new(), attention });
    (Outlet { shared: Arc::clone(&shared) }, Inbox { shared })
}

impl<E> Outlet<E> {
    /// Adds to the output. Small pieces that nobody has taken yet become one.
    pub(super) fn push(&self, stream: StreamName, bytes: &[u8]) {
        let mut state = self.shared.state();
        match state.pieces.back_mut() {
            Some(Piece::Bytes(last, piece)) if *last == stream && piece.len() + bytes.len() <= CHUNK_BYTES as usize => {
                piece.extend_from_slice(bytes);
            }
            _ => state.add(Piece::Bytes(stream, bytes.into())),
        }
        drop(state);
        self.shared.arrived.notify_one();
    }

    /// Adds to a list what took so many bytes on the wire.
    pub(super) fn push_entries(&self, entries: Vec<FileEntry>, bytes: usize) {
        self.shared.state().add(Piece::Entries(entries, bytes));
        self.shared.arrived.notify_one();
    }

    /// The caller may give so many bytes more.
    pub(super) fn grant(&self, bytes: usize) {
        self.shared.state().credit += bytes;
        self.shared.arrived.notify_one();
    }

    /// What the caller has given since this was last asked.
    pub(super) fn given(&self) -> VecDeque<Given> {
        mem::take(&mut self.shared.state().given)
    }

    /// What the caller took since this was last asked.
    pub(super) fn taken(&self) -> Taken {
        mem::take(&mut self.shared.state().taken)
    }

    /// Whether output lies here that the caller has not taken.
    pub(super) fn has_untaken(&self) -> bool {
        !self.shared.state().pieces.is_empty()
    }

    /// For how long output lay here that the caller had not taken, since this was last asked.
    pub(super) fn delay(&self) -> Duration {
        self.shared.state().delay()
    }

    /// How the caller left, if he did.
    pub(super) fn left(&self) -> Option<Left> {
        self.shared.state().left
    }

    /// Whether the caller is gone, and nobody knows how far he came.
    pub(super) fn is_abandoned(&self) -> bool {
        self.left() == Some(Left::Abandoned)
    }

    /// The operation is over. Nobody may listen any more.
    pub(super) fn end(self, end: E) {
        self.shared.state().end = Some(end);
    }
}

impl<E> Drop for Outlet<E> {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.arrived.notify_one();
    }
}

impl<E> Inbox<E> {
    /// Waits for what comes next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Next<E> {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.shared.arrived.notified().await;
        }
    }

    /// Waits until at least one byte may be given, and says how many; `None`: the operation is over, and [`next`](Self::next) says
    /// how. Dropping the future loses nothing.
    pub(super) async fn credit(&mut self) -> Option<usize> {
        loop {
            {
                let state = self.shared.state();
                if state.closed {
                    return None;
                }
                if state.credit > 0 {
                    return Some(state.credit);
                }
            }
            self.shared.arrived.notified().await;
        }
    }

    /// Gives bytes, at most as many as there is [`credit`](Self::credit) for.
    pub(super) fn give(&mut self, bytes: Bytes) {
        let mut state = self.shared.state();
        state.credit = state.credit.saturating_sub(bytes.len());
        state.given.push_back(Given::Data(bytes));
        drop(state);
        self.shared.attention.notify_one();
    }

    /// Says that all bytes were given.
    pub(super) fn finish(&mut self, sum: FileSum) {
        self.shared.state().given.push_back(Given::End(sum));
        self.shared.attention.notify_one();
    }

    /// Leaves in good order.
    pub(super) fn call_off(self) {
        self.leave(Left::CalledOff);
    }

    fn leave(&self, how: Left) {
        self.shared.state().left.get_or_insert(how);
        self.shared.attention.notify_one();
    }

    fn take(&self) -> Option<Next<E>> {
        let mut state = self.shared.state();
        if let Some(piece) = state.remove() {
            match &piece {
                Piece::Bytes(StreamName::Stdout, bytes) => state.taken.stdout += bytes.len(),
                Piece::Bytes(StreamName::Stderr, bytes) => state.taken.stderr += bytes.len(),
                Piece::Bytes(StreamName::Data, bytes) => state.taken.data += bytes.len(),
                Piece::Entries(_, bytes) => state.taken.data += bytes,
            }
            drop(state);
            self.shared.attention.notify_one();
            return Some(Next::Piece(piece));
        }
        if !state.closed {
            return None;
        }
        Some(state.end.take().map_or(Next::Gone, Next::End))
    }
}

impl<E> Drop for Inbox<E> {
    fn drop(&mut self) {
        self.leave(Left::Abandoned);
    }
}

impl<E> State<E> {
    fn add(&mut self, piece: Piece) {
        self.pieces.push_back(piece);
        self.untaken_since.get_or_insert_with(Instant::now);
    }

    fn remove(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        if self.pieces.is_empty() {
            self.untaken_for += self.untaken_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
        Some(piece)
    }

    fn delay(&mut self) -> Duration {
        let now = Instant::now();
        let lying = self.untaken_since.as_mut().map_or(Duration::ZERO, |since| now - mem::replace(since, now));
        mem::take(&mut self.untaken_for) + lying
    }
}

impl<E> Shared<E> {
    fn state(&self) -> MutexGuard<'_, State<E>> {
        // Nothing under the lock leaves a half-made change behind when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Outlet<u8>, Inbox<u8>) {
        pair(Arc::default())
    }

    fn stdout(bytes: &'static [u8]) -> Next<u8> {
        Next::Piece(Piece::Bytes(StreamName::Stdout, bytes.into()))
    }

    #[tokio::test]
    async fn pieces_come_in_their_order_and_the_end_after_them() {
        let (outlet, mut inbox) = both();
        outlet.push(StreamName::Stdout, b"a");
        outlet.push(StreamName::Stderr, b"b");
        outlet.push(StreamName::Stdout, b"c");
        outlet.push(StreamName::Stdout, b"d");
        assert!(outlet.has_untaken());
        outlet.end(7);
        assert_eq!(inbox.next().await, stdout(b"a"));
        assert_eq!(inbox.next().await, Next::Piece(Piece::Bytes(StreamName::Stderr, b"b"[..].into())));
        assert_eq!(inbox.next().await, stdout(b"cd"), "nobody had taken the first");
        assert_eq!(inbox.next().await, Next::End(7));
    }

    #[tokio::test]
    async fn what_is_taken_is_counted_once_and_calls_for_attention() {
        let attention = Arc::new(Notify::new());
        let (outlet, mut inbox) = pair::<u8>(Arc::clone(&attention));
        outlet.push(StreamName::Stdout, b"abc");
        outlet.push(StreamName::Stderr, b"d");
        assert_eq!(outlet.taken(), Taken::default());
        inbox.next().await;
        attention.notified().await;
        assert_eq!(outlet.taken(), Taken { stdout: 3, ..Taken::default() });
        inbox.next().await;
        assert_eq!(outlet.taken(), Taken { stderr: 1, ..Taken::default() });
        assert!(!outlet.has_untaken());
    }

    #[tokio::test]
    async fn each_side_sees_that_the_other_is_gone() {
        let attention = Arc::new(Notify::new());
        let (outlet, inbox) = pair::<u8>(Arc::clone(&attention));
        assert!(!outlet.is_abandoned());
        drop(inbox);
        attention.notified().await;
        assert!(outlet.is_abandoned());
        let (outlet, mut inbox) = both();
        outlet.push(StreamName::Stdout, b"last");
        drop(outlet);
        assert_eq!(inbox.next().await, stdout(b"last"));
        assert_eq!(inbox.next().await, Next::Gone);
    }

    #[tokio::test]
    async fn a_caller_gives_what_was_granted_and_no_more() {
        let attention = Arc::new(Notify::new());
        let (outlet, mut inbox) = pair::<u8>(Arc::clone(&attention));
        let window = STREAM_WINDOW_BYTES as usize;
        assert_eq!(inbox.credit().await, Some(window));
        inbox.give(vec![0; window].into());
        attention.notified().await;
        assert_eq!(outlet.given().len(), 1);
        let waiting = tokio::time::timeout(Duration::ZERO, inbox.credit()).await;
        assert!(waiting.is_err(), "nothing is granted");
        outlet.grant(5);
        assert_eq!(inbox.credit().await, Some(5));
        inbox.finish(FileSum::default());
        assert_eq!(outlet.given(), [Given::End(FileSum::default())]);
        outlet.end(1);
        assert_eq!(inbox.credit().await, None);
        assert_eq!(inbox.next().await, Next::End(1));
    }

    #[test]
    fn a_flood_of_small_pieces_becomes_few() {
        let (outlet, _inbox) = both();
        for _ in 0..100_000 {
            outlet.push(StreamName::Stdout, b"x");
        }
        assert_eq!(outlet.shared.state().pieces.len(), 100_000_usize.div_ceil(CHUNK_BYTES as usize));
    }
}
