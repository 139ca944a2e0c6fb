//! What the fuzz targets share: inputs that are scripts, and the seeds that a corpus begins with.
//!
//! An input that is more than one text is a script: steps, each a choice and its argument. Any bytes are a script, so no mutation is
//! wasted. Seeds come from the project's own encoders when a target starts, so they never lag behind the formats.

use std::{env, fs, path::Path};

/// Names the directory that a target writes its seeds to before it reads its corpus. Without it there are none.
const SEEDS_DIR: &str = "FUZZ_SEEDS_DIR";

/// Longest argument of a step: its length is a byte.
const MAX_ARGUMENT_BYTES: usize = u8::MAX as usize;

/// The steps of a script: `choice: u8 | length: u8 | argument`. The last argument may be cut short.
pub fn steps(script: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = script;
    std::iter::from_fn(move || {
        let (&[choice, length], tail) = rest.split_first_chunk()?;
        let (argument, tail) = tail.split_at(tail.len().min(length.into()));
        rest = tail;
        Some((choice, argument))
    })
}

/// The script of these steps. An argument that is too long for one is cut into several.
pub fn script<'a>(steps: impl IntoIterator<Item = (u8, &'a [u8])>) -> Vec<u8> {
    let mut script = Vec::new();
    for (choice, argument) in steps {
        let mut rest = argument;
        loop {
            let (piece, tail) = rest.split_at(rest.len().min(MAX_ARGUMENT_BYTES));
            script.extend([choice, piece.len() as u8]);
            script.extend(piece);
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
    }
    script
}

/// An argument as a number: its first two bytes, the low one first. What is missing is zero.
pub fn number(argument: &[u8]) -> usize {
    let byte = |index: usize| argument.get(index).copied().unwrap_or_default();
    u16::from_le_bytes([byte(0), byte(1)]).into()
}

/// Writes seeds to where the target's corpus is, if it is known.
pub fn sow<S: AsRef<[u8]>>(seeds: impl IntoIterator<Item = S>) {
    let Some(dir) = env::var_os(SEEDS_DIR) else { return };
    for (number, seed) in seeds.into_iter().enumerate() {
        fs::write(Path::new(&dir).join(format!("seed-{number}")), seed).expect("the corpus can be written to");
    }
}
