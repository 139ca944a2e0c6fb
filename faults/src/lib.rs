//! Scenes: what a fake QEMU is told to do, as text of one step a line.
//!
//! The child that the library starts has an empty environment and may soon read no file but its own program. So the scenes
//! travel inside the program: the harness appends them to a copy of `fake-qemu`, and the copy reads its own end. Which scene
//! is played is told by the memory that the VM was given, which is the one thing about it that a caller chooses freely, and by
//! how its guest is to come to life.

mod scenes;
mod step;

pub use scenes::{Life, Scenes, ScenesError};
pub use step::{Amount, Step, StepError, Stream};
