//! `sbx up`, `sbx down`, and what `sbx run` has of it: a process of this user that keeps VMs ready for whoever runs something next.
//!
//! ```text
//! sbx up ──starts──▶ service ── one scheduler, its pool ── VMs
//! sbx run ─request─▶ │                     found by a socket in the run directory, which is this user's alone
//!         ◀─output── │
//! sbx down ──end───▶ │
//! ```
//! A run is handed over only if the service would do what the process itself would; if there is none, or it is another, or it is silent,
//! the run is the process's own. Sessions and runs with files or exposed ports always are.

mod client;
mod daemon;
mod descriptors;
mod down;
mod frame;
mod identity;
mod message;
mod places;
mod server;
mod up;

pub(crate) use client::{Alone, HandedOver, Remote, check, hand_over, served};
pub(crate) use down::run as down;
pub(crate) use up::run as up;

use crate::{
    exit::Status,
    failure::{Explanation, Failure},
};

/// The variable that does what `--no-service` does.
pub(crate) const VARIABLE: &str = "EXEC_SANDBOX_NO_SERVICE";

/// Whether the environment wants every run to be its process's own.
pub(crate) fn is_unwanted() -> bool {
    std::env::var(VARIABLE).is_ok_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes"))
}

/// A service is in the way, or does not come or go.
fn trouble(message: String, causes: Vec<String>) -> Failure {
    let remedy = Some("`sbx down` ends the service; then `sbx up` starts another".into());
    let explanation = Explanation { kind: "service".into(), message, causes, remedy };
    Failure::Told { explanation, status: Status::SANDBOX }
}
