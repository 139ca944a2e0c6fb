//! What QEMU can be asked.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::MEMORY_ID;

/// The number that ties a reply to its command, unique on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub(super) u64);

/// A question or an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Keeps the descriptor that is sent with it under a name, until something uses it.
    KeepDescriptor {
        /// The name.
        name: &'static str,
    },
    /// Names a file as memory of a machine that is not made yet. The guest reads it; what it writes is its own and goes nowhere.
    AddMemory {
        /// The file, as QEMU can open it for reading.
        path: String,
        /// Its size, which is the machine's memory.
        size_mib: u32,
    },
    /// Makes the machine use the memory that was added.
    UseMemory,
    /// Makes the machine of a QEMU that has waited to be told of its memory.
    MakeMachine,
    /// Leaves the guest's memory out of a state that is saved or loaded, if it is in a file.
    LeaveMemoryOut,
    /// Saves the state of the guest to the descriptor kept under a name. At the end the guest is halted and the descriptor closed.
    Save {
        /// The name.
        to: &'static str,
    },
    /// Loads a state from the descriptor kept under a name. The guest then runs, or not, as it did when it was saved.
    Load {
        /// The name.
        from: &'static str,
    },
    /// Writes what is translated of a halted guest to the file whose descriptor is kept under a name: see
    /// [`translations_length`](super::translations_length). Of this project's QEMU alone, under emulation, as is the next.
    SaveTranslations {
        /// The name.
        to: &'static str,
    },
    /// Takes translations from a file that another process of the same QEMU has written, before the machine is made.
    LoadTranslations {
        /// The file, as QEMU can open it for reading.
        path: String,
    },
    /// How far saving or loading has come: see [`Migration::from_reply`](super::Migration::from_reply).
    QueryMigration,
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
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::QueryVersion => "query-version",
            Self::Stop => "stop",
            Self::Continue => "cont",
            Self::Quit => "quit",
            Self::KeepDescriptor { .. } => "getfd",
            Self::AddMemory { .. } => "object-add",
            Self::UseMemory => "qom-set",
            Self::MakeMachine => "x-exit-preconfig",
            Self::LeaveMemoryOut => "migrate-set-capabilities",
            Self::Save { .. } => "migrate",
            Self::Load { .. } => "migrate-incoming",
            Self::SaveTranslations { .. } => "x-translations-save",
            Self::LoadTranslations { .. } => "x-translations-load",
            Self::QueryMigration => "query-migrate",
        }
    }

    fn arguments(&self) -> Option<Value> {
        Some(match self {
            Self::Capabilities
            | Self::QueryStatus
            | Self::QueryVersion
            | Self::Stop
            | Self::Continue
            | Self::Quit
            | Self::MakeMachine
            | Self::QueryMigration => return None,
            Self::KeepDescriptor { name } | Self::SaveTranslations { to: name } => json!({ "fdname": name }),
            Self::LoadTranslations { path } => json!({ "filename": path }),
            // Opened for reading, and a private mapping that may be written to all the same.
            Self::AddMemory { path, size_mib } => json!({
                "qom-type": "memory-backend-file", "id": MEMORY_ID, "size": u64::from(*size_mib) << 20, "mem-path": path,
                "share": false, "readonly": true, "rom": "off",
            }),
            Self::UseMemory => json!({ "path": "/machine", "property": "memory-backend", "value": MEMORY_ID }),
            Self::LeaveMemoryOut => json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] }),
            Self::Save { to: name } | Self::Load { from: name } => json!({ "uri": format!("fd:{name}") }),
        })
    }

    /// The line that asks it under this id.
    #[must_use]
    pub fn encode(&self, id: CommandId) -> Vec<u8> {
        let mut line = json!({ "execute": self.name(), "id": id });
        if let Some(arguments) = self.arguments() {
            line["arguments"] = arguments;
        }
        format!("{line}\n").into_bytes()
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
