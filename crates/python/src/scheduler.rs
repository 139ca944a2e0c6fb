//! A scheduler, as Python holds it. VMs by hand come from it too: its manager is the library's.

use exec_sandbox::Scheduler as Held;
use pyo3::prelude::*;

use crate::{
    home::Home,
    outcome::Outcome,
    requests::{Config, Program, Vm as Spec, seconds},
    runtime::promise,
    session::Session,
    stream::OutputStream,
    vm::Vm,
};

/// Runs code in VMs.
#[pyclass(frozen, module = "exec_sandbox._native")]
#[derive(Debug)]
pub(crate) struct Scheduler(Home<Held>);

#[pymethods]
impl Scheduler {
    /// Examines this machine and starts.
    #[staticmethod]
    fn start<'py>(py: Python<'py>, config: Config) -> PyResult<Bound<'py, PyAny>> {
        let config = config.into_request()?;
        promise(py, "start", async move { Ok(Self(Home::of(Held::start(config).await?))) })
    }

    /// Runs a program in a fresh VM; what it writes goes to `stream` if there is one, and the boot log if that is wanted.
    #[pyo3(signature = (vm, program, stream=None, boot_log=false))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        vm: Spec,
        program: Program,
        stream: Option<&Bound<'py, OutputStream>>,
        boot_log: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let scheduler = self.0.get()?;
        let request = vm.into_run(program, boot_log)?;
        let output = stream.map(|stream| stream.get().sender()).transpose()?;
        promise(py, "run", async move {
            let outcome = match output {
                Some(output) => scheduler.run_streaming(request, output).await,
                None => scheduler.run(request).await,
            };
            Ok(Outcome::from(outcome?))
        })
    }

    /// Starts a session; the boot log goes to `stream` if there is one.
    #[pyo3(signature = (vm, idle_timeout=None, stream=None))]
    fn session<'py>(
        &self,
        py: Python<'py>,
        vm: Spec,
        idle_timeout: Option<f64>,
        stream: Option<&Bound<'py, OutputStream>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let scheduler = self.0.get()?;
        let boot_log = stream.map(|stream| stream.get().sender()).transpose()?;
        let request = vm.into_session(idle_timeout, boot_log)?;
        promise(py, "session", async move { Ok(Session::from(scheduler.session(request).await?)) })
    }

    /// Boots a VM; the boot log goes to `stream` if there is one.
    #[pyo3(signature = (vm, stream=None))]
    fn create_vm<'py>(
        &self,
        py: Python<'py>,
        vm: Spec,
        stream: Option<&Bound<'py, OutputStream>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let scheduler = self.0.get()?;
        let boot_log = stream.map(|stream| stream.get().sender()).transpose()?;
        let spec = vm.into_spec(boot_log)?;
        promise(py, "create_vm", async move { Ok(Vm::from(scheduler.manager().create_vm(spec).await?)) })
    }

    /// Is done when the pool is full, and fails if it is not within `patience` seconds.
    fn wait_pool_ready<'py>(&self, py: Python<'py>, patience: f64) -> PyResult<Bound<'py, PyAny>> {
        let scheduler = self.0.get()?;
        let patience = seconds(Some(patience)).unwrap_or_default();
        promise(py, "wait_pool_ready", async move { Ok(scheduler.wait_pool_ready(patience).await?) })
    }

    /// Refuses new VMs, ends all there are, and is done when they are confirmed dead.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let scheduler = self.0.get()?;
        promise(py, "close", async move { Ok(scheduler.close().await?) })
    }
}
