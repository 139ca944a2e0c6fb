//! What is said of a VM's network, to whoever asks for it.

use exec_sandbox::{ExposedPort, Outcome};

/// Where a port of a VM is reached.
pub(crate) fn address(port: &ExposedPort) -> String {
    format!("port {}/{} is reached at {}:{}", port.internal, port.protocol, port.host, port.external)
}

/// What the network refused, and what else is worth knowing about it.
pub(crate) fn notes(outcome: &Outcome) -> Vec<String> {
    let Some(network) = outcome.network else { return Vec::new() };
    let mut notes: Vec<String> = outcome
        .refusals
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("the network refused {count} times: {name}{}", explained(name)))
        .collect();
    if network.unreachable > 0 {
        notes.push(format!("{} connections or datagrams were permitted and reached nobody", network.unreachable));
    }
    if !network.is_up {
        notes.push("the network was lost: its process has ended".into());
    } else if !network.is_current {
        notes.push("the network's process did not answer: its figures are older than the program's end".into());
    }
    notes
}

/// The sentence of a refusal, for people.
fn explained(name: &str) -> String {
    let refusal = exec_sandbox::Refusal::ALL.iter().find(|refusal| refusal.name() == name);
    refusal.map(|refusal| format!(" ({refusal})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_by_its_name_and_its_sentence() {
        assert_eq!(explained("name_not_allowed"), " (the name is not on the allow-list)");
        assert_eq!(explained("of a newer gateway"), "");
    }
}
