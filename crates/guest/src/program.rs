//! A program on its way in: pieces, put together under the size that was announced.

use bytes::{Bytes, BytesMut};
use exec_sandbox_wire::{ExecStart, Language, Program, limits};
use prost::Message as _;
use std::time::Duration;

/// What an execution's start asks for, after its check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Which interpreter.
    pub(crate) language: Language,
    /// How long the program may run.
    pub(crate) timeout: Duration,
    /// What it is among the programs of its interpreter.
    pub(crate) role: Role,
}

/// What a program is among those that its interpreter runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// One after which others may follow.
    Ordinary,
    /// No other follows: its interpreter ends with it, as a script's does.
    Last,
    /// Nobody's: it warms what it runs through, and does not count.
    Rehearsal,
}

/// Why a request cannot begin: it contradicts itself or a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    /// No such language in this generation.
    #[error("language {0} is unknown")]
    Language(i32),
    /// Zero, or over the limit.
    #[error("a timeout of {0} ms is not between 1 and {max}", max = limits::MAX_EXEC_TIMEOUT.as_millis())]
    Timeout(u32),
    /// A rehearsal is for programs that follow.
    #[error("a rehearsal cannot be the last program")]
    LastRehearsal,
    /// Over the limit.
    #[error("a program of {0} bytes is over the limit of {max}", max = limits::MAX_PROGRAM_BYTES)]
    TooLarge(u32),
    /// More pieces than were announced.
    #[error("the program is longer than the {0} bytes that were announced")]
    Longer(u32),
    /// All pieces are there and make no program.
    #[error("the program cannot be read")]
    Unreadable,
    /// A variable that no environment can hold.
    #[error("variable {0} has an empty name, or a NUL or = where none can be")]
    Variable(usize),
}

/// The pieces so far.
#[derive(Debug)]
pub(crate) struct Assembly {
    announced: u32,
    pieces: BytesMut,
}

impl Terms {
    /// Checks a start.
    pub(crate) fn of(start: &ExecStart) -> Result<Self, BadRequest> {
        let language = match Language::try_from(start.language) {
            Ok(Language::Unspecified) | Err(_) => return Err(BadRequest::Language(start.language)),
            Ok(language) => language,
        };
        let timeout = Duration::from_millis(start.timeout_ms.into());
        if timeout.is_zero() || timeout > limits::MAX_EXEC_TIMEOUT {
            return Err(BadRequest::Timeout(start.timeout_ms));
        }
        let role = match (start.is_last, start.rehearsal) {
            (false, false) => Role::Ordinary,
            (true, false) => Role::Last,
            (false, true) => Role::Rehearsal,
            (true, true) => return Err(BadRequest::LastRehearsal),
        };
        Ok(Self { language, timeout, role })
    }
}

impl Assembly {
    /// Begins with what the start announces.
    pub(crate) fn begin(announced: u32) -> Result<Self, BadRequest> {
        if announced > limits::MAX_PROGRAM_BYTES {
            return Err(BadRequest::TooLarge(announced));
        }
        Ok(Self { announced, pieces: BytesMut::new() })
    }

    /// Adds a piece; the program, once it is whole.
    pub(crate) fn add(&mut self, piece: &Bytes) -> Result<Option<Program>, BadRequest> {
        let announced = self.announced as usize;
        if piece.len() > announced - self.pieces.len() {
            return Err(BadRequest::Longer(self.announced));
        }
        self.pieces.extend_from_slice(piece);
        if self.pieces.len() < announced { Ok(None) } else { self.read().map(Some) }
    }

    fn read(&mut self) -> Result<Program, BadRequest> {
        let program = Program::decode(self.pieces.split()).map_err(|_| BadRequest::Unreadable)?;
        for (index, variable) in program.env.iter().enumerate() {
            let name_fits = !variable.name.is_empty() && !variable.name.iter().any(|byte| matches!(byte, 0 | b'='));
            if !name_fits || variable.value.contains(&0) {
                return Err(BadRequest::Variable(index));
            }
        }
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use exec_sandbox_wire::EnvVar;
    use proptest::prelude::*;

    use super::*;

    fn announced(program: &Program) -> u32 {
        u32::try_from(program.encoded_len()).expect("it is small")
    }

    proptest! {
        #[test]
        fn a_program_survives_any_cut_into_pieces(code in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..40) {
            let program = Program { code, env: vec![EnvVar { name: b"N".to_vec(), value: b"v=1".to_vec() }] };
            let mut assembly = Assembly::begin(announced(&program)).expect("it is small");
            let mut whole = None;
            for piece in program.encode_to_vec().chunks(cut) {
                prop_assert_eq!(&whole, &None, "whole before its last piece");
                whole = assembly.add(&Bytes::copy_from_slice(piece)).expect("it is well formed");
            }
            prop_assert_eq!(whole, Some(program));
        }
    }

    #[test]
    fn an_empty_program_is_whole_with_an_empty_piece() {
        let mut assembly = Assembly::begin(0).expect("it is small");
        assert_eq!(assembly.add(&Bytes::new()), Ok(Some(Program::default())));
    }

    #[test]
    fn one_byte_more_than_announced_is_refused() {
        let mut assembly = Assembly::begin(4).expect("it is small");
        assert_eq!(assembly.add(&Bytes::from_static(b"abc")), Ok(None));
        assert_eq!(assembly.add(&Bytes::from_static(b"de")), Err(BadRequest::Longer(4)));
    }

    #[test]
    fn a_program_over_the_limit_is_refused_before_its_first_piece() {
        let over = limits::MAX_PROGRAM_BYTES + 1;
        assert_eq!(Assembly::begin(over).err(), Some(BadRequest::TooLarge(over)));
    }

    #[test]
    fn variables_that_no_environment_can_hold_are_refused() {
        for (name, value) in [("", "v"), ("A=B", "v"), ("A\0", "v"), ("A", "v\0w")] {
            let program = Program { code: vec![], env: vec![EnvVar { name: name.into(), value: value.into() }] };
            let mut assembly = Assembly::begin(announced(&program)).expect("it is small");
            assert_eq!(
                assembly.add(&program.encode_to_vec().into()),
                Err(BadRequest::Variable(0)),
                "{name:?}={value:?}"
            );
        }
    }

    #[test]
    fn a_start_without_language_or_time_or_with_two_roles_is_refused() {
        let start = ExecStart { language: 1, timeout_ms: 300_000, ..ExecStart::default() };
        assert!(Terms::of(&start).is_ok());
        let role =
            |is_last, rehearsal| Terms::of(&ExecStart { is_last, rehearsal, ..start.clone() }).map(|terms| terms.role);
        assert_eq!(role(false, true), Ok(Role::Rehearsal));
        assert_eq!(role(true, true), Err(BadRequest::LastRehearsal));
        assert_eq!(Terms::of(&ExecStart { language: 0, ..start.clone() }), Err(BadRequest::Language(0)));
        assert_eq!(Terms::of(&ExecStart { language: 9, ..start.clone() }), Err(BadRequest::Language(9)));
        assert_eq!(Terms::of(&ExecStart { timeout_ms: 0, ..start.clone() }), Err(BadRequest::Timeout(0)));
        assert_eq!(Terms::of(&ExecStart { timeout_ms: 300_001, ..start.clone() }), Err(BadRequest::Timeout(300_001)));
    }
}
