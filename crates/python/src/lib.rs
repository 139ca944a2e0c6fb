//! The Rust half of the Python package `exec_sandbox`: its module `_native`.
//!
//! It converts types and errors and hands futures to the event loop; what is done, checked and promised is the library's. Nothing
//! here is public: `python/exec_sandbox` is, and `_native.pyi` says what it may use.

mod errors;
mod files;
mod guest;
mod home;
mod outcome;
mod process;
mod requests;
mod runtime;
mod scheduler;
mod session;
mod stream;
mod vm;

/// See `_native.pyi`.
#[pyo3::pymodule]
mod _native {
    use log::LevelFilter;
    use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};
    use pyo3_log::{Caching, Logger};

    #[pymodule_export]
    use crate::{process::Process, scheduler::Scheduler, session::Session, stream::OutputStream, vm::Vm};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let py = module.py();
        // Levels are asked for anew each time, because programs change them; so only our own events get that far, which are few.
        let bridge = Logger::new(py, Caching::Loggers)?
            .filter(LevelFilter::Off)
            .filter_target("exec_sandbox".into(), LevelFilter::Trace);
        // The module is one of its own, with a `log` of its own: nobody has come first.
        drop(bridge.install());
        py.import("atexit")?.call_method1("register", (module.getattr("shut_down")?,))?;
        let hooks = PyDict::new(py);
        hooks.set_item("after_in_child", module.getattr("forked")?)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&hooks))?;
        Ok(())
    }

    /// Ends what runs in the background: every VM of this process. Called as the interpreter exits, while threads may still use it.
    #[pyfunction]
    fn shut_down(py: Python<'_>) {
        py.detach(crate::runtime::shut_down);
    }

    /// Forgets the parent's threads. Called in the child of a fork.
    #[pyfunction]
    fn forked() {
        crate::runtime::forget();
    }

    /// The address and port of the resolver that `text` writes.
    #[pyfunction]
    fn parse_resolver(text: &str) -> PyResult<String> {
        let resolver = exec_sandbox::parse_resolver(text);
        resolver.map(|resolver| resolver.to_string()).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The numbers that the Python half repeats in its constants, so that a test can compare them.
    #[pyfunction]
    fn limits(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let limits = PyDict::new(py);
        limits.set_item("max_code_chars", exec_sandbox::MAX_CODE_CHARS)?;
        limits.set_item("min_memory_mib", exec_sandbox::MIN_MEMORY_MIB)?;
        limits.set_item("max_timeout_seconds", exec_sandbox::MAX_TIMEOUT.as_secs())?;
        limits.set_item("max_file_bytes", exec_sandbox::MAX_FILE_BYTES)?;
        Ok(limits)
    }
}
