//! Namespaces: the network without interfaces that children are put into.
//!
//! It is made once and shared. A child in one of its own would see no less, and making one costs 1 to 2 ms for each, entering
//! none that can be measured. IPC and UTS namespaces cost a tenth of a millisecond, so each child gets its own.
#![expect(unsafe_code, reason = "leaving a namespace is unsafe where it concerns descriptors")]

use std::{fs::File, io, sync::Arc, thread};

use rustix::thread::UnshareFlags;

use super::jail::Namespaces;

impl Namespaces {
    /// Makes them. Fails for who may not: it takes CAP_SYS_ADMIN.
    pub(crate) fn new() -> io::Result<Self> {
        // A thread that leaves its network behind and ends: the rest of the process stays where it is.
        let maker = thread::Builder::new().name("network".into()).spawn(|| {
            // SAFETY: this flag does not concern descriptors.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        })?;
        let network = maker.join().map_err(|_panicked| io::Error::other("the thread that makes it has panicked"))??;
        Ok(Self { network: Arc::new(network.into()) })
    }
}
