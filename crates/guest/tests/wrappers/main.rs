//! The wrappers of interpreters, run as the agent runs them, but on this machine and as this user.
//!
//! Needs `python3` (3.11 or newer, with cloudpickle) and `bash`. Bun is the one that the image's recipe has fetched, or `bun`; without
//! either, the tests of JavaScript say that they were left out.

mod harness;
mod javascript;
mod python;
mod shell;
