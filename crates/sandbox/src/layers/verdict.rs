//! What an installer's end means: whether another try may help, and what its users are to be told.
//!
//! Installers say it in words, so here are words, of uv and of Bun. What none of them is in is taken to be there for good: a caller who
//! tries for ever is worse off than one who is told the installer's own text.

use exec_sandbox_wire::limits;

/// Longest text of an installer that is passed on, in characters: its last ones, where the reason is.
const MAX_SAID_CHARS: usize = 2000;

/// How an installer came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Whether the same may work a little later.
    pub(super) is_transient: bool,
    /// What to do about it, if that is known.
    pub(super) remedy: Option<&'static str>,
    /// What the installer said.
    pub(super) said: String,
}

/// What passes: a network, or a server that is not well.
const PASSES: [&str; 28] = [
    "error sending request",
    "timed out",
    "timeout",
    "dns error",
    "failed to lookup",
    "temporary failure in name resolution",
    "could not resolve host",
    "connection refused",
    "connectionrefused",
    "connection reset",
    "connectionreset",
    "connection closed",
    "connectionclosed",
    "connection error",
    "incomplete message",
    "end of file before message",
    "unexpected eof",
    "failedtoopensocket",
    "(429",
    "(500",
    "(502",
    "(503",
    "(504",
    "- 429",
    "- 500",
    "- 502",
    "- 503",
    "- 504",
];

const TOO_LARGE: &str =
    "ask for fewer packages, or give the machine that installs them more memory: EXEC_SANDBOX_PACKAGE_MEMORY_MIB";

/// What stays, and what to do about it. Looked for first: an error of the network may be among what was said before.
const STAYS: [(&str, Option<&str>); 16] = [
    ("no space left on device", Some(TOO_LARGE)),
    ("disk quota exceeded", Some(TOO_LARGE)),
    ("cannot allocate memory", Some(TOO_LARGE)),
    ("out of memory", Some(TOO_LARGE)),
    ("was not found in the package registry", Some("look for the name's spelling in the registry")),
    ("no solution found", Some("look at which versions there are, and which of them fit together and this Python")),
    ("no matching distribution", Some("look at which versions there are")),
    ("has no usable wheels", Some("ask for a version that has a wheel for this Python: nothing is built from source")),
    ("no version matching", Some("look at which versions there are")),
    ("- 404", Some("look for the name's spelling in the registry")),
    ("- 401", Some("look at the password in the index's URL")),
    ("- 403", Some("look at whether the index lets you have this package")),
    ("(404", Some("look for the name's spelling in the registry")),
    ("(401", Some("look at the password in the index's URL")),
    ("(403", Some("look at whether the index lets you have this package")),
    ("integrity check failed", None),
];

/// The certificate of a registry is not known.
const UNKNOWN_CERTIFICATE: [&str; 5] =
    ["unknownissuer", "invalid peer certificate", "self-signed certificate", "unable to get local issuer", "cert_"];

const NAME_AUTHORITY: &str =
    "name the file of the certificates that your registry is known by in EXEC_SANDBOX_PACKAGE_CA";

/// How a line begins that uv says at every start.
const CHATTER: &str = "Using CPython";

/// What it means that an installer ended with `code` after it had said `said`.
pub(super) fn judge(code: i32, said: &str) -> Refusal {
    let text = said.to_lowercase();
    let has = |word: &&str| text.contains(*word);
    let said = tail(said);
    if UNKNOWN_CERTIFICATE.iter().any(&has) {
        return Refusal { is_transient: false, remedy: Some(NAME_AUTHORITY), said };
    }
    // Killed for memory, by the guest's kernel.
    if code == 137 {
        return Refusal { is_transient: false, remedy: Some(TOO_LARGE), said };
    }
    if let Some((_, remedy)) = STAYS.iter().find(|(word, _)| has(word)) {
        return Refusal { is_transient: false, remedy: *remedy, said };
    }
    Refusal { is_transient: PASSES.iter().any(has), remedy: None, said }
}

/// What it means that an installer was not done in time.
pub(super) fn too_slow(said: &str) -> Refusal {
    let remedy = Some("try again: what was slow may be the network; or ask for fewer packages at once");
    let said = format!("it took longer than {} s\n{}", limits::MAX_EXEC_TIMEOUT.as_secs(), tail(said));
    Refusal { is_transient: true, remedy, said: said.trim_end().to_owned() }
}

/// The end of a text, without what steers a terminal.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().filter(|line| !line.starts_with(CHATTER)).collect();
    let clean: Vec<char> = lines.join("\n").chars().filter(|c| !c.is_control() || *c == '\n').collect();
    clean[clean.len().saturating_sub(MAX_SAID_CHARS)..].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_network_does_passes() {
        for said in [
            "error: Failed to fetch: `https://a.example/simple/x/`\n  Caused by: error sending request for url\n  Caused by: operation timed out",
            "Caused by: client error (Connect)\n  Caused by: dns error: failed to lookup address information",
            "HTTP status server error (503 Service Unavailable) for url (https://a.example/x)",
            "error: ConnectionRefused downloading package manifest left-pad",
            "error: GET https://a.example/left-pad - 503",
        ] {
            assert!(judge(1, said).is_transient, "{said}");
        }
        assert!(too_slow("Resolved 3 packages").is_transient);
    }

    #[test]
    fn what_is_not_there_or_does_not_fit_stays_and_says_what_to_do() {
        for said in [
            "  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of x==9.9 and you require x==9.9",
            "Because nosuchthing was not found in the package registry and you require nosuchthing==1",
            "error: GET https://a.example/nosuchthing - 404",
            "error: No version matching \"99.0.0\" found for specifier \"left-pad\" (but package exists)",
            "failed to write: No space left on device (os error 28)",
        ] {
            let refusal = judge(1, said);
            assert!(!refusal.is_transient && refusal.remedy.is_some(), "{said}");
        }
        assert_eq!(judge(137, "").remedy, Some(TOO_LARGE));
        assert_eq!(
            judge(2, "error: error sending request: invalid peer certificate: UnknownIssuer").remedy,
            Some(NAME_AUTHORITY)
        );
    }

    #[test]
    fn what_nobody_knows_stays_and_is_passed_on_without_what_steers_a_terminal() {
        let refusal = judge(2, "error: \u{1b}[31mthe moon is full\n");
        assert_eq!((refusal.is_transient, refusal.said.as_str()), (false, "error: [31mthe moon is full"));
        let long = format!("{}the reason", "x".repeat(9000));
        let said = judge(1, &long).said;
        assert!(said.ends_with("the reason") && said.chars().count() == MAX_SAID_CHARS);
    }
}
