//! What one operation hands to its caller: pieces of output in their order, and then its end.
//!
//! The supervisor pushes and never waits; the caller's own future takes, and hands on at its own pace. What was taken is what may
//! be granted to the guest again, so the guest's windows bound what lies here. Either side sees when the other one is gone: a
//! caller by being told, the supervisor by looking when its attention is called.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;
use exec_sandbox_wire::limits::CHUNK_BYTES;
use tokio::sync::Notify;

use crate::Output;

/// The two streams of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamName {
    Stdout,
    Stderr,
}

/// What comes next for the caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<E> {
    /// A piece of output.
    Piece(Output),
    /// The end, after all pieces.
    End(E),
    /// The supervisor is gone and has said nothing.
    Gone,
}

/// Bytes that the caller has taken since they were last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) stdout: usize,
    pub(super) stderr: usize,
}

/// The supervisor's end. Dropped without [`end`](Self::end), the caller hears [`Next::Gone`].
#[derive(Debug)]
pub(super) struct Outlet<E> {
    shared: Arc<Shared<E>>,
}

/// The caller's end. Dropped, the operation is abandoned.
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
    pieces: VecDeque<(StreamName, BytesMut)>,
    taken: Taken,
    end: Option<E>,
    closed: bool,
    abandoned: bool,
}

/// Both ends for one operation; `attention` is the supervisor's.
pub(super) fn pair<E>(attention: Arc<Notify>) -> (Outlet<E>, Inbox<E>) {
    let state = State { pieces: VecDeque::new(), taken: Taken::default(), end: None, closed: false, abandoned: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Notify::new(), attention });
    (Outlet { shared: Arc::clone(&shared) }, Inbox { shared })
}

impl<E> Outlet<E> {
    /// Adds to the output. Small pieces that nobody has taken yet become one.
    pub(super) fn push(&self, stream: StreamName, bytes: &[u8]) {
        let mut state = self.shared.state();
        match state.pieces.back_mut() {
            Some((last, piece)) if *last == stream && piece.len() + bytes.len() <= CHUNK_BYTES as usize => {
                piece.extend_from_slice(bytes);
            }
            _ => state.pieces.push_back((stream, bytes.into())),
        }
        drop(state);
        self.shared.arrived.notify_one();
    }

    /// What the caller took since this was last asked.
    pub(super) fn taken(&self) -> Taken {
        mem::take(&mut self.shared.state().taken)
    }

    /// Whether output lies here that the caller has not taken.
    pub(super) fn has_untaken(&self) -> bool {
        !self.shared.state().pieces.is_empty()
    }

    /// Whether the caller is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.shared.state().abandoned
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

    fn take(&self) -> Option<Next<E>> {
        let mut state = self.shared.state();
        if let Some((stream, piece)) = state.pieces.pop_front() {
            match stream {
                StreamName::Stdout => state.taken.stdout += piece.len(),
                StreamName::Stderr => state.taken.stderr += piece.len(),
            }
            drop(state);
            self.shared.attention.notify_one();
            return Some(Next::Piece(stream.output(piece)));
        }
        if !state.closed {
            return None;
        }
        Some(state.end.take().map_or(Next::Gone, Next::End))
    }
}

impl<E> Drop for Inbox<E> {
    fn drop(&mut self) {
        self.shared.state().abandoned = true;
        self.shared.attention.notify_one();
    }
}

impl<E> Shared<E> {
    fn state(&self) -> MutexGuard<'_, State<E>> {
        // Nothing under the lock leaves a half-made change behind when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamName {
    fn output(self, bytes: BytesMut) -> Output {
        match self {
            Self::Stdout => Output::Stdout(bytes.freeze()),
            Self::Stderr => Output::Stderr(bytes.freeze()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Outlet<u8>, Inbox<u8>) {
        pair(Arc::default())
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
        assert_eq!(inbox.next().await, Next::Piece(Output::Stdout("a".into())));
        assert_eq!(inbox.next().await, Next::Piece(Output::Stderr("b".into())));
        assert_eq!(inbox.next().await, Next::Piece(Output::Stdout("cd".into())), "nobody had taken the first");
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
        assert_eq!(outlet.taken(), Taken { stdout: 3, stderr: 0 });
        inbox.next().await;
        assert_eq!(outlet.taken(), Taken { stdout: 0, stderr: 1 });
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
        assert_eq!(inbox.next().await, Next::Piece(Output::Stdout("last".into())));
        assert_eq!(inbox.next().await, Next::Gone);
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
