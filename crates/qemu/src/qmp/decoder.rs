//! Bytes become messages: line by line, however the bytes were cut on their way.

use super::Message;

/// Longest line that QEMU may send. Its replies to our commands have at most a few KiB; this bounds what a hostile QEMU can make
/// this side hold.
pub const MAX_LINE_BYTES: usize = 256 * 1024;

/// Collects bytes and gives out the messages in them.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes that are not yet given out, from `start` on.
    buffer: Vec<u8>,
    start: usize,
    /// Up to here there is no line end, so that a long line is searched once.
    searched: usize,
}

/// Why QEMU's bytes were refused. The connection cannot be used after it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A line does not end within [`MAX_LINE_BYTES`].
    #[error("a line of QMP is over the limit of {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// A line is not JSON, or a message lacks what its kind must have.
    #[error("reading a line of QMP")]
    Json(#[source] serde_json::Error),
    /// A line is a JSON object of no known kind.
    #[error("a line of QMP is neither greeting, reply nor event")]
    UnknownMessage,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes have come.
    ///
    /// # Errors
    /// The bytes are not QMP, or a line is too long.
    pub fn next_message(&mut self) -> Result<Option<Message>, DecodeError> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(end) = unsearched.iter().position(|&byte| byte == b'\n').map(|at| self.searched + at) else {
                self.searched = self.buffer.len();
                return if self.searched - self.start > MAX_LINE_BYTES {
                    Err(DecodeError::LineTooLong)
                } else {
                    Ok(None)
                };
            };
            let line = self.buffer.get(self.start..end).unwrap_or_default();
            self.start = end + 1;
            self.searched = self.start;
            if line.len() > MAX_LINE_BYTES {
                return Err(DecodeError::LineTooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Message::from_line(line).map(Some);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// All messages of these chunks, and whether the decoder ended in an error.
    fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Message>, bool) {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(_) => return (messages, true),
                }
            }
        }
        (messages, false)
    }

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<u64>().prop_map(|id| format!("{{\"return\": {{}}, \"id\": {id}}}\r\n")),
            "[A-Z_]{1,20}".prop_map(|name| format!("{{\"event\": \"{name}\"}}\r\n")),
            any::<String>().prop_map(|desc| {
                let error = serde_json::json!({ "error": { "class": "GenericError", "desc": desc } });
                format!("{error}\n")
            }),
            Just("\r\n".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn the_messages_do_not_depend_on_how_the_bytes_were_cut(lines in vec(line(), 0..8), cuts in vec(1usize..40, 0..40)) {
            let bytes = lines.concat().into_bytes();
            let mut rest = bytes.as_slice();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (chunk, tail) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            chunks.push(rest);
            let expected = lines.iter().filter(|line| !line.trim().is_empty()).count();
            let (messages, failed) = decode(chunks);
            prop_assert!(!failed);
            prop_assert_eq!(messages.len(), expected);
            prop_assert_eq!(messages, decode([bytes.as_slice()]).0);
        }

        #[test]
        fn garbage_is_refused_and_never_panics(chunks in vec(vec(any::<u8>(), 0..64), 0..16)) {
            let (messages, _) = decode(chunks.iter().map(Vec::as_slice));
            prop_assert!(messages.is_empty());
        }

        #[test]
        fn almost_a_message_never_panics(line in line(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = line.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            decode([bytes.as_slice(), b"\n"]);
        }
    }

    #[test]
    fn a_line_at_the_limit_is_read_and_one_over_it_is_refused_before_it_ends() {
        let frame = r#"{"event": ""}"#.len();
        let fitting = format!("{{\"event\": \"{}\"}}\n", "A".repeat(MAX_LINE_BYTES - frame));
        assert_eq!(decode([fitting.as_bytes()]).0.len(), 1);
        let endless = vec![b' '; MAX_LINE_BYTES + 1];
        assert!(decode([endless.as_slice()]).1);
        let long = format!("{{\"event\": \"{}\"}}\n", "A".repeat(MAX_LINE_BYTES - frame + 1));
        assert!(decode([long.as_bytes()]).1);
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        let line = format!("{{\"return\": {}\n", "[".repeat(200_000));
        assert!(decode([line.as_bytes()]).1);
    }

    #[test]
    fn bytes_of_read_messages_are_not_kept() {
        let mut decoder = Decoder::default();
        for _ in 0..10_000 {
            decoder.push(b"{\"event\": \"STOP\"}\n");
            assert!(decoder.next_message().is_ok_and(|message| message.is_some()));
        }
        assert!(decoder.buffer.capacity() < 1024, "{}", decoder.buffer.capacity());
    }
}
