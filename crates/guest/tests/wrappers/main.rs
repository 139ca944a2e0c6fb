//! The wrappers of interpreters, run as the agent runs them, but on this machine and as this user.
//!
//! Needs `python3` (3.11 or newer) and `bash`. The JavaScript wrapper needs a guest's home directory and is tested in one.

mod harness;
mod python;
mod shell;
