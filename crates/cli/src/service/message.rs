//! What the frames say that are not output: JSON, read as what a process of the same user may have got wrong.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{frame::wrong, identity::Identity};
use crate::{
    exit::Status,
    failure::{Explanation, Failure},
};

/// How a service introduces itself. What that of another build lacks is empty, so that it is told from this one and can be ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Greeting {
    pub(crate) identity: Identity,
    pub(crate) pid: u32,
    /// How the processor of its guests is run.
    pub(crate) accelerator: String,
    /// VMs of each language that it keeps ready.
    pub(crate) pool: usize,
    /// Memory of each of them.
    pub(crate) memory_mib: u32,
}

/// Why something was not done, as it was told by the process that was to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    explanation: Explanation,
    status: u8,
}

impl From<&Failure> for Told {
    fn from(failure: &Failure) -> Self {
        Self { explanation: failure.explain(), status: failure.status().code() }
    }
}

impl From<Told> for Failure {
    fn from(Told { explanation, status }: Told) -> Self {
        Self::Told { explanation, status: Status::of(status) }
    }
}

/// The body of a frame that says `message`.
pub(super) fn body(message: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(io::Error::from)
}

/// What a body says.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| wrong(format!("a frame says what is no message: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_as_it_happened() {
        let failure = Failure::usage("the code is empty", "write some");
        let told: Told = read(&body(&Told::from(&failure)).expect("it is JSON")).expect("it was just written");
        let heard = Failure::from(told);
        assert_eq!((heard.explain(), heard.status()), (failure.explain(), Status::USAGE));
    }

    #[test]
    fn a_greeting_of_another_build_names_its_process_and_is_another() {
        let greeting: Greeting = read(br#"{"pid": 7, "identity": {"program": "p"}, "news": []}"#).expect("it is one");
        assert_eq!(greeting.pid, 7);
        assert!(Identity::pretend("here").difference(&greeting.identity).is_some());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in [&b""[..], b"{", b"3", b"\xff", b"{\"pid\": -1}"] {
            assert!(read::<Greeting>(wrong).is_err(), "{wrong:?}");
            assert!(read::<exec_sandbox::Outcome>(wrong).is_err(), "{wrong:?}");
        }
    }
}
