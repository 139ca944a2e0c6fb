//! Manifests of the remote cache, as whoever may write to the store, or a damaged one, has left them.
//!
//! The oracle is in the crate's own `fuzzing` module: what is accepted reads the same when it is written again, is found where it says that
//! it belongs, and names files of one directory and blobs among the blobs. An input is also taken for facts and a file's name, so
//! that mutations come behind the seal.
#![no_main]

use exec_sandbox_remote::fuzzing::{manifest, manifests, sealed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(manifests()), |json: &[u8]| {
    manifest(json);
    if let Ok(text) = std::str::from_utf8(json) {
        let (file, facts) = text.split_once('\n').unwrap_or((text, ""));
        sealed(facts, file);
    }
});
