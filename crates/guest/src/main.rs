//! The entry of PID 1, kept apart because it cannot be Rust's own `main`.
#![no_main]
#![expect(unsafe_code, reason = "the C runtime finds `main` by its name")]

use std::ffi::{c_char, c_int};

/// Rust's runtime aborts when it finds descriptors 0 to 2 closed and cannot open `/dev/null`. PID 1 of a bare initramfs starts with
/// exactly that, so it starts here, and opens them once `/dev` is mounted.
// SAFETY: no other symbol of this program is called `main`, and the signature is the one that the C runtime calls.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    exec_sandbox_guest::run()
}
