//! A session, as Python holds it.

use exec_sandbox::Session as Held;
use pyo3::prelude::*;

use crate::{
    files::{self, Content, Destination},
    guest::Guest,
    home::Home,
    outcome::{Port, port},
    requests::Program,
    runtime::promise,
    stream::OutputStream,
};

/// A VM that is kept for many executions. Dropped, it is torn down in the background.
#[pyclass(frozen, module = "exec_sandbox._native")]
#[derive(Debug)]
pub(crate) struct Session(Home<Held>);

impl From<Held> for Session {
    fn from(session: Held) -> Self {
        Self(Home::of(session))
    }
}

#[pymethods]
impl Session {
    #[getter]
    fn vm_id(&self) -> &str {
        self.0.look().vm_id()
    }

    #[getter]
    fn exposed_ports(&self) -> Vec<Port> {
        self.0.look().exposed_ports().iter().map(port).collect()
    }

    #[getter]
    fn exec_count(&self) -> u64 {
        self.0.look().exec_count()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.0.look().is_closed()
    }

    /// Runs a program; what it writes goes to `stream` if there is one.
    #[pyo3(signature = (program, stream=None))]
    fn exec<'py>(
        &self,
        py: Python<'py>,
        program: Program,
        stream: Option<&Bound<'py, OutputStream>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.guest()?.exec_promise(py, program, stream)
    }

    /// Writes a file, and returns its size.
    fn write_file<'py>(
        &self,
        py: Python<'py>,
        path: String,
        content: Content,
        executable: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        promise(py, "write_file", files::write(self.guest()?, path, content, executable))
    }

    /// Reads a file, and returns its size.
    fn read_file<'py>(&self, py: Python<'py>, path: String, destination: Destination) -> PyResult<Bound<'py, PyAny>> {
        promise(py, "read_file", files::read(self.guest()?, path, destination))
    }

    /// What is in a directory: names, whether they are directories, sizes.
    fn list_files<'py>(&self, py: Python<'py>, path: String) -> PyResult<Bound<'py, PyAny>> {
        self.guest()?.list_promise(py, path)
    }

    /// Ends it; done when its VM is confirmed dead.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let session = self.0.get()?;
        promise(py, "close", async move { Ok(session.close().await?) })
    }
}

impl Session {
    fn guest(&self) -> PyResult<Guest> {
        self.0.get().map(Guest::Session)
    }
}
