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
    /// Guest: what has become of the network in a host's Hello, [`NetworkState`](crate::NetworkState).
    NETWORK = 0x04;
    /// Host: begin an execution, [`ExecStart`](crate::ExecStart); the program follows in [`Kind::EXEC_PROGRAM`] frames.
    EXEC_START = 0x10;
    /// Host: the next piece of an encoded [`Program`](crate::Program).
    EXEC_PROGRAM = 0x11;
    /// Host: send a signal to the program's processes, [`Signal`](crate::Signal).
    EXEC_SIGNAL = 0x12;
    /// Host: end the operation at once; it still closes with its terminal frame. No body.
    CANCEL = 0x13;
    /// Both ways: more of each stream may be sent, [`Credit`](crate::Credit).
    CREDIT = 0x14;
    /// Guest: bytes that the program wrote to standard output.
    STDOUT = 0x18;
    /// Guest: bytes that the program wrote to standard error.
    STDERR = 0x19;
    /// Guest: the execution is over, [`Done`](crate::Done). Terminal: kept by the guest until [`Kind::ACK`].
    DONE = 0x20;
    /// Guest: the operation did not begin, [`Refused`](crate::Refused). Terminal.
    REFUSED = 0x21;
    /// Host: the terminal frame of this execution has arrived. No body.
    ACK = 0x22;
    /// Host: begin to write a file, [`FileWrite`](crate::FileWrite); its bytes follow in [`Kind::FILE_DATA`] frames and end with
    /// [`Kind::FILE_END`].
    FILE_WRITE = 0x30;
    /// Host: read a file, [`FileRead`](crate::FileRead).
    FILE_READ = 0x31;
    /// Both ways: bytes of a file.
    FILE_DATA = 0x32;
    /// Host: all bytes of a file to write were sent, [`FileSum`](crate::FileSum). The file appears once they are found to agree.
    FILE_END = 0x33;
    /// Host: list a directory or describe a file, [`FileList`](crate::FileList).
    FILE_LIST = 0x34;
    /// Guest: some of what was listed, [`FileEntries`](crate::FileEntries).
    FILE_ENTRIES = 0x35;
    /// Host: make, move or remove something, [`FileChange`](crate::FileChange).
    FILE_CHANGE = 0x36;
    /// Guest: the file operation is done, [`FileSum`](crate::FileSum). Terminal, and like every end of a file operation not kept:
    /// a file operation ends with its connection.
    FILE_DONE = 0x37;
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Self::KNOWN.iter().find(|(kind, _)| kind == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "Kind(0x{:02x})", self.0),
        }
    }
}
