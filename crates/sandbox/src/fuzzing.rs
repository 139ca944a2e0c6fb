//! What the fuzz targets drive of this crate, whose types are its own. Built for them alone, with `--cfg fuzzing`.
//!
//! Each function takes what somebody says who is not believed, and panics where a promise about that is not kept.

use prost::Message as _;

use crate::{ExecRequest, Language, SchedulerConfig};
pub use crate::{
    layers::fuzzing::{layer_manifest, layer_manifests},
    run_dir::fuzzing::run_directory,
    snapshot::fuzzing::{snapshot_manifest, snapshot_manifests},
    vm::fuzzing::{Step, execution},
};

/// A request for an execution: the encoded program that the agent is sent, if the request is valid.
pub fn request(code: &str, env: Vec<(String, String)>) -> Option<Vec<u8>> {
    let request = ExecRequest { env, ..ExecRequest::new(code) };
    let valid = request.validate(Language::Raw, &SchedulerConfig::default()).ok()?;
    Some(valid.program.encode_to_vec())
}
