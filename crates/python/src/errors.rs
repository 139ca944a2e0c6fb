//! Errors of the library as exceptions: which class a kind becomes is the Python half's table, `_errors.py`.

use std::{error::Error as _, io};

use pyo3::{
    exceptions::PyOSError,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyList},
};

/// Why a call into the library came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library says why.
    Sandbox(exec_sandbox::Error),
    /// A file of the host could not be used. The path is the caller's.
    File(io::Error, String),
    /// Python code that was called raised it, or a value was no good.
    Python(PyErr),
}

impl Failure {
    /// The exception, of a call that its users know as `operation`.
    pub(crate) fn raise(self, py: Python<'_>, operation: &'static str) -> PyErr {
        match self {
            Self::Python(raised) => raised,
            Self::File(error, path) => os_error(&error, &path),
            Self::Sandbox(error) => {
                raised_by_caller(py, &error).unwrap_or_else(|| exception(py, &error, operation).unwrap_or_else(|e| e))
            }
        }
    }
}

impl From<exec_sandbox::Error> for Failure {
    fn from(error: exec_sandbox::Error) -> Self {
        Self::Sandbox(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// What a file-like object of the caller raised is told as it was, not as an error of the sandbox.
fn raised_by_caller(py: Python<'_>, error: &exec_sandbox::Error) -> Option<PyErr> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    Some(cause.get_ref()?.downcast_ref::<PyErr>()?.clone_ref(py))
}

fn exception(py: Python<'_>, error: &exec_sandbox::Error, operation: &str) -> PyResult<PyErr> {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = MAKE.import(py, "exec_sandbox._errors", "from_native")?;
    let causes = PyList::empty(py);
    let mut cause = error.source();
    while let Some(reason) = cause {
        causes.append((reason.downcast_ref().and_then(io::Error::raw_os_error), reason.to_string()))?;
        cause = reason.source();
    }
    let said = PyDict::new(py);
    said.set_item("kind", error.kind().name())?;
    said.set_item("message", error.to_string())?;
    said.set_item("remedy", error.remedy())?;
    said.set_item("vm_id", error.vm_id())?;
    said.set_item("operation", operation)?;
    said.set_item("causes", causes)?;
    Ok(PyErr::from_value(make.call((), Some(&said))?))
}

/// Python picks the class, such as `FileNotFoundError`, by the number.
fn os_error(error: &io::Error, path: &str) -> PyErr {
    let text = error.to_string();
    // Python adds the number itself.
    let reason = text.split(" (os error").next().unwrap_or_default().to_owned();
    match error.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, reason, path.to_owned())),
        None => PyOSError::new_err(format!("{path}: {text}")),
    }
}
