//! Whose files the worker touches: the user's, with the user's rights and no more.
//!
//! Only the identity for files is changed, and only of the calling thread. Were the thread's other identities the user's too, a
//! program could change the limits and the scheduling of the agent through it, because Linux asks who the thread is and applies it to the
//! whole process. Root without capabilities may nothing that matters, and the rights to files follow the identity for files.
#![expect(unsafe_code, reason = "two calls that rustix does not have")]

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// The one user of a guest.
const USER: libc::c_long = 1000;
const GROUP: libc::c_long = 1000;

/// No user. Asked for, it changes nothing, and the answer is who it is.
const NOBODY: libc::c_long = -1;

/// Makes the calling thread the user, as far as files are concerned.
pub(super) fn assume() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    // SAFETY: these calls take a number each, and change nothing but the calling thread's credentials.
    let set = |call: libc::c_long, id: libc::c_long| unsafe { libc::syscall(call, id) };
    for (call, id) in [(libc::SYS_setfsgid, GROUP), (libc::SYS_setfsuid, USER)] {
        // Neither reports an error: each answers with the identity before it.
        set(call, id);
        if set(call, NOBODY) != id {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}
