//! A signal to itself, as `abort` sends it: by the thread's number, for processes it may not signal by theirs.
#![expect(unsafe_code, reason = "a signal to the own thread has no safe function")]

use std::io;

use rustix::process::Signal;

pub(crate) fn raise(signal: Signal) -> io::Result<()> {
    // SAFETY: no handler is installed that could do anything; what the signal does by default is what is asked for.
    let answer = unsafe { libc::raise(signal.as_raw()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
