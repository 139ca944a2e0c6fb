//! The house: what the compiler and clippy do not check about this source, as tests.
//!
//! Every rule is a function from data to violations, so that each is also shown bad data and has to complain. Rules that
//! clippy has (length of functions, `allow`, reasons, printing) are not repeated; that clippy is told about them is checked.

mod edges;
mod files;
mod lints;
mod text;
mod tree;

/// Fails with every violation, one a line.
#[track_caller]
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "the house has {} violations:\n  {}", violations.len(), violations.join("\n  "));
}
