//! Which reply belongs to which command.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Command, CommandId, Event, Greeting, Message};

/// Commands that may wait for their replies at once. QEMU carries them out one after another, so more would only wait longer.
const MAX_PENDING: usize = 64;

/// Gives commands their ids and finds the command of a reply. It holds no bytes and no clock.
#[derive(Debug, Default)]
pub struct Correlator {
    next: u64,
    pending: BTreeMap<CommandId, Command>,
}

/// What a message means to this side.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// QEMU has introduced itself.
    Greeting(Greeting),
    /// A command that was waited for has its answer.
    Reply {
        /// The id it was issued under.
        id: CommandId,
        /// What it returned, or why it was refused.
        result: Result<Value, CommandError>,
    },
    /// Something happened.
    Event(Event),
    /// A reply that nobody waits for: it came after its asker gave up, or QEMU made it up.
    Stray,
}

/// QEMU refused a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("QEMU refused `{command}`: {desc}")]
pub struct CommandError {
    /// What was asked.
    pub command: Command,
    /// The sort of error, nearly always `GenericError`.
    pub class: String,
    /// What went wrong, in QEMU's words.
    pub desc: String,
}

/// As many commands as may wait do so already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_PENDING} QMP commands are waiting for their replies")]
pub struct TooManyCommands;

impl Correlator {
    /// Gives a command its id and the bytes to send.
    ///
    /// # Errors
    /// Too many commands wait.
    pub fn issue(&mut self, command: Command) -> Result<(CommandId, Vec<u8>), TooManyCommands> {
        if self.pending.len() >= MAX_PENDING {
            return Err(TooManyCommands);
        }
        let id = CommandId(self.next);
        self.next = self.next.wrapping_add(1);
        let line = command.encode(id);
        self.pending.insert(id, command);
        Ok((id, line))
    }

    /// Says that nobody waits for this command any more; its reply will be [`Settled::Stray`].
    pub fn forget(&mut self, id: CommandId) {
        self.pending.remove(&id);
    }

    /// Finds out what a message means.
    pub fn settle(&mut self, message: Message) -> Settled {
        let (id, result) = match message {
            Message::Greeting(greeting) => return Settled::Greeting(greeting),
            Message::Event(event) => return Settled::Event(event),
            Message::Return { id, value } => (id, Ok(value)),
            Message::Error { id, class, desc } => (id, Err((class, desc))),
        };
        let Some((id, command)) = id.and_then(|id| self.pending.remove_entry(&id)) else { return Settled::Stray };
        let result = result.map_err(|(class, desc)| CommandError { command, class, desc });
        Settled::Reply { id, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: CommandId) -> Message {
        Message::Return { id: Some(id), value: id.0.into() }
    }

    fn issue(correlator: &mut Correlator, command: Command) -> CommandId {
        correlator.issue(command).expect("few commands wait").0
    }

    #[test]
    fn replies_find_their_commands_in_any_order_and_between_events() {
        let mut correlator = Correlator::default();
        let stop = issue(&mut correlator, Command::Stop);
        let status = issue(&mut correlator, Command::QueryStatus);
        let event = Event { name: "STOP".into(), data: Value::Null, timestamp: None };
        assert_eq!(correlator.settle(reply(status)), Settled::Reply { id: status, result: Ok(1.into()) });
        assert_eq!(correlator.settle(Message::Event(event.clone())), Settled::Event(event));
        assert_eq!(correlator.settle(reply(stop)), Settled::Reply { id: stop, result: Ok(0.into()) });
    }

    #[test]
    fn a_reply_counts_once() {
        let mut correlator = Correlator::default();
        let id = issue(&mut correlator, Command::Stop);
        correlator.settle(reply(id));
        assert_eq!(correlator.settle(reply(id)), Settled::Stray);
    }

    #[test]
    fn a_reply_after_its_asker_gave_up_is_not_taken_for_the_next_commands() {
        let mut correlator = Correlator::default();
        let late = issue(&mut correlator, Command::Stop);
        correlator.forget(late);
        let next = issue(&mut correlator, Command::Continue);
        assert_eq!(correlator.settle(reply(late)), Settled::Stray);
        assert_eq!(correlator.settle(reply(next)), Settled::Reply { id: next, result: Ok(1.into()) });
    }

    #[test]
    fn a_refusal_names_the_command_and_qemus_reason() {
        let mut correlator = Correlator::default();
        let id = issue(&mut correlator, Command::Continue);
        let refused = Message::Error { id: Some(id), class: "GenericError".into(), desc: "Resetting".into() };
        let Settled::Reply { result: Err(error), .. } = correlator.settle(refused) else { panic!("it is a refusal") };
        assert_eq!(error.to_string(), "QEMU refused `cont`: Resetting");
        let nobodys = Message::Error { id: None, class: "GenericError".into(), desc: "JSON parse error".into() };
        assert_eq!(correlator.settle(nobodys), Settled::Stray);
    }

    #[test]
    fn the_number_of_waiting_commands_is_bounded() {
        let mut correlator = Correlator::default();
        for _ in 0..MAX_PENDING {
            issue(&mut correlator, Command::QueryStatus);
        }
        assert_eq!(correlator.issue(Command::Stop), Err(TooManyCommands));
    }
}
