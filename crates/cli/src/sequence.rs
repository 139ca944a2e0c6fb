//! Several programs at once, one after the other on the page: which piece of output is shown when.
//!
//! The first source that has not ended is current and shown as it comes; what the others say is held until it is their
//! turn. What is held is bounded by the library's own cap on output. No I/O here.

/// Puts pieces that arrive in any order of sources into the order of sources.
#[derive(Debug)]
pub(crate) struct Sequence<T> {
    current: usize,
    held: Vec<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    pieces: Vec<T>,
    ended: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<T> {
    /// From here on it is this source's turn.
    Turn(usize),
    /// Show this piece of the source whose turn it is.
    Show(T),
}

impl<T> Sequence<T> {
    pub(crate) fn new(sources: usize) -> Self {
        Self { current: 0, held: (0..sources).map(|_| Held { pieces: Vec::new(), ended: false }).collect() }
    }

    /// What can be shown now that `source` has said `piece`.
    pub(crate) fn piece(&mut self, source: usize, piece: T) -> Vec<Step<T>> {
        if source == self.current {
            return vec![Step::Show(piece)];
        }
        if let Some(held) = self.held.get_mut(source) {
            held.pieces.push(piece);
        }
        Vec::new()
    }

    /// What can be shown now that `source` has said its last.
    pub(crate) fn end(&mut self, source: usize) -> Vec<Step<T>> {
        if let Some(held) = self.held.get_mut(source) {
            held.ended = true;
        }
        let mut steps = Vec::new();
        while self.held.get(self.current).is_some_and(|held| held.ended) {
            self.current += 1;
            if let Some(next) = self.held.get_mut(self.current) {
                steps.push(Step::Turn(self.current));
                steps.extend(next.pieces.drain(..).map(Step::Show));
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Step::{Show, Turn};

    #[test]
    fn the_current_source_is_shown_at_once_and_the_others_wait() {
        let mut sequence = Sequence::new(2);
        assert_eq!(sequence.piece(1, "b1"), []);
        assert_eq!(sequence.piece(0, "a1"), [Show("a1")]);
        assert_eq!(sequence.piece(0, "a2"), [Show("a2")]);
        assert_eq!(sequence.end(0), [Turn(1), Show("b1")]);
        assert_eq!(sequence.piece(1, "b2"), [Show("b2")]);
        assert_eq!(sequence.end(1), []);
    }

    #[test]
    fn sources_that_ended_early_follow_in_the_order_given() {
        let mut sequence = Sequence::new(3);
        assert_eq!(sequence.piece(2, "c"), []);
        assert_eq!(sequence.end(2), []);
        assert_eq!(sequence.end(1), []);
        assert_eq!(sequence.piece(0, "a"), [Show("a")]);
        assert_eq!(sequence.end(0), [Turn(1), Turn(2), Show("c")]);
    }

    #[test]
    fn nothing_is_lost_whatever_the_order_of_arrival() {
        // Every interleaving of two sources with two pieces each, as bits: which source speaks next.
        for order in 0_u32..64 {
            let mut sequence = Sequence::new(2);
            let mut said = [0, 0];
            let mut shown = Vec::new();
            for step in 0..6 {
                let wanted = usize::from(order >> step & 1 == 1);
                let source = if said[wanted] < 3 { wanted } else { 1 - wanted };
                said[source] += 1;
                shown.extend(match said[source] {
                    3 => sequence.end(source),
                    number => sequence.piece(source, (source, number)),
                });
            }
            assert_eq!(shown, [Show((0, 1)), Show((0, 2)), Turn(1), Show((1, 1)), Show((1, 2))], "{order:06b}");
        }
    }
}
