//! What QEMU says: one line as a closed set of meanings.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{CommandId, DecodeError};
use crate::version::{QemuVersion, Version};

/// One message of QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first message of a connection.
    Greeting(Greeting),
    /// A command was carried out.
    Return {
        /// Whose reply it is; absent if the command had none.
        id: Option<CommandId>,
        /// What the command returned.
        value: Value,
    },
    /// A command was refused.
    Error {
        /// Whose reply it is; absent if QEMU could not read the command.
        id: Option<CommandId>,
        /// The sort of error, nearly always `GenericError`.
        class: String,
        /// What went wrong, in QEMU's words.
        desc: String,
    },
    /// Something happened that nobody asked for.
    Event(Event),
}

/// How QEMU introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The QEMU that speaks.
    pub qemu: QemuVersion,
}

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What, for example `SHUTDOWN` or `GUEST_PANICKED`.
    pub name: String,
    /// Its particulars; `null` if there are none.
    pub data: Value,
    /// When, by QEMU's wall clock.
    pub timestamp: Option<Timestamp>,
}

/// A time since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Timestamp {
    /// Whole seconds; −1 if QEMU's clock failed.
    pub seconds: i64,
    /// The rest in microseconds; −1 if QEMU's clock failed.
    pub microseconds: i64,
}

#[derive(Deserialize)]
struct RawGreeting {
    version: RawVersion,
}

#[derive(Deserialize)]
struct RawVersion {
    qemu: Version,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct RawError {
    class: String,
    desc: String,
}

impl Message {
    /// Reads one line.
    pub(super) fn from_line(line: &[u8]) -> Result<Self, DecodeError> {
        let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(DecodeError::Json)?;
        // An id of another form is not one of ours, and so nobody's reply.
        let id = object.remove("id").and_then(|id| id.as_u64()).map(CommandId);
        if let Some(value) = object.remove("return") {
            return Ok(Self::Return { id, value });
        }
        if let Some(error) = object.remove("error") {
            let RawError { class, desc } = read(error)?;
            return Ok(Self::Error { id, class, desc });
        }
        if let Some(name) = object.remove("event") {
            return Ok(Self::Event(Event {
                name: read(name)?,
                data: object.remove("data").unwrap_or_default(),
                timestamp: object.remove("timestamp").map(read).transpose()?,
            }));
        }
        let Some(greeting) = object.remove("QMP") else { return Err(DecodeError::UnknownMessage) };
        let RawVersion { qemu: version, package } = read::<RawGreeting>(greeting)?.version;
        let package = Some(package.trim_matches(['(', ')', ' ']).to_owned()).filter(|text| !text.is_empty());
        Ok(Self::Greeting(Greeting { qemu: QemuVersion { version, package } }))
    }
}

fn read<T: for<'a> Deserialize<'a>>(value: Value) -> Result<T, DecodeError> {
    serde_json::from_value(value).map_err(DecodeError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> Message {
        Message::from_line(line.as_bytes()).expect("the line is a message")
    }

    #[test]
    fn the_greeting_of_a_real_qemu_names_its_version() {
        let line = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2"}, "capabilities": ["oob"]}}"#;
        let Message::Greeting(greeting) = message(line) else { panic!("it is a greeting") };
        assert_eq!(greeting.qemu.to_string(), "10.0.2 (Debian 1:10.0.2+ds-2)");
    }

    #[test]
    fn replies_keep_their_id_and_an_id_that_is_not_ours_is_none() {
        assert_eq!(
            message(r#"{"return": {}, "id": 3}"#),
            Message::Return { id: Some(CommandId(3)), value: serde_json::json!({}) }
        );
        assert_eq!(message(r#"{"return": 1, "id": "3"}"#), Message::Return { id: None, value: 1.into() });
        let error = message(r#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#);
        let (class, desc) = ("GenericError".into(), "no".into());
        assert_eq!(error, Message::Error { id: Some(CommandId(4)), class, desc });
    }

    #[test]
    fn an_event_may_lack_data_and_time() {
        let with = message(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP", "data": {"a": 1}}"#);
        let timestamp = Some(Timestamp { seconds: 1, microseconds: 2 });
        let data = serde_json::json!({ "a": 1 });
        assert_eq!(with, Message::Event(Event { name: "STOP".into(), data, timestamp }));
        let without = message(r#"{"event": "RESUME"}"#);
        assert_eq!(without, Message::Event(Event { name: "RESUME".into(), data: Value::Null, timestamp: None }));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(matches!(Message::from_line(b"{}"), Err(DecodeError::UnknownMessage)));
        for line in ["[]", "1", "", "{\"error\": 1}", "{\"event\": {}}", "{\"QMP\": {}}"] {
            assert!(matches!(Message::from_line(line.as_bytes()), Err(DecodeError::Json(_))), "{line}");
        }
    }
}
