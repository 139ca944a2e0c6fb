//! A VM's process, for observers.

use exec_sandbox::Process as Observed;
use pyo3::prelude::*;

use crate::{errors::Failure, runtime::promise};

/// A process of a VM.
#[pyclass(frozen, module = "exec_sandbox._native")]
#[derive(Debug)]
pub(crate) struct Process(Observed);

impl From<Observed> for Process {
    fn from(process: Observed) -> Self {
        Self(process)
    }
}

#[pymethods]
impl Process {
    #[getter]
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// As `subprocess` has it: the code, or the signal's number below zero. `None`: it lives, or nobody here saw how it ended.
    #[getter]
    fn returncode(&self) -> Option<i32> {
        self.0.exit().and_then(returncode)
    }

    /// Waits for its end, and says how it ended.
    fn ended<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let process = self.0.clone();
        promise(py, "wait", async move {
            let ended =
                process.ended().await.map_err(|error| Failure::File(error, format!("process {}", process.pid())))?;
            Ok(ended.and_then(returncode))
        })
    }

    /// Sends it a signal. One that has ended gets none, which is no error.
    fn signal(&self, number: i32) -> PyResult<()> {
        Ok(self.0.signal(number)?)
    }
}

fn returncode(status: std::process::ExitStatus) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or_else(|| status.signal().map(|signal| -signal))
}
