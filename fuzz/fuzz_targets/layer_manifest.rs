//! Manifests of package layers, as another version, another machine or another program has left them.
//!
//! The oracle is in the sandbox's own `fuzzing` module: what is accepted reads the same when it is written again, has the key of its parts,
//! and a key that is one component of a path.
#![no_main]

use exec_sandbox::fuzzing::{layer_manifest, layer_manifests};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::sow(layer_manifests()), |json: &[u8]| layer_manifest(json));
