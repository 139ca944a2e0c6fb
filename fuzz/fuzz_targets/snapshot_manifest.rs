//! Manifests of memory snapshots, as another version or another program has left them.
//!
//! The oracle is in the sandbox's own `fuzzing` module: what is accepted reads the same when it is written again, has the key of its parts,
//! a memory as long as its VM's, and a key that is one component of a path.
#![no_main]

use exec_sandbox::fuzzing::{snapshot_manifest, snapshot_manifests};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(snapshot_manifests()), |json: &[u8]| snapshot_manifest(json));
