//! Things that belong to the process that made them. A fork copies them into a child, where there is no thread that serves them:
//! used there they say so, and dropped there they are left alone.

use std::{mem, process, sync::Arc};

use pyo3::{exceptions::PyRuntimeError, prelude::*};

/// Something of this process, shared with the futures that use it.
#[derive(Debug)]
pub(crate) struct Home<T> {
    process: u32,
    value: Arc<T>,
}

impl<T> Home<T> {
    pub(crate) fn of(value: T) -> Self {
        Self { process: process::id(), value: Arc::new(value) }
    }

    /// The thing, if this is its process.
    pub(crate) fn get(&self) -> PyResult<Arc<T>> {
        if self.is_here() {
            return Ok(Arc::clone(&self.value));
        }
        let message = format!(
            "it belongs to process {}, and this one was forked from it: start a Scheduler of its own here",
            self.process
        );
        Err(PyRuntimeError::new_err(message))
    }

    /// The thing, to look at.
    pub(crate) fn look(&self) -> &T {
        &self.value
    }

    fn is_here(&self) -> bool {
        self.process == process::id()
    }
}

impl<T> Drop for Home<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            // One more owner than there is: what is left alone is never dropped.
            mem::forget(Arc::clone(&self.value));
        }
    }
}
