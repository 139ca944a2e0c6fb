//! Kinds: what a frame's body means.

/// What a body means. Open: a kind that this build does not know is data, not an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(pub u8);

/// Defines the known kinds, their names, and the list that the surface test walks.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Kind {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every kind of this generation, in numeric order.
            pub const KNOWN: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name))),*];
        }
    };
}

kinds! {
    /// Both ways, first: [`Hello`](crate::Hello).
    HELLO = 0x01;
    /// Host: is the agent alive? The body comes back in a [`Kind::PONG`].
    PING = 0x02;
    /// Guest: the body of the ping.
    PONG = 0x03;
    /// Host: begin an execution, [`ExecStart`](crate::ExecStart); the program follows in [`Kind::EXEC_PROGRAM`] frames.
    EXEC_START = 0x10;
    /// Host: the next piece of an encoded [`Program`](crate::Program).
    EXEC_PROGRAM = 0x11;
    /// Host: send a signal to the program's processes, [`Signal`](crate::Signal).
    EXEC_SIGNAL = 0x12;
    /// Host: end the execution at once; it still closes with [`Kind::DONE`]. No body.
    EXEC_CANCEL = 0x13;
    /// Host: more of each stream may be sent, [`Credit`](crate::Credit).
    CREDIT = 0x14;
    /// Guest: bytes that the program wrote to standard output.
    STDOUT = 0x18;
    /// Guest: bytes that the program wrote to standard error.
    STDERR = 0x19;
    /// Guest: the execution is over, [`Done`](crate::Done). Terminal: kept by the guest until [`Kind::ACK`].
    DONE = 0x20;
    /// Guest: the operation did not begin, [`Refused`](crate::Refused). Terminal.
    REFUSED = 0x21;
    /// Host: the terminal frame of this operation has arrived. No body.
    ACK = 0x22;
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Self::KNOWN.iter().find(|(kind, _)| kind == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "Kind(0x{:02x})", self.0),
        }
    }
}
