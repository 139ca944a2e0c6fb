//! QMP, from a QEMU that a guest has taken over: bytes in pieces become messages, and replies find their commands.
//!
//! The oracle: the messages, and the end that they come to, do not depend on how the bytes were cut; a line over the limit is refused
//! before more than it and one piece is held; a reply settles a command that waits, once, and every other is nobody's; and as many
//! commands wait as are meant to.
#![no_main]

use std::{collections::BTreeMap, mem};

use exec_sandbox_qemu::qmp::{Command, CommandId, Correlator, DecodeError, Decoder, MAX_LINE_BYTES, Message, Settled};
use libfuzzer_sys::fuzz_target;

/// What of an error can be compared.
type Kind = mem::Discriminant<DecodeError>;

const COMMANDS: [Command; 6] = [
    Command::Capabilities,
    Command::QueryStatus,
    Command::QueryVersion,
    Command::Stop,
    Command::Continue,
    Command::Quit,
];

/// Commands may wait in such numbers; the correlator's own limit is its private matter.
const PENDING: usize = 64;

/// The choice of a step by which so many KiB of a line arrive: one of many, because it takes long.
const FILLS: u8 = 255;

// Steps: 0 to 3 bytes arrive, 4 a command is issued, 5 the oldest is given up.
fuzz_target!(init: fuzz::sow(seeds()), |script: &[u8]| {
    let mut world = World::default();
    let (mut all, mut outcome) = (Vec::new(), Ok(()));
    for (choice, argument) in fuzz::steps(script) {
        let piece = match choice % 6 {
            _ if choice == FILLS => vec![b'x'; (fuzz::number(argument) % 300) * 1024],
            0..=3 => argument.to_vec(),
            4 => {
                world.issue(COMMANDS[fuzz::number(argument) % COMMANDS.len()].clone());
                continue;
            }
            _ => {
                world.forget();
                continue;
            }
        };
        all.extend_from_slice(&piece);
        outcome = world.arrive(&piece);
        if outcome.is_err() {
            break;
        }
    }
    let mut decoder = Decoder::default();
    decoder.push(&all);
    let mut messages = Vec::new();
    let whole = read(&mut decoder, |message| messages.push(message));
    assert_eq!((messages, whole), (world.messages, outcome), "the pieces do not matter");
});

#[derive(Default)]
struct World {
    decoder: Decoder,
    /// Bytes since the last end of a line.
    open_bytes: usize,
    messages: Vec<Message>,
    correlator: Correlator,
    waiting: BTreeMap<CommandId, Command>,
}

impl World {
    fn issue(&mut self, command: Command) {
        let is_full = self.waiting.len() >= PENDING;
        let issued = self.correlator.issue(command.clone());
        assert_eq!(issued.is_err(), is_full);
        let Ok((id, line)) = issued else { return };
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "it is one line");
        let said: serde_json::Value = serde_json::from_slice(&line).expect("it is JSON");
        assert_eq!((&said["execute"], &said["id"]), (&command.name().into(), &serde_json::json!(id)));
        assert!(self.waiting.insert(id, command).is_none(), "an id is given once");
    }

    fn forget(&mut self) {
        if let Some((id, _)) = self.waiting.pop_first() {
            self.correlator.forget(id);
        }
    }

    fn arrive(&mut self, piece: &[u8]) -> Result<(), Kind> {
        self.open_bytes = match piece.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => piece.len() - end - 1,
            None => self.open_bytes + piece.len(),
        };
        self.decoder.push(piece);
        let (messages, correlator, waiting) = (&mut self.messages, &mut self.correlator, &mut self.waiting);
        read(&mut self.decoder, |message| {
            settle(correlator, waiting, message.clone());
            messages.push(message);
        })?;
        assert!(self.open_bytes <= MAX_LINE_BYTES, "no more than a line is held");
        Ok(())
    }
}

/// Takes every message that is there.
fn read(decoder: &mut Decoder, mut take: impl FnMut(Message)) -> Result<(), Kind> {
    while let Some(message) = decoder.next_message().map_err(|error| mem::discriminant(&error))? {
        take(message);
    }
    Ok(())
}

fn settle(correlator: &mut Correlator, waiting: &mut BTreeMap<CommandId, Command>, message: Message) {
    let (id, is_refusal) = match &message {
        Message::Return { id, .. } => (*id, false),
        Message::Error { id, .. } => (*id, true),
        Message::Greeting(_) | Message::Event(_) => (None, false),
    };
    let settled = correlator.settle(message.clone());
    let Some(command) = id.and_then(|id| waiting.remove(&id)) else {
        let expected = match message {
            Message::Greeting(greeting) => Settled::Greeting(greeting),
            Message::Event(event) => Settled::Event(event),
            Message::Return { .. } | Message::Error { .. } => Settled::Stray,
        };
        assert_eq!(settled, expected);
        return;
    };
    let Settled::Reply { id: found, result } = settled else { panic!("{command} waits for its reply") };
    assert_eq!((Some(found), result.is_err()), (id, is_refusal));
    assert_eq!(correlator.settle(message), Settled::Stray, "a reply counts once");
}

fn seeds() -> Vec<Vec<u8>> {
    let greeting: &[u8] = b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \
        \"package\": \"Debian\"}, \"capabilities\": []}}\r\n";
    let reply: &[u8] = b"{\"return\": {\"status\": \"running\"}, \"id\": 0}\r\n";
    let event: &[u8] =
        b"{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\", \"data\": {\"a\": [1.5, null]}}\n";
    let refusal: &[u8] = b"{\"id\": 1, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n";
    let long: [(u8, &[u8]); 3] = [(0, b"{\"event\": \""), (FILLS, &[250, 0]), (0, b"\"}\n")];
    vec![
        fuzz::script([(0, greeting), (4, &[1]), (0, reply), (0, event), (4, &[3]), (0, refusal)]),
        fuzz::script([(4, &[4][..]), (4, &[5]), (5, &[]), (1, b"\n"), (1, refusal), (1, reply)]),
        fuzz::script(long),
        fuzz::script([(FILLS, &[200, 0][..]), (FILLS, &[100, 0])]),
        fuzz::script([(4, &[1][..]); 70]),
    ]
}
