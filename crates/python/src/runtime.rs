//! The runtime on which the library's futures run: one in a process, made when it is first needed.
//!
//! A fork copies memory and no threads, so the child forgets its parent's runtime and makes one of its own. When the interpreter
//! exits, the runtime goes first: a thread that asks for an interpreter that is gone would hang or die.

use std::{
    cell::OnceCell,
    future::Future,
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use pyo3::{IntoPyObjectExt as _, prelude::*};
use pyo3_async_runtimes::{
    TaskLocals,
    generic::{self, ContextExt},
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::{JoinError, JoinHandle},
};

use crate::errors::Failure;

/// Threads that drive VMs. They carry bytes and wait; what computes is in the guests.
const MOST_WORKERS: usize = 4;

/// How long the interpreter's exit waits for calls into Python that are under way. VMs are killed before that.
const SHUT_DOWN_PATIENCE: Duration = Duration::from_secs(2);

static RUNTIME: ArcSwapOption<Runtime> = ArcSwapOption::const_empty();

/// The interpreter exits, and nothing is begun any more.
static IS_EXITING: AtomicBool = AtomicBool::new(false);

tokio::task_local! {
    static LOCALS: OnceCell<TaskLocals>;
}

/// What `pyo3-async-runtimes` runs futures with.
struct Background;

/// What a future comes to, as Python gets it: raised only where there is an interpreter to raise it in.
struct Reply<T> {
    operation: &'static str,
    result: Result<T, Failure>,
}

/// Runs `future` in the background; Python awaits what is returned. Cancelled there, it is dropped.
///
/// Its first step is taken at once: calls reach the library in the order in which Python made them, and without waiting for
/// another thread to wake up.
pub(crate) fn promise<'py, T, F>(py: Python<'py>, operation: &'static str, future: F) -> PyResult<Bound<'py, PyAny>>
where
    F: Future<Output = Result<T, Failure>> + Send + 'static,
    T: for<'any> IntoPyObject<'any> + Send + 'static,
{
    let handle = handle()?;
    let mut future = Box::pin(future);
    // Without the interpreter: the step may wait for a lock whose holder wants it, to write to a log for example.
    let first = py.detach(|| {
        let _entered = handle.enter();
        // Whatever wakes it before it is polled again finds it about to be polled.
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    });
    let whole = async move {
        let result = match first {
            Poll::Ready(result) => result,
            Poll::Pending => future.await,
        };
        Ok(Reply { operation, result })
    };
    generic::future_into_py::<Background, _, _>(py, whole)
}

/// Runs what may block, such as a call into Python, off the threads that drive VMs.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Ends the runtime, and with it every VM: a supervisor that is dropped kills its own.
pub(crate) fn shut_down() {
    IS_EXITING.store(true, Ordering::Release);
    if let Some(runtime) = RUNTIME.swap(None).and_then(Arc::into_inner) {
        runtime.shutdown_timeout(SHUT_DOWN_PATIENCE);
    }
}

/// Lets go of a runtime whose threads are another process's.
pub(crate) fn forget() {
    // Dropped, it would wait for them.
    mem::forget(RUNTIME.swap(None));
}

fn handle() -> io::Result<Handle> {
    if let Some(runtime) = RUNTIME.load().as_ref() {
        return Ok(runtime.handle().clone());
    }
    if IS_EXITING.load(Ordering::Acquire) {
        return Err(io::Error::other("the interpreter is exiting"));
    }
    // Whoever calls holds the interpreter's lock, so nobody else is making one.
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_WORKERS));
    let runtime =
        Builder::new_multi_thread().worker_threads(workers).thread_name("exec-sandbox").enable_all().build()?;
    let handle = runtime.handle().clone();
    RUNTIME.store(Some(Arc::new(runtime)));
    Ok(handle)
}

impl generic::Runtime for Background {
    type JoinError = JoinError;
    type JoinHandle = JoinHandle<()>;

    fn spawn<F: Future<Output = ()> + Send + 'static>(future: F) -> Self::JoinHandle {
        background().spawn(future)
    }

    fn spawn_blocking<F: FnOnce() + Send + 'static>(work: F) -> Self::JoinHandle {
        background().spawn_blocking(work)
    }
}

impl ContextExt for Background {
    fn scope<F, R>(locals: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        Box::pin(LOCALS.scope(OnceCell::from(locals), future))
    }

    fn get_task_locals() -> Option<TaskLocals> {
        LOCALS.try_with(|locals| locals.get().cloned()).ok().flatten()
    }
}

/// The runtime of the thread, or the process's: [`promise`] has made it.
fn background() -> Handle {
    Handle::try_current().or_else(|_outside| handle()).expect("the runtime is there while promises are")
}

impl<'py, T> IntoPyObject<'py> for Reply<T>
where
    T: IntoPyObject<'py>,
{
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let value = self.result.map_err(|failure| failure.raise(py, self.operation))?;
        value.into_bound_py_any(py)
    }
}
