//! Snapshots: what QEMU is told so that a guest is saved, and so that a copy of it comes to life.
//!
//! The guest's memory is a file beside the state, which has only what devices and processors know. A copy maps that file: it reads what
//! it has in common with all others, and what it writes is its own.

use serde_json::Value;

use super::Command;

/// Under which QEMU keeps the descriptor of a state, and that of a file for translations.
const STATE: &str = "state";
const TRANSLATIONS: &str = "translations";

/// How far saving or loading has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Migration {
    /// It goes on.
    UnderWay,
    /// It is done. Of a state that was loaded this proves nothing: only a guest that answers does.
    Completed,
    /// It came to nothing, for this reason, in QEMU's words.
    Failed(String),
}

/// What saves a guest that runs: a copy of it will run, and not wait to be let go. The second of these needs the descriptor that the state
/// goes to. A reply to [`Command::QueryMigration`] tells when it is done; then the guest is halted, its memory stands still, and
/// [`Command::Continue`] lets it go on.
#[must_use]
pub fn save() -> [Command; 3] {
    [Command::LeaveMemoryOut, Command::KeepDescriptor { name: STATE }, Command::Save { to: STATE }]
}

/// What writes a halted guest's translations down: [`translations_length`] is in the reply. The first of these needs the descriptor of
/// a file of zeros that has room for them.
#[must_use]
pub fn save_translations() -> [Command; 2] {
    [Command::KeepDescriptor { name: TRANSLATIONS }, Command::SaveTranslations { to: TRANSLATIONS }]
}

/// How many bytes of the file a reply to [`Command::SaveTranslations`] says are used; `None`: it is none.
#[must_use]
pub fn translations_length(reply: &Value) -> Option<u64> {
    reply.get("length")?.as_u64()
}

/// What boots a guest in a QEMU that [waits](crate::Boot::waits), with the translations at this path, which
/// [may be refused](Command::may_be_refused).
#[must_use]
pub fn boot(translations: String) -> [Command; 2] {
    [Command::LoadTranslations { path: translations }, Command::MakeMachine]
}

/// What brings a copy to life in a QEMU that is [`Blank`](crate::Start::Blank), with `memory`, the path of a file, as its memory of
/// `memory_mib`, and with the `translations` at another path. One of these needs the descriptor that the state comes from, and one
/// [may be refused](Command::may_be_refused).
#[must_use]
pub fn restore(memory: String, memory_mib: u32, translations: Option<String>) -> Vec<Command> {
    let load_translations = translations.map(|path| Command::LoadTranslations { path });
    let load_guest = [
        Command::AddMemory { path: memory, size_mib: memory_mib },
        Command::UseMemory,
        Command::MakeMachine,
        Command::LeaveMemoryOut,
        Command::KeepDescriptor { name: STATE },
        Command::Load { from: STATE },
    ];
    load_translations.into_iter().chain(load_guest).collect()
}

impl Migration {
    /// What a reply to [`Command::QueryMigration`] says; `None`: it is none.
    #[must_use]
    pub fn from_reply(value: &Value) -> Option<Self> {
        Some(match value.get("status")?.as_str()? {
            "completed" => Self::Completed,
            status @ ("failed" | "cancelled") => {
                Self::Failed(value.get("error-desc").and_then(Value::as_str).unwrap_or(status).to_owned())
            }
            _ => Self::UnderWay,
        })
    }
}

impl Command {
    /// Whether a descriptor has to be sent with it.
    #[must_use]
    pub const fn needs_descriptor(&self) -> bool {
        matches!(self, Self::KeepDescriptor { .. })
    }

    /// Whether what follows it does as well without: translations are of one program on one sort of processor, and made anew where
    /// they are of another.
    #[must_use]
    pub const fn may_be_refused(&self) -> bool {
        matches!(self, Self::LoadTranslations { .. })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::CommandId, *};

    fn lines(commands: &[Command]) -> String {
        commands.iter().map(|command| String::from_utf8(command.encode(CommandId(1))).expect("it is text")).collect()
    }

    #[test]
    fn a_guest_is_saved_without_its_memory() {
        insta::assert_snapshot!(lines(&save()));
    }

    #[test]
    fn a_copy_has_private_memory_and_then_a_state() {
        insta::assert_snapshot!(lines(&restore("/proc/self/fd/10/a".into(), 192, None)));
    }

    #[test]
    fn a_copy_takes_translations_before_its_machine_is_made() {
        insta::assert_snapshot!(lines(&restore("/proc/self/fd/10/a".into(), 192, Some("/proc/self/fd/10/b".into()))));
    }

    #[test]
    fn a_guest_boots_with_translations() {
        insta::assert_snapshot!(lines(&boot("/proc/self/fd/13/b".into())));
    }

    #[test]
    fn translations_are_saved() {
        insta::assert_snapshot!(lines(&save_translations()));
        assert_eq!(translations_length(&json!({ "blocks": 3, "length": 4096 })), Some(4096));
        assert_eq!(translations_length(&json!({ "length": -1 })), None);
        assert_eq!(translations_length(&json!({})), None);
    }

    #[test]
    fn the_end_of_a_migration_is_told_from_its_course() {
        let of = |value: Value| Migration::from_reply(&value);
        assert_eq!(of(json!({ "status": "active" })), Some(Migration::UnderWay));
        assert_eq!(of(json!({ "status": "device" })), Some(Migration::UnderWay));
        assert_eq!(of(json!({ "status": "completed" })), Some(Migration::Completed));
        let failed = json!({ "status": "failed", "error-desc": "no space" });
        assert_eq!(of(failed), Some(Migration::Failed("no space".into())));
        assert_eq!(of(json!({ "status": "cancelled" })), Some(Migration::Failed("cancelled".into())));
        assert_eq!(of(json!({})), None);
    }
}
