//! What QEMU can be asked.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The number that ties a reply to its command, unique on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub(super) u64);

/// A question or an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Ends the greeting; nothing else is answered before it.
    Capabilities,
    /// Whether the guest runs, and why not: see [`RunState::from_reply`]. Its reply is the first proof that QEMU has made the machine,
    /// for the greeting comes before that.
    QueryStatus,
    /// Which QEMU it is.
    QueryVersion,
    /// Halts the guest's processors.
    Stop,
    /// Lets them run again.
    Continue,
    /// Ends QEMU at once, without asking the guest. The connection may end in a reset before the reply has been read.
    Quit,
}

/// Whether the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Its processors run.
    Running,
    /// Halted on request.
    Paused,
    /// Not yet started.
    Prelaunch,
    /// The guest or its accelerator failed in a way that QEMU cannot go on from.
    InternalError,
    /// The guest has switched itself off or was reset.
    Shutdown,
    /// Another state, by QEMU's name for it.
    Other(String),
}

impl Command {
    /// The command's name in QMP.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::QueryVersion => "query-version",
            Self::Stop => "stop",
            Self::Continue => "cont",
            Self::Quit => "quit",
        }
    }

    /// The line that asks it under this id.
    #[must_use]
    pub fn encode(self, id: CommandId) -> Vec<u8> {
        format!("{}\n", serde_json::json!({ "execute": self.name(), "id": id })).into_bytes()
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl RunState {
    /// The state in a reply to [`Command::QueryStatus`], or in the reply of anything else `None`.
    #[must_use]
    pub fn from_reply(value: &Value) -> Option<Self> {
        Some(match value.get("status")?.as_str()? {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "prelaunch" => Self::Prelaunch,
            "internal-error" => Self::InternalError,
            "shutdown" => Self::Shutdown,
            other => Self::Other(other.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_line_with_its_name_and_id() {
        let line = Command::Continue.encode(CommandId(7));
        let (end, json) = line.split_last().expect("it is not empty");
        assert_eq!(*end, b'\n');
        assert!(!json.contains(&b'\n'));
        let value: Value = serde_json::from_slice(json).expect("it is JSON");
        assert_eq!(value, serde_json::json!({ "execute": "cont", "id": 7 }));
    }

    #[test]
    fn a_state_is_read_by_its_name_and_an_unknown_one_is_kept() {
        let of = |status: Value| RunState::from_reply(&serde_json::json!({ "running": false, "status": status }));
        assert_eq!(of("internal-error".into()), Some(RunState::InternalError));
        assert_eq!(of("postmigrate".into()), Some(RunState::Other("postmigrate".into())));
        assert_eq!(of(1.into()), None);
        assert_eq!(RunState::from_reply(&Value::Null), None);
    }
}
