//! What a VM writes, on its way to callbacks: Python takes it piece by piece, and what it does not take waits in the guest.

use std::sync::{Arc, Mutex, PoisonError};

use exec_sandbox::Output;
use pyo3::{exceptions::PyRuntimeError, prelude::*};
use tokio::sync::mpsc;

use crate::{outcome::Raw, runtime::promise};

/// Pieces that wait for Python. A piece has at most 64 KiB.
const WAITING: usize = 16;

/// A stream of pieces of output. It ends when what it was given to has ended.
#[pyclass(frozen, module = "exec_sandbox._native")]
#[derive(Debug)]
pub(crate) struct OutputStream {
    sender: Mutex<Option<mpsc::Sender<Output>>>,
    receiver: Arc<tokio::sync::Mutex<mpsc::Receiver<Output>>>,
}

/// A piece: which stream (1, 2, or 0 for the boot log), and its bytes.
#[derive(IntoPyObject)]
struct Piece(u8, Raw);

#[pymethods]
impl OutputStream {
    #[new]
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { sender: Mutex::new(Some(sender)), receiver: Arc::new(tokio::sync::Mutex::new(receiver)) }
    }

    /// What has arrived: at least one piece, or `None` once there will be no more.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let receiver = Arc::clone(&self.receiver);
        promise(py, "next", async move {
            let mut pieces = Vec::new();
            let arrived = receiver.lock().await.recv_many(&mut pieces, WAITING).await;
            Ok((arrived > 0).then(|| pieces.into_iter().map(Piece::from).collect::<Vec<_>>()))
        })
    }
}

impl OutputStream {
    /// The end that a call writes to.
    pub(crate) fn sender(&self) -> PyResult<mpsc::Sender<Output>> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        sender.ok_or_else(|| PyRuntimeError::new_err("the stream is another call's"))
    }
}

impl From<Output> for Piece {
    fn from(output: Output) -> Self {
        match output {
            Output::BootLog(bytes) | Output::Progress(bytes) => Self(0, Raw(bytes)),
            Output::Stdout(bytes) => Self(1, Raw(bytes)),
            Output::Stderr(bytes) => Self(2, Raw(bytes)),
        }
    }
}
