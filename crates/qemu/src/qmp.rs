//! QMP: how a running QEMU is asked and told, one JSON value a line.
//!
//! QEMU is not believed. A guest may have taken it over, so a line is bounded before it is parsed, nothing here panics on input, and
//! a reply counts only for the command whose id it carries: events come between replies, and a reply may come after its asker has
//! given up.
//!
//! ```text
//! bytes ─▶ Decoder ─▶ Message ─▶ Correlator ─▶ Settled
//!                 Command ─────────▲ └─▶ bytes
//! ```

mod command;
mod correlator;
mod decoder;
mod message;
mod snapshot;

pub use command::{Command, CommandId, RunState};
pub use correlator::{CommandError, Correlator, Settled, TooManyCommands};
pub use decoder::{DecodeError, Decoder, MAX_LINE_BYTES};
pub use message::{Event, Greeting, Message, Timestamp};
pub use snapshot::{Migration, boot, restore, save, save_translations, translations_length};
