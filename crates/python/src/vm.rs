//! A VM, as Python holds it.

use std::time::Duration;

use exec_sandbox::{Ending, QemuVm};
use pyo3::prelude::*;

use crate::{
    files::{self, Content, Destination},
    guest::Guest,
    home::Home,
    outcome::{Boot, Port, port},
    process::Process,
    requests::Program,
    runtime::promise,
    stream::OutputStream,
};

/// A VM. Dropped, it is torn down in the background.
#[pyclass(frozen, module = "exec_sandbox._native")]
#[derive(Debug)]
pub(crate) struct Vm(Home<QemuVm>);

impl From<QemuVm> for Vm {
    fn from(vm: QemuVm) -> Self {
        Self(Home::of(vm))
    }
}

#[pymethods]
impl Vm {
    #[getter]
    fn vm_id(&self) -> &str {
        self.0.look().vm_id()
    }

    #[getter]
    fn exposed_ports(&self) -> Vec<Port> {
        self.0.look().exposed_ports().iter().map(port).collect()
    }

    #[getter]
    fn process(&self) -> Process {
        self.0.look().process().clone().into()
    }

    /// The process that is its network, if it has one.
    #[getter]
    fn gateway(&self) -> Option<Process> {
        self.0.look().gateway().map(|process| process.clone().into())
    }

    #[getter]
    fn boot(&self) -> Boot {
        self.0.look().boot_timing().into()
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

    /// Asks the agent whether it is there; how long the answer took, in seconds.
    fn ping<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let vm = self.0.get()?;
        promise(py, "ping", async move { Ok(vm.ping().await?.as_secs_f64()) })
    }

    /// Connects to the agent again.
    fn open_channel<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let vm = self.0.get()?;
        promise(py, "open_channel", async move { Ok(vm.channel().open().await?) })
    }

    /// Lets the connection to the agent go; the VM lives on.
    fn close_channel<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let vm = self.0.get()?;
        promise(py, "close_channel", async move { Ok(vm.channel().close().await?) })
    }

    /// Ends it; done when its processes are confirmed dead. With `patience`, in seconds, QEMU is asked to end before it is killed.
    #[pyo3(signature = (patience=None))]
    fn destroy<'py>(&self, py: Python<'py>, patience: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let vm = self.0.get()?;
        let patience = patience.and_then(|patience| Duration::try_from_secs_f64(patience).ok());
        let ending = patience.map_or(Ending::AtOnce, |patience| Ending::Gently { patience });
        promise(py, "destroy", async move { Ok(vm.destroy_with(ending).await?) })
    }
}

impl Vm {
    fn guest(&self) -> PyResult<Guest> {
        self.0.get().map(Guest::Vm)
    }
}
